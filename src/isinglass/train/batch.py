"""What a training step sees: pairs of dense features, and what is true of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from isinglass.types import Features

UNMATCHABLE, IGNORED = -1, -2


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PairBatch:
    """B pairs, both views padded to N keypoints.

    keypoints_B2N2   px of each view; padding is 0
    descriptors_B2ND, scores_B2N
    image_size_B22   (width, height) px
    mask_B2N         bool, False = padding; None = there is none, which is faster to learn from
    scale_orientation_B2N2  px and rad (SIFT), or None
    target_B2N       int64, the keypoint of the other view that is the same point; UNMATCHABLE = there is none;
                     IGNORED = not known, or too near to call, or padding
    """

    keypoints_B2N2: Tensor
    descriptors_B2ND: Tensor
    scores_B2N: Tensor
    image_size_B22: Tensor
    mask_B2N: Tensor | None
    scale_orientation_B2N2: Tensor | None
    target_B2N: Tensor

    def __len__(self) -> int:
        return len(self.target_B2N)

    def split(self, parts: int) -> list[PairBatch]:
        """Equal parts, in order."""
        size = len(self) // parts
        return [
            self._each(lambda value, start=start: value[start : start + size]) for start in range(0, size * parts, size)
        ]

    def to(self, device: torch.device) -> PairBatch:
        """The same on another device."""
        return self._each(lambda value: value.to(device))

    def tensors(self) -> dict[str, Tensor | None]:
        """The fields by name."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def _each(self, change: Callable[[Tensor], Tensor]) -> PairBatch:
        return replace(self, **{name: change(value) for name, value in self.tensors().items() if value is not None})


def stacked(pairs: Sequence[tuple[Features, Features]], targets: Sequence[tuple[Tensor, Tensor]]) -> PairBatch:
    """Of pairs of single images, and per pair the targets (M,) and (N,) of both views."""
    views, labels = [view for pair in pairs for view in pair], [one for pair in targets for one in pair]
    counts = [view.keypoints.shape[1] for view in views]
    most = max(1, *counts)

    def together(values: Sequence[Tensor], fill: float = 0) -> Tensor:
        padded = [F.pad(one, (0, 0) * (one.ndim - 1) + (0, most - len(one)), value=fill) for one in values]
        return torch.stack(padded).unflatten(0, (-1, 2))

    scale_orientation = None
    if views[0].scales is not None and views[0].orientations is not None:
        known = [(one.scales, one.orientations) for one in views]
        scale_orientation = together(
            [torch.stack([a[0], b[0]], dim=-1) for a, b in known if a is not None and b is not None]
        )
    return PairBatch(
        keypoints_B2N2=together([view.keypoints[0] for view in views]),
        descriptors_B2ND=together([view.descriptors[0].float() for view in views]),
        scores_B2N=together([view.scores[0] for view in views]),
        image_size_B22=torch.cat([view.image_size for view in views]).unflatten(0, (-1, 2)),
        mask_B2N=None if min(counts) == most else together([torch.ones_like(one.scores[0]) for one in views]).bool(),
        scale_orientation_B2N2=scale_orientation,
        target_B2N=together(labels, fill=IGNORED),
    )
