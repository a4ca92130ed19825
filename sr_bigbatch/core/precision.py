"""Autocast regions of a step."""
from __future__ import annotations

import torch

_SIXTEEN_BIT = (torch.float16, torch.bfloat16)


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast to ``dtype`` (float16 or bfloat16); disabled for None and wider dtypes.

    The cache of cast weights is off: a pass without graph would leave casts without graph for the pass that needs one.
    """
    enabled = dtype in _SIXTEEN_BIT
    return torch.autocast(device.type, dtype=dtype if enabled else torch.bfloat16, enabled=enabled, cache_enabled=False)


def widen(values: torch.Tensor) -> torch.Tensor:
    """Float32 for 16-bit values; float32 and float64 as they are."""
    return values.float() if values.dtype in _SIXTEEN_BIT else values
