"""How many samples a network can work on at a time."""
from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

_USABLE = 0.6  # of the free memory; the rest is for other parts of the step, the allocator and fragmentation


def free_bytes(device: torch.device) -> int:
    """Bytes that are free now: on a GPU of its own memory, on the CPU of physical memory."""
    if device.type == 'cuda':
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def peak_bytes(device: torch.device) -> int:
    """Most bytes in use so far: of the GPU's tensors, or on the CPU of the whole process."""
    if device.type == 'cuda':
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def saved_bytes(run: Callable[[], object], net: nn.Module) -> int:
    """Bytes that ``run()`` keeps for its backward pass, parameters and buffers of ``net`` excluded."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*net.parameters(), *net.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage().data_ptr()
        if storage not in own:
            kept[storage] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alive = run()
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del alive
    return total


def largest_micro_batch(bytes_per_sample: int, budget_bytes: int, batch_size: int) -> int:
    """The largest micro-batch, up to ``batch_size``, whose kept tensors use at most 60 % of ``budget_bytes``."""
    return max(1, min(batch_size, int(budget_bytes * _USABLE) // max(1, bytes_per_sample)))
