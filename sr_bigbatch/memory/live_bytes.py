"""Counts the bytes of live tensors and the operations on them, real or fake, on any device."""
from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_BLOCK = 512  # the CUDA allocator hands out multiples of this


class LiveBytes(TorchDispatchMode):
    """Inside this mode every new tensor storage is counted until it dies.

    Args:
        before: tensors that live already: parameters, buffers, the batch.

    Attributes:
        now: bytes that are alive.
        peak: most bytes that were alive at once, per phase; see :meth:`phase`.
    """

    def __init__(self, before: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now, self.peak = 0, {'': 0}
        self._phase, self._known = '', set[int]()
        for tensor in before:
            self._count(tensor)

    def phase(self, name: str) -> None:
        """Count the peak of what follows under ``name``."""
        self._phase = name
        self.peak[name] = max(self.peak.get(name, 0), self.now)

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace != 'prim':  # type: ignore[attr-defined]
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = -(-storage.nbytes() // _BLOCK) * _BLOCK
        self._known.add(key)
        self.now += size
        self.peak[self._phase] = max(self.peak[self._phase], self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class Flops(TorchDispatchMode):
    """Inside this mode the floating-point operations of convolutions and matrix products are added up in ``total``.

    torch's ``FlopCounterMode`` counts by module, too, and for that hooks into backward passes in a way that forbids
    ``autograd.grad``.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        count = flop_registry.get(func.overloadpacket)  # type: ignore[attr-defined]
        if count is not None:
            self.total += count(*args, **kwargs, out_val=result)
        return result


def tensors_of(*modules: torch.nn.Module | None) -> list[Tensor]:
    """Parameters and buffers of the modules that are not None."""
    return [tensor for module in modules if module is not None for tensor in (*module.parameters(), *module.buffers())]


def peak_of(run: Callable[[], object], device: torch.device, before: Iterable[Tensor]) -> int:
    """Most bytes of tensors that lived at once during ``run()``: the allocator's count on a GPU, ours elsewhere.

    On a GPU it is that of a second run: in the first one cuDNN tries all its ways, also those with workspaces of gigabytes.

    Args:
        run: what is measured; it may be called twice.
        device: where.
        before: tensors that live already.
    """
    if device.type == 'cuda':
        run()
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return int(torch.cuda.max_memory_allocated(device))
    with LiveBytes(before) as live:
        run()
    return int(max(live.peak.values()))
