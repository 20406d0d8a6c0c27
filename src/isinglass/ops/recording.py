"""Work on buffers of fixed shapes that a GPU is given as one launch (a CUDA graph), of few shapes for all sizes.

A layer of a matcher is some fifty kernels of a few microseconds, each of which costs the host as much to launch.
Elsewhere than on CUDA the same functions are called as they are, which is how they are tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

LEAST = 256  # of a bucket


class Recorded:
    """`act()` at the first call, which chooses kernels; recorded at the second, played back from then on.

    It must work on the same tensors each time and must not make the host wait. What it allocates is gone afterwards.
    """

    def __init__(self, act: Callable[[], None], device: torch.device) -> None:
        self.act, self.device = act, device
        self.calls, self.graph = 0, None

    def __call__(self) -> None:
        """Returns as soon as the device knows what to do."""
        self.calls += 1
        if self.device.type != "cuda" or self.calls == 1:
            self.act()
            return
        if self.graph is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=_pool(self.device), capture_error_mode="thread_local"):
                self.act()
            self.graph = graph
        self.graph.replay()


class Later:
    """A number on the device that the host will read once it is there, without waiting for what comes after it."""

    def __init__(self, value: Tensor) -> None:
        if value.device.type == "cuda":
            self.value = torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()
        else:
            self.value, self.event = value.clone(), None

    def read(self) -> int:
        """Wait for it alone."""
        if self.event is not None:
            self.event.synchronize()
        return int(self.value)


def bucket_of(count: int, least: int = LEAST) -> int:
    """The least of `least`, 1.5 `least`, 2 `least`, 3 `least`, 4 `least`, ... that is not below `count`."""
    size = least
    while size < count:
        size *= 2
    return size * 3 // 4 if size > least and count <= size * 3 // 4 else size


def alike(lengths: Sequence[tuple[int, int]], most_tokens: int, most_numbers: int) -> Iterator[list[int]]:
    """Which pairs to take at once: of like size, as their matrices are padded to the longest view among them.

    At most `most_tokens` together, and `most_numbers` in all the matrices; a larger pair comes alone.
    """
    chunk, total = [], 0
    for i in sorted(range(len(lengths)), key=lambda i: max(lengths[i])):
        longest = max(lengths[i])  # the longest so far, as they are sorted
        if chunk and (total + sum(lengths[i]) > most_tokens or (len(chunk) + 1) * longest**2 > most_numbers):
            yield chunk
            chunk, total = [], 0
        chunk.append(i)
        total += sum(lengths[i])
    if chunk:
        yield chunk


_POOLS: dict[torch.device, Any] = {}


def _pool(device: torch.device) -> Any:
    """The memory that all recordings of a device share: none needs what it allocated once it is through."""
    if device not in _POOLS:
        _POOLS[device] = torch.cuda.graph_pool_handle()
    return _POOLS[device]
