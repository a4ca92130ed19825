"""How much memory there is, and how much a forward pass keeps of it."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sr_bigbatch.memory.target import CONTEXT_BYTES
from sr_bigbatch.system import free_bytes, peak_process_bytes


def usable_bytes(device: torch.device) -> int:
    """Bytes that this process may use: on a GPU free ones and those that it holds, on the CPU free physical memory.

    On a GPU the process holds its CUDA context, too, which the question itself makes.
    """
    if device.type == 'cuda':
        return int(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)) + CONTEXT_BYTES
    return free_bytes()


def peak_bytes(device: torch.device) -> int:
    """Most bytes in use so far: of the GPU's tensors, or on the CPU of the whole process."""
    if device.type == 'cuda':
        return int(torch.cuda.max_memory_allocated(device))
    return peak_process_bytes()


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
