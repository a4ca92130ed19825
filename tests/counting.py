"""Counts what a step does, on any device: operations, casts of weights, copies to the device, waits for values."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

_VIEWS = ('view', '_unsafe_view', 'alias', 'detach', 'expand', 'slice', 'select', 'as_strided', 'split', 'permute', 't',
          'transpose', 'unsqueeze', 'squeeze', 'narrow', '_reshape_alias', 'empty', 'empty_like', 'new_empty', 'unbind')


class Count(TorchDispatchMode):
    """Counts operations inside, but for those that launch nothing.

    Args:
        nets: whose parameters are told apart in ``weight_casts``.

    Attributes:
        by_name: operations by name, as ``convolution``.
        weight_casts: how often a parameter was cast to another dtype.
    """

    def __init__(self, *nets: nn.Module) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()
        self.weight_casts = 0
        self._weights = {parameter.data_ptr() for net in nets for parameter in net.parameters()}

    @property
    def total(self) -> int:
        """Of all operations."""
        return sum(self.by_name.values())

    def __torch_dispatch__(self, func: Any, types: Iterable[type], args: tuple = (), kwargs: Any = None) -> Any:
        """Count an operation and run it."""
        name = func.overloadpacket.__name__
        if name not in _VIEWS:
            self.by_name[name] += 1
        if self._weights and name == '_to_copy' and (kwargs or {}).get('dtype') not in (None, args[0].dtype):
            self.weight_casts += args[0].data_ptr() in self._weights
        return func(*args, **(kwargs or {}))


@contextmanager
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the methods by which the host asks tensors for values inside; on a GPU it waits at each of them."""
    found: list[str] = []
    with monkeypatch.context() as patched:
        for name in ('item', 'tolist', 'numpy', '__bool__', '__float__', '__int__'):
            read = getattr(torch.Tensor, name)

            def counted(self: torch.Tensor, *args: Any, name: str = name, read: Any = read) -> Any:
                found.append(name)
                return read(self, *args)

            patched.setattr(torch.Tensor, name, counted)
        yield found
