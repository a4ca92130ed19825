"""Chooses how torch's allocator takes GPU memory, and says which way is in force. Neither needs torch."""
from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, version

_VARIABLES = ('PYTORCH_CUDA_ALLOC_CONF', 'PYTORCH_ALLOC_CONF')  # in the order in which torch looks
_SECOND_IS_KNOWN = (2, 9)  # since this torch, whose documentation calls the first one the old name
_SETTING = 'expandable_segments'


def use_expandable_segments() -> None:
    """Have the allocator extend the pieces of memory that it holds, where the platform can and the user has set nothing.

    Otherwise it takes a new piece for each size that fits in none, and pieces that are too small lie idle: a seventh of the
    memory. Call it before torch is imported; of a torch that has started to allocate nothing changes.
    """
    torch = _torch()
    if torch is None or 'rocm' in torch or not sys.platform.startswith('linux') or _settings() is not None:
        return
    release = tuple(int(part) for part in torch.split('.')[:2])
    os.environ[_VARIABLES[release >= _SECOND_IS_KNOWN]] = f'{_SETTING}:True'


def has_expandable_segments() -> bool:
    """Whether the allocator of this process extends pieces of memory, as far as the environment says it."""
    settings = _settings() or ''
    pairs = [pair.replace(' ', '').split(':') for pair in settings.split(',')]
    return [_SETTING, 'true'] in [[part.lower() for part in pair] for pair in pairs]


def _settings() -> str | None:
    return next((os.environ[name] for name in _VARIABLES if name in os.environ), None)


def _torch() -> str | None:
    try:
        return version('torch')
    except PackageNotFoundError:
        return None
