"""Images: reading them, their headers, and views of them.

Names are resolved at first use: what needs only suffixes or a file's header does not wait for torch.
"""

from typing import TYPE_CHECKING

from isinglass.lazy import lazy_names

if TYPE_CHECKING:
    from isinglass.images.exif import Exif
    from isinglass.images.formats import (
        MAX_PIXELS,
        READABLE_SUFFIXES,
        REMEDIES,
        readable_suffixes,
        remedy,
    )
    from isinglass.images.header import Header, header_of, load, opened, read_header
    from isinglass.images.reading import (
        ImageSource,
        Photo,
        exif_orientation,
        read_image,
        read_mask,
        read_photo,
        reading_version,
    )
    from isinglass.images.values import Stretch
    from isinglass.images.views import (
        View,
        cropped,
        features_to_original,
        mirrored,
        points_to_original,
        resized,
        tiles,
        turned,
        upright,
        whole,
    )

_HOMES = {
    "exif": ("Exif",),
    "formats": ("MAX_PIXELS", "READABLE_SUFFIXES", "REMEDIES", "readable_suffixes", "remedy"),
    "header": ("Header", "header_of", "load", "opened", "read_header"),
    "reading": ("ImageSource", "Photo", "exif_orientation", "read_image", "read_mask", "read_photo", "reading_version"),
    "values": ("Stretch",),
    "views": (
        "View",
        "cropped",
        "features_to_original",
        "mirrored",
        "points_to_original",
        "resized",
        "tiles",
        "turned",
        "upright",
        "whole",
    ),
}

__all__ = [
    "MAX_PIXELS",
    "READABLE_SUFFIXES",
    "REMEDIES",
    "Exif",
    "Header",
    "ImageSource",
    "Photo",
    "Stretch",
    "View",
    "cropped",
    "exif_orientation",
    "features_to_original",
    "header_of",
    "load",
    "mirrored",
    "opened",
    "points_to_original",
    "read_header",
    "read_image",
    "read_mask",
    "read_photo",
    "readable_suffixes",
    "reading_version",
    "remedy",
    "resized",
    "tiles",
    "turned",
    "upright",
    "whole",
]


__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
