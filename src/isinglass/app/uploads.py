"""What people send: checked before it is decoded, and refused with what came, what was expected, and what to do."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from PIL import Image

from isinglass.app.settings import Limits
from isinglass.errors import InputError
from isinglass.images import load, opened, read_header
from isinglass.images.formats import kind_of_content

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "HEIF", "PPM")
_STILL = ("MPO",)  # several images that are one photo: phones store a depth or gain map beside it
_LONGEST_NAME = 80
_EXPECTED = "expected a photo: JPEG, PNG, WebP, TIFF, BMP or AVIF"


class Refused(InputError):
    """An upload or a request that the server does not take. `status` is that of HTTP."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Upload:
    """An image file as it came, whose header has been read.

    name     as people know it, safe to show
    content  the file
    size     (width, height) px as stored
    """

    name: str
    content: bytes
    size: tuple[int, int]

    @property
    def digest(self) -> str:
        """Of the content: equal files have equal ones."""
        return hashlib.sha256(self.content).hexdigest()

    def decoded(self) -> Image.Image:
        """The pixels. Raises Refused (422) where the file is damaged."""
        try:
            with opened(self.content, name=self.name, formats=FORMATS) as image:
                return load(image, self.name).copy()
        except InputError as error:
            raise Refused(
                f"{self.name} cannot be decoded ({error}): it is damaged or cut off; expected a whole image file. "
                "Copy or save it again",
                422,
            ) from error


def check_upload(content: bytes, name: str, limits: Limits, kind: Literal["photo", "mask"] = "photo") -> Upload:
    """The upload, if it is one image within the limits.

    Raises Refused: 413 for a file or an image that is too large, 415 for what is no image, a kind of image that is not
    read or an animation, 422 for an empty or damaged file.
    """
    name = shown_name(name, kind)
    if not content:
        raise Refused(f"{name} is an empty file; {_EXPECTED}. Choose it again", 422)
    if len(content) > limits.file_bytes:
        raise too_large(name, len(content), limits)
    try:
        header = read_header(content, name=name, formats=FORMATS)
    except InputError as error:
        raise _not_an_image(content, name) from error
    width, height = header.size
    if width * height > limits.pixels:
        raise _too_many_pixels(name, f"{width} x {height} px", limits)
    if header.format not in _STILL and header.animated:
        raise Refused(
            f"{name} is a moving picture or holds several pages ({header.format}); {_EXPECTED}, one image a file. "
            "Save the frame to be matched as PNG",
            415,
        )
    return Upload(name=name, content=content, size=header.size)


def shown_name(name: str, otherwise: str) -> str:
    """The last part of a file's name without what cannot be shown, or `otherwise`."""
    last = PurePosixPath(name.replace("\\", "/")).name
    kept = "".join(letter for letter in last if letter.isprintable())
    if len(kept) > _LONGEST_NAME:
        kept = f"{kept[: _LONGEST_NAME - 13]}...{kept[-10:]}"
    return kept or otherwise


def too_large(name: str, size: int, limits: Limits) -> Refused:
    """The refusal of a file of `size` bytes."""
    return Refused(
        f"{name} has {size / 1e6:.0f} MB; expected at most {limits.file_bytes / 1e6:.0f} MB. Save it as JPEG, "
        "or smaller",
        413,
    )


def _too_many_pixels(name: str, size: str, limits: Limits) -> Refused:
    return Refused(
        f"{name} has {size}; expected at most {limits.pixels / 1e6:.0f} megapixels. Make it smaller: matching sees it "
        f"at {limits.most_resize} px or less anyway",
        413,
    )


def _not_an_image(content: bytes, name: str) -> Refused:
    kind = kind_of_content(content[:2048])
    if kind is None:
        what, remedy = "is no image, damaged, or of a kind that is not read here", "Convert it to PNG, or copy it again"
    elif kind[0] == "heif":
        what, remedy = "is a HEIC photo, which is not read here", "Export it as JPEG"
    elif kind[0] == "video":
        what, remedy = "is no image, but looks like a video or sound", "Save one frame as PNG"
    else:
        what, remedy = f"is {kind[1]}", f"{kind[2][0].upper()}{kind[2][1:]}"
    return Refused(f"{name} {what}; {_EXPECTED}. {remedy}", 415)
