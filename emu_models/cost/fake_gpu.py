"""A GPU that is not there: real code runs on CUDA tensors without data, and its memory is counted.

Only forward passes can run: the engine of backward passes asks the driver for its devices. So what a backward pass adds
to what the forward pass has left is not measured (a few tensors of one layer), nor is the optimiser's own workspace;
`emu plan` reserves a tenth of the memory for both.
"""

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary

ROUNDING = 512  # bytes; CUDA's allocator gives multiples of it (PyTorch, CUDACachingAllocator)


@contextlib.contextmanager
def pretend_gpu() -> Iterator[None]:
    """Have tensors on CUDA hold no data, and bf16 autocast work on them, which otherwise turns itself off without a
    GPU."""
    believed = {
        "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
        "torch.cuda.is_bf16_supported": lambda *_, **__: True,
        "torch.nn.functional.scaled_dot_product_attention": _fused_attention,
    }
    with contextlib.ExitStack() as stack:
        for name, answer in believed.items():
            stack.enter_context(mock.patch(name, answer))
        stack.enter_context(FakeTensorMode())
        yield


def _fused_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any):
    """Attend by CUDA's memory-efficient kernel, which does not keep a matrix of positions by positions. Tensors without
    data would use the plain one, since the choice depends on the GPU."""
    if torch.is_autocast_enabled("cuda"):
        query, key, value = (x.to(torch.get_autocast_dtype("cuda")) for x in (query, key, value))
    bias = None if attn_mask is None else attn_mask.to(query.dtype).expand(*query.shape[:3], key.shape[2])
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    return kernel(query, key, value, bias, torch.is_grad_enabled())[0]


class MemoryCounter(TorchDispatchMode):
    """Counts the bytes of the GPU's tensors that live while it is on: `now`, and the highest so far, `peak`.

    torch's own MemTracker does the same per module, but refuses a module that is called twice in a step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = WeakIdKeyDictionary()

    def add(self, *found: Tensor | nn.Module) -> None:
        """Count tensors, and those of modules, that were made before."""
        for one in found:
            tensors = [*one.parameters(), *one.buffers()] if isinstance(one, nn.Module) else [one]
            for tensor in tensors:
                self._add(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._add(tensor)
        return result

    def _add(self, tensor: Tensor) -> None:
        if tensor.device.type != "cuda":
            return
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        size = -(-storage.nbytes() // ROUNDING) * ROUNDING
        self._seen[storage] = size
        weakref.finalize(storage, self._release, size).atexit = False
        self.now += size
        self.peak = max(self.peak, self.now)

    def _release(self, size: int) -> None:
        self.now -= size
