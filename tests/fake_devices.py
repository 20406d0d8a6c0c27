"""Pretended devices: run code on "mps" or "cuda" tensors, with the restrictions of those devices, on a CPU.

    from fake_devices import pretend

    with pretend("mps"):
        model = LightGlue(config).to("mps")          # or device="mps", or best_device()
        loss = model(*(x.to("mps") for x in batch))  # backward and optimizers work, too
    assert str(loss.device) == "mps:0"

Inside, `torch.cuda.is_available()` or `torch.backends.mps.is_available()` is true, tensors that are made on or moved to
the device are `DeviceTensor`s that carry their values, and every operation on them raises what the device would raise:

- values of two devices in one operation (0-d CPU tensors are allowed, as on real devices), CPU indices included
- `.numpy()` and NumPy functions without `.cpu()`
- an operation without a kernel for the device, by the table of kernels that torch itself is built from
- float64 of any kind: MPS has none, and this library makes none on other devices either
- mps: complex numbers, whose support depends on the version of macOS
- pinned memory of anything but CPU tensors

Modes of torch belong to a thread: work on the device must happen in the thread that entered `pretend`. One torch thread
is in use inside, so that matchers stay in it. Leave the context before values are compared: `x.cpu()` first.
"""

from __future__ import annotations

import contextlib
import functools
import re
from pathlib import Path
from unittest import mock

import torch
import torchgen
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

META = torch.device("meta")  # what C++ believes a pretended device to be: autograd runs there, and nothing else does
DEVICES = ("mps", "cuda")
MADE_OF_DATA = {torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor, torch.scalar_tensor}
# Kernels that the oldest supported torch lacks on MPS, although the installed one may have them.
NEW_ON_MPS = {"_embedding_bag", "_embedding_bag_forward_only"}
# Kernels that are registered elsewhere than in the table, or by a fallback that works on every device.
EVERYWHERE = {"_local_scalar_dense", "_to_copy", "copy_", "set_", "resize_", "detach", "alias", "lift_fresh"}


class DeviceError(RuntimeError):
    """What a real device would have refused."""


