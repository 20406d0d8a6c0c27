"""The few largest of each row, of an assignment or of attention, in numbers of the keypoints there were at first.

Legend: N keypoints a view had at first, M of view 0 and N of view 1 that are left, T of both, H heads, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from isinglass.inspection.record import Alternatives, Attention, Views

BLOCK_NUMBERS = 2**24  # weights held at once: 64 MiB


def scattered(values: Tensor, place: Tensor, count: int, fill: float) -> Tensor:
    """Values (M, ...) of the points at `place` (M,) as those of all `count` points; the others get `fill`."""
    out = values.new_full((count, *values.shape[1:]), fill)
    out[place] = values
    return out


def alternatives_of(
    assignment_MN: Tensor, unmatched: Views, places: Views, counts: tuple[int, int], most: int
) -> Alternatives:
    """The `most` best partners of each keypoint in an assignment of the points at `places`; `unmatched` is of those."""
    index, probability, none = [], [], []
    for view, rows in enumerate((assignment_MN, assignment_MN.T.contiguous())):
        here, there = places[view], places[1 - view]
        best, best_index = _largest(rows, there, most)
        index.append(scattered(best_index, here, counts[view], -1))
        probability.append(scattered(best.float(), here, counts[view], 0.0))
        none.append(scattered(unmatched[view].float(), here, counts[view], torch.nan))
    return Alternatives(
        index=(index[0], index[1]), probability=(probability[0], probability[1]), unmatched=(none[0], none[1])
    )


def attention_of(
    query_THC: Tensor, key_THC: Tensor, places: Views, counts: tuple[int, int], layer: int, cross: bool, most: int
) -> Attention:
    """The `most` attended keypoints of each head: softmax(q k^T / sqrt(C)) of both views, T = M + N side by side."""
    lengths = [len(place) for place in places]
    queries, keys = query_THC.split(lengths), key_THC.split(lengths)
    index, weight = [], []
    for view in (0, 1):
        other = view ^ cross
        index_NHK, weight_NHK = _attended(queries[view], keys[other], places[other], most)
        index.append(scattered(index_NHK, places[view], counts[view], -1))
        weight.append(scattered(weight_NHK, places[view], counts[view], 0.0))
    return Attention(
        name=f"layer {layer} {'cross' if cross else 'self'}",
        layer=layer,
        cross=cross,
        index=(index[0], index[1]),
        weight=(weight[0], weight[1]),
    )


def _attended(query_MHC: Tensor, key_NHC: Tensor, place_N: Tensor, most: int) -> Views:
    """(M, H, K) which keypoints, and how much of the attention each gets."""
    rows, found = max(BLOCK_NUMBERS // max(len(key_NHC), 1), 1), []
    for query_MC, key_NC in zip(query_MHC.unbind(1), key_NHC.unbind(1), strict=True):
        parts = [(part_MC @ key_NC.T / key_NC.shape[1] ** 0.5).softmax(dim=1) for part_MC in query_MC.split(rows)]
        found.append(_cat([_largest(part, place_N, most) for part in parts]))
    weight_MHK, index_MHK = (torch.stack(values, dim=1) for values in zip(*found, strict=True))
    return index_MHK, weight_MHK.float()


def _largest(rows_MN: Tensor, place_N: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Values and places (M, K) of the largest of each row, padded by 0 and -1 where there are fewer."""
    value, column = rows_MN.topk(min(most, rows_MN.shape[1]), dim=1)
    missing = (0, most - value.shape[1])
    return torch.nn.functional.pad(value, missing), torch.nn.functional.pad(place_N[column], missing, value=-1)


def _cat(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([value for value, _ in parts]), torch.cat([index for _, index in parts])
