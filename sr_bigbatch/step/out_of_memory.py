"""Tells an exhausted memory from other errors, and gives memory back."""
from __future__ import annotations

import gc
import math
from collections.abc import Callable

import torch

# The CUDA libraries have words of their own for what did not fit, and so has the host's allocator.
_SIGNS = ('CUDA out of memory', 'CUDA error: out of memory', 'CUDA driver error: out of memory', 'HIP out of memory',
          'CUBLAS_STATUS_ALLOC_FAILED', 'CUSOLVER_STATUS_ALLOC_FAILED', 'CUDNN_STATUS_ALLOC_FAILED',
          'CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED', 'CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED',
          'CUDNN_STATUS_NOT_SUPPORTED', 'unable to find an engine',
          "Cuda failure 'out of memory'", "Cuda failure 2 'out of memory'", 'Failed to CUDA calloc',
          "DefaultCPUAllocator: can't allocate memory", 'DefaultCPUAllocator: not enough memory')
# What these libraries also say when something else is wrong: only a full device makes them a lack of memory.
_SIGNS_ON_A_FULL_DEVICE = ('CUBLAS_STATUS_NOT_INITIALIZED', 'CUDNN_STATUS_NOT_INITIALIZED', 'CUDNN_STATUS_INTERNAL_ERROR',
                           'CUDNN_STATUS_EXECUTION_FAILED')
_LITTLE = 256 * 2**20  # bytes; a handle of cuBLAS or cuDNN with its kernels and its workspace takes less


class OutOfMemory(RuntimeError):
    """Memory ran out and nothing is left that could be made smaller."""


def is_device_full() -> bool:
    """Whether so little is free on the current GPU that a CUDA library may fail to set itself up; False without a GPU."""
    return _free_bytes() < _LITTLE


def _free_bytes() -> float:
    # Memory that torch's allocator has in reserve does not count: the libraries allocate past it.
    if not torch.cuda.is_initialized():
        return math.inf
    try:
        return torch.cuda.mem_get_info()[0]
    except RuntimeError:  # after some errors CUDA answers nothing more; then the error was not a lack of memory
        return math.inf


def is_out_of_memory(error: BaseException, is_full: Callable[[], bool] = is_device_full) -> bool:
    """Whether ``error`` is one of the forms in which torch says that the memory of a device did not suffice.

    Args:
        error: any exception.
        is_full: whether little memory is free on the device. It is asked only about messages that have other causes, too.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if isinstance(error, OutOfMemory) or not isinstance(error, RuntimeError):
        return False
    message = str(error)
    return any(sign in message for sign in _SIGNS) or (
        any(sign in message for sign in _SIGNS_ON_A_FULL_DEVICE) and is_full())


def release(device: torch.device) -> None:
    """Give unused memory back to the device. Call it where no exception is being handled: its frames hold tensors."""
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.empty_cache()
