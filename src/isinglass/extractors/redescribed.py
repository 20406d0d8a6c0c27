"""Keypoints of one extractor with the descriptors of another: what a detector-agnostic matcher is trained on."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from isinglass.errors import InputError
from isinglass.types import Extractor, Features, Signature


@runtime_checkable
class Describer(Protocol):
    """An extractor that describes any point of an image: ALIKED, SuperPoint."""

    @property
    def signature(self) -> Signature:
        """Who it is."""
        ...

    def describe_points(self, image_CHW: Tensor, points_K2: Tensor) -> Tensor:
        """Descriptors (K, D) of unit length of points in px of the image, float32 in [0, 1]."""
        ...


class Redescribed:
    """Keypoints and scores of `detector`, descriptors of `describer`; named "detector+describer".

    Matchers made for the describer take them. Raises InputError where that describes its own keypoints alone.
    """

    def __init__(self, detector: Extractor, describer: object) -> None:
        if not isinstance(describer, Describer):
            raise InputError(
                f"{getattr(describer, 'signature', describer)} describes its own keypoints alone; after '+' expected "
                "ALIKED or SuperPoint, as in 'disk+aliked-n16'"
            )
        self.detector, self.describer = detector, describer
        needs = [getattr(one, "bytes_per_pixel", None) for one in (detector, describer)]
        known = [need for need in needs if need is not None]
        self.bytes_per_pixel = max(known) if len(known) == len(needs) else None

    @property
    def signature(self) -> Signature:
        """Who they are, as written into the features."""
        first, last = self.detector.signature, self.describer.signature
        return Signature(extractor=f"{first.extractor}+{last.extractor}", weights=f"{first.weights}+{last.weights}")

    @torch.inference_mode()
    def extract(self, images: Tensor, mask: Tensor | None = None) -> Features:
        """See Extractor."""
        found = self.detector.extract(images, mask)
        singles = []
        for i, image_CHW in enumerate(images):
            one = found[i]
            descriptors = self.describer.describe_points(image_CHW, one.keypoints[0])
            singles.append(
                Features(
                    keypoints=one.keypoints,
                    descriptors=descriptors[None],
                    scores=one.scores,
                    image_size=one.image_size,
                    signature=self.signature,
                )
            )
        return Features.stack(singles)
