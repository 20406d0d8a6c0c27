"""Segments whose lengths are on the device: the same as lists of them."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isinglass.ops import segments
from isinglass.ops.attention import attend_packed
from isinglass.ops.ragged import Ragged
from isinglass.ops.segments import Segments, kept_first

lengths_of_pairs = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=4).map(
    lambda pairs: [n for pair in pairs for n in pair]
)


def make(lengths):
    return Segments.of_lengths(torch.tensor(lengths, dtype=torch.int32), max(lengths))


@settings(max_examples=40, deadline=None)
@given(lengths=lengths_of_pairs, nobodys=st.integers(0, 4), seed=st.integers(0, 99))
def test_owners_and_counts_are_those_of_lists(lengths, nobodys, seed):
    places = sum(lengths) + nobodys
    owner_T = make(lengths).owner(places)
    expected = [i for i, n in enumerate(lengths) for _ in range(n)] + [len(lengths)] * nobodys
    assert owner_T.tolist() == expected
    flag_T = torch.rand(places, generator=torch.Generator().manual_seed(seed)) < 0.5
    if places:
        counts = [int(part.sum()) for part in flag_T[: sum(lengths)].split(lengths)]
        assert make(lengths).count(flag_T).tolist() == counts


@settings(max_examples=40, deadline=None)
@given(lengths=lengths_of_pairs, nobodys=st.integers(0, 4), is_cross=st.booleans(), scale=st.floats(0.1, 2))
def test_attention_is_that_of_lists(lengths, nobodys, is_cross, scale):
    count, generator = sum(lengths), torch.Generator().manual_seed(7)
    q, k, v = (torch.randn(count + nobodys, 2, 8, generator=generator) for _ in range(3))
    found = make(lengths).attend(q, k, v, is_cross=is_cross, scale=scale)
    heads_first = (x[:count].transpose(0, 1) for x in (q, k, v))
    torch.testing.assert_close(found[:count], attend_packed(*heads_first, lengths, int(is_cross), scale))


def test_the_gpu_kernel_is_given_offsets_of_both_sides(monkeypatch):
    """Flash attention is stood in for by the loop, which reads what it takes; it is for halves alone."""
    given = {}

    def stand_in(q, k, v, ends_q, ends_k, max_q, max_k, scale):
        given.update(ends_q=ends_q.tolist(), ends_k=ends_k.tolist(), longest=(max_q, max_k), scale=scale)
        assert ends_q.dtype == ends_k.dtype == torch.int32
        return q

    class OnGPU(torch.Tensor):
        device = torch.device("cuda")

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", stand_in)
    q = torch.randn(12, 2, 8).as_subclass(OnGPU)
    lengths = torch.tensor([3, 4, 5, 0], dtype=torch.int32)
    swapped = torch.tensor([4, 3, 0, 5], dtype=torch.int32)
    ends = (Segments.of_lengths(one, 8).ends_E for one in (lengths, swapped))
    assert segments.attend_segments(q, q, q, *ends, 8, 0.5) is q
    assert given == {"ends_q": [0, 3, 7, 12, 12], "ends_k": [0, 4, 7, 7, 12], "longest": (8, 8), "scale": 0.5}


@settings(max_examples=40, deadline=None)
@given(flags=st.lists(st.booleans(), min_size=1, max_size=20))
def test_those_to_keep_come_first_in_order(flags):
    order, count = kept_first(torch.tensor(flags))
    assert order[: int(count)].tolist() == [i for i, flag in enumerate(flags) if flag]
    assert len(order) == len(flags)
    assert ((order >= 0) & (order < len(flags))).all()


def test_moving_up_is_what_ragged_does():
    lengths = [4, 3, 2, 6]
    keep_T = torch.tensor([True, False] * 7 + [True])
    ragged = Ragged.pack(torch.arange(15.0)[:, None], (), lengths)
    ragged.keep(keep_T, (), 1)
    order, count = kept_first(keep_T)
    assert order[: int(count)].tolist() == ragged.origin_T.tolist()
    assert make(lengths).count(keep_T).tolist() == ragged.lengths
