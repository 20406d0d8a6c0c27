"""Mutations of bytes and of text. All randomness comes from the generator passed in: the same seed, the same input."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

MAX_LENGTH = 4_000_000
WORDS = [
    b"", b"nan", b"inf", b"-inf", b"-1", b"0", b"1e999", b"1e-999", b"99999999999999999999", b"null", b"true", b"[]",
    b"{}", b'""', b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"../..", b"/etc/passwd", "²".encode(), "\u202e".encode(),
    b"%00", b"%s%n", b"A" * 5000, b"[" * 3000, b"\r\n", b"\n", b"\t", b" ", b"'", b'"', b"\\", b",", b";", b":", b"#",
]  # fmt: skip


def mutate(data: bytes, rng: Random, *, text: bool = False) -> bytes:
    """Return `data` after one to three random mutations; with `text`, words are exchanged as well."""
    kinds = [*BYTES, *TEXT, *TEXT] if text else BYTES
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice(kinds)(data, rng)[:MAX_LENGTH]
    return data


def truncate(data: bytes, rng: Random) -> bytes:
    """Keep the beginning alone."""
    return data[: rng.randrange(len(data) + 1)]


def flip_bit(data: bytes, rng: Random) -> bytes:
    """Flip one bit, as a bad disk does."""
    if not data:
        return data
    place = _place(data, rng)
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def _extreme(data: bytes, rng: Random) -> bytes:
    size, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
    value = rng.choice((0, 1, 2, 2**7, 2**8, 2**15, 2**16, 2**31, 2**32, 2**63, 2**64)) - rng.choice((0, 1))
    return _written(data, _place(data, rng), (value % 2 ** (8 * size)).to_bytes(size, order))


def _added(data: bytes, rng: Random) -> bytes:
    size, order = rng.choice((1, 2, 4)), rng.choice(("little", "big"))
    place = _place(data, rng)
    value = int.from_bytes(data[place : place + size], order) + rng.choice((-16, -2, -1, 1, 2, 16))
    return _written(data, place, (value % 2 ** (8 * size)).to_bytes(size, order))


def _noise(data: bytes, rng: Random) -> bytes:
    return _written(data, _place(data, rng), rng.randbytes(rng.choice((1, 4, 16, 256))))


def _hole(data: bytes, rng: Random) -> bytes:
    """Zeros, as a file system leaves them after a power cut."""
    return _written(data, _place(data, rng), bytes(rng.choice((1, 8, 64, 512, 4096))))


def _cut_out(data: bytes, rng: Random) -> bytes:
    start, count = _place(data, rng), _count(data, rng)
    return data[:start] + data[start + count :]


def _repeat(data: bytes, rng: Random) -> bytes:
    start, count = _place(data, rng), _count(data, rng)
    return data[: start + count] + data[start : start + count] * rng.choice((1, 1, 2, 50)) + data[start + count :]


def _move(data: bytes, rng: Random) -> bytes:
    start, count = _place(data, rng), _count(data, rng)
    part, rest = data[start : start + count], data[:start] + data[start + count :]
    place = _place(rest, rng)
    return rest[:place] + part + rest[place:]


def _insert(data: bytes, rng: Random) -> bytes:
    place = _place(data, rng)
    return data[:place] + rng.randbytes(rng.choice((1, 2, 8, 100))) + data[place:]


def _append(data: bytes, rng: Random) -> bytes:
    return data + rng.choice((data, rng.randbytes(64), bytes(64)))


def _word(data: bytes, rng: Random) -> bytes:
    """Exchange a word for a nasty one."""
    words = data.split(b" ")
    words[rng.randrange(len(words))] = rng.choice(WORDS)
    return b" ".join(words)


def _line(data: bytes, rng: Random) -> bytes:
    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    lines[place : place + 1] = rng.choice(([], [lines[place]] * 3, [rng.choice(WORDS)], [rng.choice(lines)]))
    return b"\n".join(lines)


def _number(data: bytes, rng: Random) -> bytes:
    """Exchange a run of digits for a nasty word."""
    places = [i for i in range(len(data)) if data[i : i + 1].isdigit()]
    if not places:
        return _word(data, rng)
    start = end = rng.choice(places)
    while end < len(data) and data[end : end + 1].isdigit():
        end += 1
    return data[:start] + rng.choice(WORDS) + data[end:]


def _place(data: bytes, rng: Random) -> int:
    """A random place, half of the time in the first KB, where headers are."""
    if not data:
        return 0
    return rng.randrange(min(len(data), 1024) if rng.random() < 0.5 else len(data))


def _count(data: bytes, rng: Random) -> int:
    return min(rng.choice((1, 2, 4, 16, 100, 1000)), len(data))


def _written(data: bytes, place: int, part: bytes) -> bytes:
    return data[:place] + part[: len(data) - place] + data[place + len(part) :]


Mutation = Callable[[bytes, Random], bytes]
BYTES: list[Mutation] = [
    flip_bit, flip_bit, flip_bit, truncate, _extreme, _extreme, _added, _noise, _hole, _cut_out, _repeat, _move,
    _insert, _append,
]  # fmt: skip
TEXT: list[Mutation] = [_word, _line, _number]
