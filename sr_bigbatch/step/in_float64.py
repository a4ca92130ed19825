"""Computes in float64 what was written for float32, so that rounding does not hide what a comparison looks for."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_NARROW = (torch.float32, torch.float16, torch.bfloat16)


class InFloat64(TorchDispatchMode):
    """Leaves float64 as it is where code casts it to a narrower type, and widens what meets it where types must be equal.

    Attributes:
        has_acted: whether there was anything to do.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.has_acted = False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        """Run an operation."""
        kwargs = dict(kwargs or {})
        dtypes = {leaf.dtype for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        if torch.float64 not in dtypes:
            return func(*args, **kwargs)
        if kwargs.get('dtype') in _NARROW:
            kwargs['dtype'], self.has_acted = torch.float64, True
        if not dtypes.intersection(_NARROW):
            return func(*args, **kwargs)
        self.has_acted = True
        try:
            return func(*args, **kwargs)
        except RuntimeError:  # types that must be equal: convolutions, matrix products
            changed = args[:1] if func._schema.is_mutable else ()
            target = changed[0].dtype if changed else torch.float64
            others = tree_map(lambda leaf: _cast(leaf, target), (args[len(changed):], kwargs))
            return func(*changed, *others[0], **others[1])


def _cast(leaf: Any, dtype: torch.dtype) -> Any:
    return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