class DeviceTensor(torch.Tensor):
    """A tensor that says it is on the pretended device; `held` holds its values on the CPU."""

    @staticmethod
    def __new__(cls, held, device, is_inference=False):
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        with torch.inference_mode(is_inference):
            wrapper = torch.Tensor._make_wrapper_subclass(cls, held.size(), device=META, **layout)
        wrapper.held, wrapper.place = held, device
        return wrapper

    def __init__(self, held, device, is_inference=False):
        pass

    @property
    def device(self):
        return self.place

    @property
    def is_meta(self):
        return False

    @property
    def is_cpu(self):
        return False

    @property
    def is_cuda(self):
        return self.place.type == "cuda"

    @property
    def is_mps(self):
        return self.place.type == "mps"

    def __repr__(self, **_):
        return f"{self.place}: {self.held!r}"

    def __deepcopy__(self, memo):
        copied = DeviceTensor(self.held.clone(), self.place).requires_grad_(self.requires_grad)
        copied._is_param = getattr(self, "_is_param", False)
        if self.grad is not None:
            copied.grad = self.grad.detach().clone()
        memo[id(self)] = copied
        return copied

    def numpy(self, **_):
        raise TypeError(f"can't convert {self.place} device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *_, **__):
        return self.numpy()

    def tolist(self):
        return self.held.tolist()

    def data_ptr(self):
        return self.held.data_ptr()

    def pin_memory(self, *_):
        raise DeviceError(f"cannot pin {self.place} memory: only dense CPU tensors can be pinned")

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if is_composite(func):  # under inference mode these come whole
            return func.decompose(*args, **kwargs)
        return run_on_device(func, args, kwargs, None)


def is_composite(func):
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def run_on_device(func, args, kwargs, asked):
    """An operation on real values, if the device could do it; `asked` is the device that factories make tensors on."""
    leaves, shape = tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    here = [leaf for leaf in tensors if isinstance(leaf, DeviceTensor)]
    wanted = kwargs.get("device")
    on_meta = wanted is not None and torch.device(wanted).type in ("meta", *DEVICES)
    if not here and not on_meta:
        return func(*args, **kwargs)
    name = func._schema.name.partition("::")[2]
    device = here[0].place if here else asked
    if device is None:
        raise DeviceError(f"{func} makes a tensor on a device outside of `pretend`")
    leaves_cpu = wanted is not None and not on_meta
    if name not in ("_to_copy", "copy_", "_copy_from"):
        check_devices(func, tensors, here, device)
        check_kernel(func, device)
    real_leaves = [leaf.held if isinstance(leaf, DeviceTensor) else leaf for leaf in leaves]
    real_args, real_kwargs = tree_unflatten(real_leaves, shape)
    if on_meta:
        real_kwargs["device"] = torch.device("cpu")
    if name == "_to_copy":
        real_kwargs.pop("non_blocking", None)
    if real_kwargs.get("pin_memory"):
        raise DeviceError(f"cannot pin {device} memory")
    with torch.inference_mode(False), torch.no_grad():
        found = func(*real_args, **real_kwargs)
    if leaves_cpu:
        return found
    given = {id(leaf.held if isinstance(leaf, DeviceTensor) else leaf): leaf for leaf in tensors}
    return tree_map(functools.partial(wrapped, func, device, given), found)


def wrapped(func, device, given, value):
    if not isinstance(value, torch.Tensor):
        return value
    if id(value) in given:  # it was changed in place
        wrapper = given[id(value)]
        assert wrapper.shape == value.shape, f"{func} changed the shape of a tensor in place"
        return wrapper
    if value.dtype in (torch.float64, torch.complex128):
        raise TypeError(f"{func} made {value.dtype} on {device}: MPS cannot, and this library never does")
    if device.type == "mps" and value.is_complex():
        raise TypeError(f"complex numbers are not supported on all versions of MPS ({func})")
    is_view = any(one.alias_info and not one.alias_info.is_write for one in func._schema.returns)
    inference = all(one.is_inference() for one in given.values()) if is_view else torch.is_inference_mode_enabled()
    return DeviceTensor(value, device, inference)


def check_devices(func, tensors, here, device):
    for tensor in tensors:
        if not isinstance(tensor, DeviceTensor) and (tensor.ndim or tensor.dtype == torch.float64):
            raise DeviceError(
                f"Expected all tensors to be on the same device, but found {device} and cpu ({func}, "
                f"{[tuple(one.shape) for one in tensors]})"
            )
    if any(one.place != device for one in here):
        raise DeviceError(f"Expected all tensors to be on the same device, but found several ({func})")


def check_kernel(func, device):
    namespace, _, name = func._schema.name.partition("::")
    overload = func._schema.overload_name
    if namespace == "mkldnn" or name.startswith("mkldnn"):
        raise NotImplementedError(f"{func} is for CPUs; these tensors are on {device}")
    if namespace not in ("aten", "prims"):
        return
    if device.type == "mps" and name in NEW_ON_MPS:
        raise NotImplementedError(f"The operator {func} is not implemented for MPS in the oldest supported torch")
    full = f"{name}.{overload}" if overload else name
    if name not in EVERYWHERE and full in kernels() and device.type not in kernels()[full]:
        raise NotImplementedError(f"The operator {func} is not implemented for the {device.type} device")


@functools.cache
def kernels():
    """For each operation of torch that has kernels by device, which of DEVICES have one."""
    table = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    found, delegates = {}, {}
    for block in re.split(r"^- func: ", table.read_text(), flags=re.MULTILINE)[1:]:
        name = re.match(r"[\w.]+", block)[0]
        if delegate := re.search(r"^  structured_delegate: (\S+)", block, re.MULTILINE):
            delegates[name] = delegate[1]
        if dispatch := re.search(r"^  dispatch:\n((?:    .*\n?)+)", block, re.MULTILINE):
            keys = {
                key for line in re.findall(r"^    ([\w, ]+):", dispatch[1], re.MULTILINE) for key in line.split(", ")
            }
            if any(key.startswith("Composite") for key in keys):
                continue
            found[name] = {device for device in DEVICES if device.upper() in keys}
            found[name] |= {"cuda"} if "ufunc_inner_loop" in block else set()
    for name, delegate in delegates.items():
        found[name] = found.get(name, set()) | found.get(delegate, set(DEVICES))
    return found


class _Operations(TorchDispatchMode):
    """Sees what has no tensor of the device among its arguments: factories, and copies to the device."""

    def __init__(self, device):
        super().__init__()
        self.place = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        return run_on_device(func, args, kwargs, self.place)


class _Calls(TorchFunctionMode):
    """Translates the name of the device in calls of torch, before torch looks for it in this build."""

    def __init__(self, device):
        super().__init__()
        self.place = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in MADE_OF_DATA and (func is torch.Tensor.new_tensor or "device" in kwargs):
            wanted = kwargs.pop("device", None)
            if func is torch.Tensor.new_tensor:
                like, *args = args
                wanted, kwargs["dtype"], func = wanted or like.device, kwargs.get("dtype") or like.dtype, torch.tensor
            if args and isinstance(args[0], DeviceTensor):
                return args[0].to(wanted, kwargs.get("dtype"))
            return func(*args, **kwargs).to(self._translated(wanted))
        if func is torch.Tensor.pin_memory and not isinstance(args[0], DeviceTensor):
            return args[0]
        if func is torch.Tensor.cuda:
            return args[0].to(self._translated("cuda"))
        if func in (torch.Tensor.to, torch.Tensor.type):
            args = tuple(self._translated(arg) for arg in args)
        if "device" in kwargs:
            kwargs["device"] = self._translated(kwargs["device"])
        return func(*args, **kwargs)

    def _translated(self, device):
        if not isinstance(device, str | torch.device):
            return device
        device = torch.device(device)
        if device.type in ("cpu", "meta"):  # C++ that groups tensors by device gives the latter back
            return device
        if device.type != self.place.type or (device.index or 0) != self.place.index:
            raise DeviceError(f"there is no device {device}; {self.place} is pretended")
        return META


def _plain_type(value):
    return torch.Tensor if type(value) is DeviceTensor else type(value)


@contextlib.contextmanager
def pretend(name):
    """Within, there is one device `name`, "mps" or "cuda", beside the CPU; gives its `torch.device`."""
    device, threads = torch.device(name, 0), torch.get_num_threads()
    patches = {
        "torch.cuda.is_available": name == "cuda",
        "torch.cuda.device_count": int(name == "cuda"),
        "torch.cuda.current_device": 0,
        "torch.cuda.synchronize": None,
        "torch.cuda._lazy_init": None,
        "torch.mps.synchronize": None,
        "torch.backends.mps.is_available": name == "mps",
    }
    with contextlib.ExitStack() as stack:
        for target, answer in patches.items():
            stack.enter_context(mock.patch(target, lambda *_, _answer=answer, **__: _answer))
        # a real device's tensors are plain ones, so the check for unmodified networks must take these for such
        stack.enter_context(mock.patch("isinglass.runtime.anatomy.type", _plain_type, create=True))
        torch.set_num_threads(1)
        stack.callback(torch.set_num_threads, threads)
        stack.enter_context(_Operations(device))
        stack.enter_context(_Calls(device))
        yield device
