"""A GPU that is pretended: tensors are tagged as lying there, while their values stay on the CPU.

Inside `PretendGPU` code runs as on a GPU and with real values: `.device` says `DEVICE`, results of tagged
tensors are tagged, an operation that mixes tagged and untagged tensors fails, and whatever would make the
host wait for a GPU is recorded with the place in minillm/ that asked for it.

The tag is an attribute of the storage, so that it lives as long as the memory and views share it.  What asks
for devices or moves between them is caught where Python calls torch (TorchFunctionMode), everything else
where torch calls its kernels (TorchDispatchMode), backward passes and composite functions included.  Stricter
than a GPU in one way: indices on the CPU fail, which torch would send to the GPU, and wait for it, without a
word.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import minillm

DEVICE = torch.device("cuda", 0)
CPU = torch.device("cpu")
PACKAGE = os.path.dirname(minillm.__file__) + os.sep
# Operations that read numbers, or whose result's size depends on them.
READS = (
    "_local_scalar_dense",
    "nonzero",
    "nonzero_static",
    "masked_select",
    "equal",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "repeat_interleave",
)
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")
# Operations that copy from device to device.
COPIES = ("copy_", "_to_copy")
FROM_HOST = ("tensor", "as_tensor", "new_tensor", "asarray")


class MixedDevices(RuntimeError):
    """Tensors of both devices in one operation, or values of the GPU taken as if they were on the CPU."""


class PretendGPU:
    """Inside: a pretended GPU.  `waits` counts them by place ("sampling/sample.py:sample", see `place`)."""

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self._modes = (_Kernels(self), _Calls(self))

    def __enter__(self) -> PretendGPU:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)

    def wait(self) -> None:
        """Record that the host waits, here."""
        self.waits[place()] += 1


def place() -> str:
    """The innermost function of minillm/ that is running, "room/file.py:function", or "elsewhere".

    " (transformers)" follows if it asked transformers, which asked torch.
    """
    frame, via = sys._getframe(1), ""
    while frame:
        name = frame.f_code.co_filename
        if f"{os.sep}transformers{os.sep}" in name:
            via = " (transformers)"
        if name.startswith(PACKAGE):
            function = frame.f_code.co_qualname.split(".<locals>")[0]
            return f"{name.removeprefix(PACKAGE)}:{function}{via}"
        frame = frame.f_back
    return f"elsewhere{via}"


def tagged(values: Tensor) -> bool:
    """Whether a tensor lies on the pretended GPU."""
    try:
        return getattr(values.untyped_storage(), "pretended", False)
    # Tensors inside of torch.vmap have no storage.
    except (RuntimeError, NotImplementedError):
        return tagged(torch._C._functorch.get_unwrapped(values))


def put(values: Tensor, there: bool = True) -> Tensor:
    """Tag a tensor's storage, or remove its tag."""
    values.untyped_storage().pretended = there
    return values


def tensors(values: Any) -> Iterator[Tensor]:
    return (x for x in tree_leaves(values) if isinstance(x, Tensor))


class _Kernels(TorchDispatchMode):
    """Tags what operations make, refuses mixes, records reads."""

    def __init__(self, gpu: PretendGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, function.overloadpacket.__name__
        given = list(tensors((args, kwargs)))
        where = [tagged(x) for x in given]
        if any(where):
            if name in COPIES:
                if not all(where):
                    self.gpu.wait()
            else:
                self._refuse_a_mix(name, args, given, where)
                if name in READS or _by_mask(name, args):
                    self.gpu.wait()
        made = function(*args, **kwargs)
        if any(where) and name not in COPIES:
            known = {id(x) for x in given}
            for x in tensors(made):
                if id(x) not in known:
                    put(x)
        elif name == "_to_copy" and where[0]:
            put(made)
        return made

    @staticmethod
    def _refuse_a_mix(name: str, args: Any, given: list[Tensor], where: list[bool]) -> None:
        # torch takes single numbers from the CPU, but not as indices.
        indices = {id(i) for i in tensors(args[1])} if name in INDEXED else set()
        cpu = [
            tuple(x.shape)
            for x, there in zip(given, where, strict=True)
            if not there and (x.dim() or id(x) in indices)
        ]
        if cpu:
            raise MixedDevices(
                f"{name} at {place()}: tensors of shape {cpu} are on the CPU, others on the GPU"
            )


def _by_mask(name: str, args: Any) -> bool:
    """Whether places of a mask are looked up; a single number goes to a single mask's places without that."""
    if name not in INDEXED:
        return False
    masks = [i for i in args[1] if isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8)]
    number = len(args) > 2 and args[2].numel() == 1 and len([i for i in args[1] if i is not None]) == 1
    return bool(masks) and not number


class _Calls(TorchFunctionMode):
    """Answers which device a tensor is on, and moves between devices."""

    def __init__(self, gpu: PretendGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
        if name == "__get__":
            name = function.__self__.__name__
            if name == "device" and tagged(args[0]):
                return DEVICE
            if name in ("is_cuda", "is_cpu"):
                return tagged(args[0]) == (name == "is_cuda")
        elif name in ("numpy", "__array__") and tagged(args[0]):
            raise MixedDevices(f"{name} at {place()}: a tensor on the GPU")
        elif name == "tolist" and tagged(args[0]):
            self.gpu.wait()
        elif name in ("pin_memory", "is_pinned"):
            return self._pinned(name, args[0])
        elif name in ("to", "cpu", "cuda"):
            return self._moved(name, args, kwargs)
        elif name in FROM_HOST and kwargs.get("device") is not None:
            return self._from_host(function, args, kwargs)
        elif kwargs.get("device") is not None:
            there = _is_gpu(kwargs["device"])
            made = function(*args, **{**kwargs, "device": CPU})
            for x in tensors(made):
                put(x, there)
            return made
        return function(*args, **kwargs)

    def _pinned(self, name: str, values: Tensor) -> Any:
        if name == "is_pinned":
            return getattr(values.untyped_storage(), "pinned", False)
        if tagged(values):
            raise MixedDevices(f"pin_memory at {place()}: a tensor on the GPU")
        copy = values.clone()
        copy.untyped_storage().pinned = True
        return copy

    def _moved(self, name: str, args: Any, kwargs: dict[str, Any]) -> Tensor:
        values, copy = args[0], kwargs.pop("copy", False)
        before = after = tagged(values)
        if name != "to":
            after, dtype, waits = name == "cuda", values.dtype, not kwargs.get("non_blocking", False)
        elif len(args) > 1 and isinstance(args[1], Tensor):
            after, dtype, waits = tagged(args[1]), args[1].dtype, True
        else:
            device, kind, without_waiting, _ = torch._C._nn._parse_to(*args[1:], **kwargs)
            after = before if device is None else _is_gpu(device)
            dtype, waits = kind or values.dtype, not without_waiting
        pinned = getattr(values.untyped_storage(), "pinned", False)
        made: Tensor = values.to(dtype=dtype, copy=copy or before != after)
        if before == after:
            return made
        # To the CPU without waiting would be read before it is there.
        if before or waits or not pinned:
            self.gpu.wait()
        return put(made, after)

    def _from_host(self, function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Tensor:
        there = _is_gpu(kwargs["device"])
        made: Tensor = function(*args, **{**kwargs, "device": CPU})
        source = next(tensors(args[:1]), None)
        if there and not (source is not None and tagged(source)):
            made = made.clone()
            # Nothing is sent for an empty one.
            if made.numel():
                self.gpu.wait()
        return put(made, there)


def _is_gpu(device: Any) -> bool:
    return isinstance(device, int) or torch.device(device).type == "cuda"
