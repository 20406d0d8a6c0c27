"""Tokens of many pairs in one buffer without padding, which pairs and points leave as they are done.

Legend: T tokens now in the buffer, A all tokens that were packed, P pairs now in the buffer, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isinglass.runtime.layouts import Packed, slices_of
from isinglass.types import Features

MAX_TOKENS = 32768  # of one buffer: enough to fill a machine


class Inputs(NamedTuple):
    """The numbers of keypoints that networks take, in either layout: `...` is (T,) packed or (B, 2, N) dense.

    keypoints          (..., 2) px
    descriptors        (..., C)
    scores             (...)
    image_size         (..., 2) (width, height) px; dense (B, 2, 1, 2)
    scale_orientation  (..., 2) px and rad; None = the detector estimates none
    """

    keypoints: Tensor
    descriptors: Tensor
    scores: Tensor
    image_size: Tensor
    scale_orientation: Tensor | None

    @classmethod
    def packed(cls, views: Sequence[Features], like: Tensor) -> Inputs:
        """Put views of one image each side by side, in the dtype and on the device of `like`."""
        sizes = [view.image_size.expand(view.keypoints.shape[1], 2) for view in views]
        both = [value[0] for view in views if (value := _scale_orientation(view)) is not None]
        return cls(
            keypoints=torch.cat([view.keypoints[0] for view in views]).to(like),
            descriptors=torch.cat([view.descriptors[0] for view in views]).to(like),
            scores=torch.cat([view.scores[0] for view in views]).to(like),
            image_size=torch.cat(sizes).to(like),
            scale_orientation=torch.cat(both).to(like) if len(both) == len(views) else None,
        )

    @classmethod
    def made_up(cls, count: int, channels: int, like: Tensor) -> Inputs:
        """Make random points of an image, packed, always the same ones."""
        generator = torch.Generator("cpu").manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, device="cpu").to(like)

        return cls(
            keypoints=random(count, 2) * 400,
            descriptors=torch.nn.functional.normalize(random(count, channels) - 0.5, dim=-1),
            scores=random(count),
            image_size=random(count, 2) * 0 + 400,
            scale_orientation=random(count, 2) + 1,
        )

    @classmethod
    def dense(cls, batch: Features, like: Tensor) -> Inputs:
        """Take the two views of one pair, padded to one length, as a batch of one pair."""
        scale_orientation = _scale_orientation(batch)
        return cls(
            keypoints=batch.keypoints[None].to(like),
            descriptors=batch.descriptors[None].to(like),
            scores=batch.scores[None].to(like),
            image_size=batch.image_size[None, :, None].to(like),
            scale_orientation=None if scale_orientation is None else scale_orientation[None].to(like),
        )


def _scale_orientation(views: Features) -> Tensor | None:
    """(B, N, 2) px and rad of each keypoint; None where the detector does not estimate both."""
    if views.scales is None or views.orientations is None:
        return None
    return torch.stack([views.scales, views.orientations], dim=-1)


class PairStates(NamedTuple):
    """One pair of a buffer: its number, the states of the points that are left, and their places in their views."""

    pair: int
    x0_MD: Tensor
    x1_ND: Tensor
    place0_M: Tensor
    place1_N: Tensor


@dataclass(slots=True, kw_only=True)
class TokenBuffer:
    """Segments in the order view 0 of a pair, view 1 of it, view 0 of the next, ...

    x_TD          states, replaced by each layer
    position      what a layer needs to know of each token's position: a named tuple of tensors (T, ...), or None
    lengths       2 P segment lengths
    pairs         P pair numbers, in the order of the buffer
    origin_T      (T,) int64, the place at which each token was packed
    pruned_at_A   (A,) int64, the number of layers each token went through when it left; 0 for those inside
    confidence_A  (A,) the last confidence of each token; NaN = none
    """

    x_TD: Tensor
    position: Any
    lengths: list[int]
    pairs: list[int]
    origin_T: Tensor
    pruned_at_A: Tensor
    confidence_A: Tensor
    segments: list[slice]  # as they were packed

    @classmethod
    def pack(cls, x_TD: Tensor, position: Any, lengths: Sequence[int]) -> TokenBuffer:
        """A buffer of pairs 0, 1, ..., whose segments of `lengths` are already side by side."""
        origin_T = torch.arange(len(x_TD), device=x_TD.device)
        return cls(
            x_TD=x_TD,
            position=position,
            lengths=list(lengths),
            pairs=list(range(len(lengths) // 2)),
            origin_T=origin_T,
            pruned_at_A=torch.zeros_like(origin_T),
            confidence_A=torch.full(origin_T.shape, torch.nan, dtype=torch.float32, device=x_TD.device),
            segments=slices_of(lengths),
        )

    @property
    def layout(self) -> Packed:
        """Where the tokens that are left may look."""
        return Packed(tuple(self.lengths))

    def advance(self, layer: Callable[[Tensor, Any, Packed], Tensor]) -> None:
        """Replace the states by what a layer makes of them."""
        self.x_TD = layer(self.x_TD, self.position, self.layout)

    def note_confidence(self, confidence_T: Tensor) -> None:
        """Keep the confidence of each token, also for when it has left."""
        self.confidence_A[self.origin_T] = confidence_T.to(self.confidence_A.dtype)

    def states(self, pairs: Collection[int]) -> Iterator[PairStates]:
        """Yield what is left of each of these pairs."""
        states, origins = self.x_TD.split(self.lengths), self.origin_T.split(self.lengths)
        for i, pair in enumerate(self.pairs):
            if pair in pairs:
                first0, first1 = (self.segments[2 * pair + view].start for view in (0, 1))
                places = origins[2 * i] - first0, origins[2 * i + 1] - first1
                yield PairStates(pair, states[2 * i], states[2 * i + 1], *places)

    def drop(self, keep_T: Tensor | None, leaving: Collection[int], layer: int) -> None:
        """Compact after so many layers: tokens without the flag leave (None = no token does), and whole pairs.

        Whole pairs that leave are those in `leaving` and those of which a view is empty then.
        """
        counts = self.lengths if keep_T is None else self.layout.segment_counts(keep_T).tolist()
        in_pair = [
            counts[i] > 0 and counts[i ^ 1] > 0 and self.pairs[i // 2] not in leaving for i in range(len(counts))
        ]
        if all(in_pair) and sum(counts) == sum(self.lengths):
            return
        device = self.x_TD.device
        stays_T = torch.tensor(in_pair, device=device).repeat_interleave(torch.tensor(self.lengths, device=device))
        stays_T = stays_T if keep_T is None else stays_T & keep_T
        self.pruned_at_A[self.origin_T[~stays_T]] = layer
        self.lengths = [count for count, is_there in zip(counts, in_pair, strict=True) if is_there]
        self.pairs = [pair for pair, is_there in zip(self.pairs, in_pair[::2], strict=True) if is_there]
        place_T = stays_T.nonzero().squeeze(-1)
        self.x_TD, self.origin_T = self.x_TD.index_select(0, place_T), self.origin_T.index_select(0, place_T)
        self.position = taken(self.position, place_T)

    def of_pair(self, values_A: Tensor, pair: int) -> tuple[Tensor, Tensor]:
        """The values of both views of a pair, of one value for each token that was packed."""
        return values_A[self.segments[2 * pair]], values_A[self.segments[2 * pair + 1]]


def taken(position: Any, place: Tensor) -> Any:
    """Return the positions at these places; None of None."""
    return None if position is None else type(position)(*(values.index_select(0, place) for values in position))
