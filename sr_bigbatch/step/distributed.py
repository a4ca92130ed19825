"""The few collective operations of a step; every function is the identity in a single process."""
from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Number of processes that share the effective batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process among those that share the effective batch."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather_batch(values: Tensor) -> Tensor:
    """Concatenate ``values`` (M, ...) of every process, in the order of their ranks, to (M * world, ...)."""
    if world_size() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def sum_in_place(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes, in one message per dtype."""
    if world_size() == 1:
        return
    for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
        group = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in group])
        dist.all_reduce(flat)
        for tensor, summed in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
            tensor.detach().copy_(summed.view_as(tensor))


def worst(code: int, device: torch.device) -> int:
    """The largest ``code`` of all processes: what has happened to one of them concerns all."""
    if world_size() == 1:
        return code
    codes = torch.tensor([code], device=device)
    dist.all_reduce(codes, dist.ReduceOp.MAX)
    return int(codes.item())


def same_everywhere(net: nn.Module) -> None:
    """Give every process the parameters and buffers of rank 0."""
    if world_size() == 1:
        return
    for tensor in (*net.parameters(), *net.buffers()):
        dist.broadcast(tensor.detach(), 0)
