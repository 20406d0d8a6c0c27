"""Buckets, chunks of like size, and the same function called or recorded."""

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isinglass.ops.recording import Later, Recorded, alike, bucket_of


def test_buckets_waste_at_most_half():
    assert [bucket_of(n) for n in (0, 1, 256, 257, 384, 385, 512, 513, 769)] == [
        256, 256, 256, 384, 384, 512, 512, 768, 1024,
    ]  # fmt: skip
    assert [bucket_of(n, least=1) for n in (1, 2, 3, 4, 5, 7)] == [1, 2, 3, 4, 6, 8]


@given(count=st.integers(1, 100_000))
def test_a_bucket_holds_its_count_and_buckets_are_few(count):
    assert count <= bucket_of(count) <= max(1.5 * count, 256)
    assert bucket_of(bucket_of(count)) == bucket_of(count)


@given(
    lengths=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), max_size=20),
    tokens=st.integers(1, 200),
    numbers=st.integers(1, 9000),
)
def test_chunks_have_every_pair_once_and_keep_to_the_limits(lengths, tokens, numbers):
    chunks = list(alike(lengths, tokens, numbers))
    assert sorted(i for chunk in chunks for i in chunk) == list(range(len(lengths)))
    for chunk in chunks:
        longest = max(max(lengths[i]) for i in chunk)
        within = sum(sum(lengths[i]) for i in chunk) <= tokens and len(chunk) * longest**2 <= numbers
        assert within or len(chunk) == 1


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")),
]


@pytest.mark.parametrize("device", DEVICES)
def test_a_recorded_function_acts_each_time(device):
    x = torch.zeros(3, device=device)
    act = Recorded(functools.partial(x.add_, 1), x.device)
    for i in range(1, 5):
        act()
        assert Later(x[0]).read() == i


def test_a_number_read_later_is_what_it_was():
    x = torch.tensor(3)
    later = Later(x)
    x += 1
    assert later.read() == 3
