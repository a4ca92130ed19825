"""The few collective operations of a step; every function is the identity in a single process."""
from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_FOREVER = timedelta(days=365)  # a process that ends is noticed at once, whatever the limit
_alone = False
_hosts: weakref.WeakKeyDictionary[object, Callable[[], dist.ProcessGroup | None]] = weakref.WeakKeyDictionary()


@contextmanager
def alone() -> Iterator[None]:
    """Inside this context a process acts as if it were the only one: what it does concerns its own data alone."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def _has_others() -> bool:
    return not _alone and dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Number of processes that share the effective batch."""
    return dist.get_world_size() if _has_others() else 1


def rank() -> int:
    """Index of this process among those that share the effective batch."""
    return dist.get_rank() if _has_others() else 0


def _group_of_hosts() -> dist.ProcessGroup | None:
    """A group in which processes exchange numbers without their GPUs, and wait for each other without a limit.

    In the group of the GPUs every vote would wait for all work that was given to them, and a process that keeps the others
    waiting for ten minutes, as one that validates may, would end the run. All processes call this for the first time at the
    same point. None where torch has no gloo.
    """
    world = dist.group.WORLD
    group = _hosts.get(world, lambda: None)()
    if group is None and dist.is_gloo_available():
        group = dist.new_group(backend='gloo', timeout=_FOREVER)
        _hosts[world] = weakref.ref(group)  # torch keeps it as long as its default group
    return group


def _on_hosts(values: Sequence[int], operation: dist.ReduceOp.RedOpType, device: torch.device) -> list[int]:
    """``values`` reduced over all processes; by way of ``device`` where that cannot be avoided."""
    group = _group_of_hosts()
    numbers = torch.tensor(values, dtype=torch.int64, device=device if group is None else 'cpu')
    dist.all_reduce(numbers, operation, group=group)
    return [int(number) for number in numbers.tolist()]


def batch_sizes(count: int) -> list[int]:
    """The samples of every process, in the order of their ranks, given the ``count`` of this one."""
    if world_size() == 1:
        return [count]
    counts = [0] * world_size()
    counts[rank()] = count
    return _on_hosts(counts, dist.ReduceOp.SUM, _device_of_messages())


def _device_of_messages() -> torch.device:
    return torch.device('cuda', torch.cuda.current_device()) if dist.get_backend() == 'nccl' else torch.device('cpu')


def my_samples(sizes: Sequence[int]) -> slice:
    """Where the samples of this process are in a gathered batch.

    Args:
        sizes: the samples of every process, as :func:`batch_sizes` tells them.
    """
    before = sum(sizes[:rank()])
    return slice(before, before + sizes[rank()])


def gather_batch(values: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
    """Concatenate ``values`` (M, ...) of every process, in the order of their ranks, to (sum of all M, ...).

    Args:
        values: of this process.
        sizes: M of every process, as :func:`batch_sizes` tells them. None: M is the same everywhere.
    """
    if world_size() == 1:
        return values
    sizes = sizes or [values.shape[0]] * world_size()
    padded = values.new_zeros(max(sizes), *values.shape[1:])  # all_gather takes tensors of one shape
    padded[:values.shape[0]] = values
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def gather_from_host(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """:func:`gather_batch` for ``values`` on the CPU, whatever carries the messages."""
    return values if world_size() == 1 else gather_batch(values.to(_device_of_messages()), sizes).cpu()


def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Replace the gradient of each parameter by its sum over all processes.

    Which parameters have a gradient may differ between processes, as in networks whose branches depend on the images. A
    missing gradient counts as zeros where another process has one. It stays missing where no process has one, so that an
    optimizer with momentum does not move that parameter.

    Args:
        parameters: the same, in the same order, in every process; those that do not require a gradient are left out.
    """
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    if world_size() == 1 or not learning:
        return
    present = _on_hosts([int(parameter.grad is not None) for parameter in learning], dist.ReduceOp.MAX,
                        learning[0].device)
    gradients = []
    for parameter, somewhere in zip(learning, present, strict=True):
        if somewhere:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    sum_in_place(gradients)


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
    return code if world_size() == 1 else _on_hosts([code], dist.ReduceOp.MAX, device)[0]


def everywhere(value: Any) -> list[Any]:
    """A value of plain Python of each process, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def leave_group() -> None:
    """Leave the group of processes at the end of a run; the interpreter's exit would stop its threads in mid-work (gloo)."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def same_everywhere(net: nn.Module) -> None:
    """Give every process the parameters and buffers of rank 0."""
    if world_size() == 1:
        return
    for tensor in (*net.parameters(), *net.buffers()):
        dist.broadcast(tensor.detach(), 0)
