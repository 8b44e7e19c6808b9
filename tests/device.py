"""A GPU that is not there: what a tensor's device would be is kept beside its storage, and what a real one refuses is refused.

Numbers are computed on the CPU as ever. Under `PretendGPU`, `.to("cuda")` copies and notes the new storage, `.device` tells it, an operation of PyTorch
that mixes noted and other tensors raises as CUDA's does, and NumPy refuses noted ones. So a tensor that was left on the CPU, or never brought back, is
found without a GPU. Kernels, streams, pinned memory and speed are not pretended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mixsup.engine.options import start_fabric

GPU = torch.device("cuda", 0)
_TENSOR: Any = torch.Tensor
_MIXES = {"copy_", "_to_copy", "_local_scalar_dense", "item"}
_JOINS = {"cat", "stack"}  # take no numbers from the CPU
_INDEXES = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}  # the indices may be on the CPU


class Places:
    """Which storages are on the GPU. A weak reference keeps a storage's address from being used again."""

    def __init__(self) -> None:
        self._noted: dict[int, StorageWeakRef] = {}

    def put(self, value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        self._noted[storage._cdata] = StorageWeakRef(storage)
        return value

    def on_gpu(self, value: Tensor) -> bool:
        found = self._noted.get(value.untyped_storage()._cdata)
        return found is not None and not found.expired()


class _Checks(TorchDispatchMode):
    """Below autograd: who meets whom, backward passes included."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.places, self.moving = places, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if self.moving:
            return func(*args, **kwargs)
        met = (args[:1], args[2:3]) if name in _INDEXES else (args, kwargs)  # and what is assigned
        tensors = [value for value in tree_leaves(met) if isinstance(value, Tensor)]
        on_gpu = [self.places.on_gpu(value) for value in tensors]
        if name in _INDEXES and not on_gpu[0]:
            others = [value for value in tree_leaves((args[1:], kwargs)) if isinstance(value, Tensor)]
            if any(map(self.places.on_gpu, others)):
                raise RuntimeError(f"{func}: indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        if (
            name not in _MIXES
            and any(on_gpu)
            and any(not there and (value.ndim or name in _JOINS) for value, there in zip(tensors, on_gpu, strict=True))
        ):
            shapes = [(tuple(value.shape), "cuda" if there else "cpu") for value, there in zip(tensors, on_gpu, strict=True)]
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, but got {shapes}")
        found = func(*args, **kwargs)
        if any(on_gpu) and name != "copy_":
            for value in tree_leaves(found):
                if isinstance(value, Tensor):
                    self.places.put(value)
        return found


class PretendGPU(TorchFunctionMode):
    """See the module. Enter it around what is to run on the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.places = Places()
        self._checks = _Checks(self.places)

    def __enter__(self) -> PretendGPU:
        self._checks.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *fault: Any) -> None:
        super().__exit__(*fault)
        self._checks.__exit__(*fault)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == _TENSOR.device.__get__:
            return GPU if self.places.on_gpu(args[0]) else func(*args)
        if func == _TENSOR.is_cuda.__get__:
            return self.places.on_gpu(args[0])
        if func == _TENSOR.is_cpu.__get__:
            return not self.places.on_gpu(args[0])
        if func in (_TENSOR.numpy, _TENSOR.__array__) and self.places.on_gpu(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")
        if func is _TENSOR.cpu:
            return self._move(args[0], torch.device("cpu"), lambda value: value)
        if func is _TENSOR.cuda:
            return self._move(args[0], GPU, lambda value: value)
        if func is _TENSOR.to:
            return self._to(args, kwargs)
        if func is _TENSOR.new_tensor and kwargs.get("device") is None:
            kwargs["device"] = GPU if self.places.on_gpu(args[0]) else "cpu"
        device = kwargs.get("device")
        if device is None or torch.device(device).type == "meta":
            return func(*args, **kwargs)
        # A factory, told where.
        there = torch.device(device).type == "cuda"
        kwargs["device"] = "cpu"
        data = next((value for value in tree_leaves(args) if isinstance(value, Tensor)), None)
        self._checks.moving = True
        try:
            found = func(*args, **kwargs)
            if data is not None and there != self.places.on_gpu(data) and found.untyped_storage()._cdata == data.untyped_storage()._cdata:
                found = found.clone()
        finally:
            self._checks.moving = False
        return self.places.put(found) if there else found

    def _to(self, args: Any, kwargs: dict[str, Any]) -> Tensor:
        value, *rest = args
        if rest and isinstance(rest[0], Tensor):
            rest[:1] = [GPU if self.places.on_gpu(rest[0]) else rest[0].device, rest[0].dtype]
        if rest and isinstance(rest[0], (str, torch.device, int)):
            kwargs["device"] = rest.pop(0)
        names = ("dtype", "non_blocking", "copy")
        kwargs |= {name: given for name, given in zip(names, rest, strict=False) if given is not None}
        target = kwargs.pop("device", None)
        if target is None:
            return _TENSOR.to(value, **kwargs)
        return self._move(value, torch.device(target), lambda moved: _TENSOR.to(moved, **kwargs))

    def _move(self, value: Tensor, target: torch.device, then: Callable[[Tensor], Tensor]) -> Tensor:
        there = target.type == "cuda"
        if there == self.places.on_gpu(value):
            return then(value)
        self._checks.moving = True
        try:
            found = then(value.clone())
        finally:
            self._checks.moving = False
        return self.places.put(found) if there else found


@contextmanager
def gpu() -> Iterator[PretendGPU]:
    """Runs start on a GPU that is pretended: `Options(accelerator="cpu")` in it means this one."""

    def start(given: Any) -> Any:
        fabric = start_fabric(given)
        fabric.strategy._root_device = GPU  # SingleDeviceStrategy's
        fabric._accelerator.setup_device = lambda device: None
        return fabric

    with (
        mock.patch("mixsup.engine.prepare.start_fabric", start),
        mock.patch("torch.cuda.get_device_name", lambda *_: "pretended"),
        PretendGPU() as mode,
    ):
        yield mode
