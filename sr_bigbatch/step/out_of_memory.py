"""Tells an exhausted memory from other errors, and gives memory back."""
from __future__ import annotations

import gc

import torch

# cuDNN and cuBLAS have words of their own for a workspace that did not fit; the host's allocator speaks last.
_SIGNS = ('CUDA out of memory', 'CUDA error: out of memory', 'HIP out of memory', 'CUBLAS_STATUS_ALLOC_FAILED',
          'CUDNN_STATUS_ALLOC_FAILED', 'CUDNN_STATUS_NOT_SUPPORTED', 'unable to find an engine',
          "DefaultCPUAllocator: can't allocate memory", 'DefaultCPUAllocator: not enough memory')


class OutOfMemory(RuntimeError):
    """Memory ran out and nothing is left that could be made smaller."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` is one of the forms in which torch says that the memory of a device did not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and not isinstance(error, OutOfMemory)
        and any(sign in str(error) for sign in _SIGNS))


def release(device: torch.device) -> None:
    """Give unused memory back to the device. Call it where no exception is being handled: its frames hold tensors."""
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.empty_cache()
