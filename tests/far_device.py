"""Tensors of a pretended device, which compute, and refuse to be combined with those of the CPU as a GPU's do."""
from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device('privateuseone', 0)
_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class FarTensor(torch.Tensor):
    """A tensor that says it is on ``DEVICE``; its values are those of ``near``, on the CPU.

    As on a GPU, an operation takes tensors of the CPU beside it only if they are scalars and it works element by element.
    """

    near: torch.Tensor

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> FarTensor:
        far = torch.Tensor._make_wrapper_subclass(cls, near.shape, dtype=near.dtype, device=DEVICE, strides=near.stride())
        far.near = near
        return far

    def tolist(self) -> Any:
        """torch has none for tensors like this one."""
        return self.near.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        strangers = [tensor for tensor in tensors if not isinstance(tensor, cls)]
        lists = any(isinstance(argument, list | tuple) and argument and isinstance(argument[0], torch.Tensor)
                    for argument in args)
        if func not in _COPIES and strangers and (lists or any(tensor.ndim for tensor in strangers)):
            raise RuntimeError(f'Expected all tensors to be on the same device, in {func}')
        target = kwargs.pop('device', DEVICE)
        near_args, near_kwargs = tree_map_only(cls, lambda far: far.near, (args, kwargs))
        result = func(*near_args, **near_kwargs)
        return tree_map_only(torch.Tensor, cls, result) if torch.device(target) != torch.device('cpu') else result
