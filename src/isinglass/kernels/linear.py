"""Linear layers for inference: weights laid out once, for the kernel that is fastest on the processor.

On CPUs torch multiplies float32 matrices with MKL, which on some (AMD's) uses half of the vector width, and lays the
weights of bfloat16 layers out anew at each call. oneDNN, which torch carries for its compiler, does neither. Where it
is missing, and on other devices, `Affine` is torch's own linear layer.
"""

from __future__ import annotations

import functools
import time
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isinglass.errors import InputError
from isinglass.kernels.threads import on_one_thread

SLOW = 1.1  # times as long as in float32, from which on bfloat16 is warned of
ROWS = 64  # a product of another shape costs oneDNN milliseconds at first: rows come in multiples of this


class Affine:
    """y = x W^T + b of rows x (T, C), or relu of it; `weight` (D, C) and `bias` (D,) are copied.

    The dtype and the device of inputs must be those of the weight. No gradients flow.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> None:
        self.is_packed = weight.device.type == "cpu" and has_onednn()
        weight = weight.detach().contiguous()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, 8 * ROWS) if self.is_packed else weight.clone()
        self.bias = None if bias is None else bias.detach().clone()
        self.relu = relu

    def __call__(self, x_TC: Tensor) -> Tensor:
        """(T, D)."""
        if self.is_packed:
            attribute = "relu" if self.relu else "none"
            return torch.ops.mkldnn._linear_pointwise(x_TC, self.weight, self.bias, attribute, [], "")
        y_TD = F.linear(x_TC, self.weight, self.bias)
        return y_TD.relu_() if self.relu else y_TD

    def plus(self, x_TC: Tensor, other_TD: Tensor) -> Tensor:
        """(T, D): y + other, in one pass; without relu."""
        if self.is_packed:
            return torch.ops.mkldnn._linear_pointwise.binary(x_TC, other_TD, self.weight, self.bias, "add")
        return F.linear(x_TC, self.weight, self.bias).add_(other_TD)


def rows_product(x_MC: Tensor, y_NC: Tensor) -> Tensor:
    """(M, N) = x y^T of two matrices of any device, by the same kernel as `Affine` where there is one."""
    if x_MC.device.type == "cpu" and has_onednn():
        return torch.ops.mkldnn._linear_pointwise(x_MC, y_NC, None, "none", [], "")
    return x_MC @ y_NC.mT


def linear(x_TC: Tensor, layer: nn.Linear) -> Tensor:
    """(T, D): the layer once, by the same kernel, without laying out its weights."""
    y_TD = rows_product(padded_rows(x_TC), layer.weight)[: len(x_TC)]
    return y_TD if layer.bias is None else y_TD.add_(layer.bias)


def padded(count: int) -> int:
    """The next multiple of ROWS."""
    return -(-count // ROWS) * ROWS


def padded_rows(x: Tensor) -> Tensor:
    """x (..., T, C) with rows of 0 added, up to a multiple of ROWS."""
    missing = -x.shape[-2] % ROWS
    return F.pad(x, (0, 0, 0, missing)) if missing else x  # a pad of nothing would copy


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What layers compute in: of "auto", float16 on CUDA, bfloat16 on CPUs with matrix units (AMX), else float32.

    Flash attention is for halves alone, of which float16 changes fewer matches. AVX512's bfloat16 instructions alone
    bring a quarter, which is not worth other matches. Raises InputError where the device cannot do it.
    """
    if precision == "auto" and device.type == "cuda":
        return torch.float16
    if precision == "auto":
        return torch.bfloat16 if device.type == "cpu" and has_amx() and has_onednn() else torch.float32
    if precision == "float16" and device.type == "cpu":
        raise InputError("precision is 'float16', which CPUs are slow in; use 'bfloat16', or 'auto'")
    if precision == "bfloat16" and device.type == "cpu":
        _warn_where_slow()
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def bfloat16_ratio() -> float:
    """Return how many times as long as in float32 a product of a matcher's size takes in bfloat16 on this CPU.

    Measured in some 20 ms: on one thread, by the processor's own time, so that other work on the machine counts little.
    """
    return on_one_thread(_measured_ratio)


def _measured_ratio() -> float:
    layers = {}
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            x, weight = (torch.ones(rows, 256, dtype=dtype, device="cpu") for rows in (4 * ROWS, 256))
            layers[dtype] = Affine(weight), x
            layers[dtype][0](x)  # oneDNN compiles at the first call
        spent: dict[torch.dtype, list[float]] = {dtype: [] for dtype in layers}
        for _ in range(5):  # in turn, so that what else the machine does slows both
            for dtype, (layer, x) in layers.items():
                start = time.thread_time()
                layer(x)
                spent[dtype].append(time.thread_time() - start)
    return min(spent[torch.bfloat16]) / min(spent[torch.float32])


@functools.cache
def _warn_where_slow() -> None:
    """Warn, once in a process, where bfloat16 takes longer than float32."""
    ratio = bfloat16_ratio()
    if ratio > SLOW:
        warnings.warn(
            f"precision is 'bfloat16', which takes {ratio:.1f} times as long as float32 on this processor (measured "
            "just now); use 'auto' or 'float32'",
            stacklevel=3,
        )


def has_amx() -> bool:
    """Whether the CPU has tiles for products of bfloat16."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


@functools.cache
def has_onednn() -> bool:
    """Whether torch can run a linear layer of float32 and of bfloat16 by oneDNN, tried once."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        with torch.inference_mode():
            for dtype in (torch.float32, torch.bfloat16):
                x, weight = torch.ones(2, 64, dtype=dtype), torch.ones(64, 64, dtype=dtype)
                packed = torch.ops.mkldnn._reorder_linear_weight(weight, 2)
                y = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
                y = torch.ops.mkldnn._linear_pointwise.binary(x, y, packed, None, "add")
                if not bool((y == 128).all()):
                    return False
    except (AttributeError, RuntimeError, TypeError):  # not in this build of torch, or with another signature
        return False
    return True
