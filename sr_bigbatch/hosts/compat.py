"""Makes ``import basicsr`` and mmengine's Runner work beside current versions of torch and torchvision.

Each mend is tried only where the plain import fails, and is announced once.
"""
from __future__ import annotations

import importlib
import importlib.util
import sys
import types
import warnings

import torch

_GONE = 'torchvision.transforms.functional_tensor'
_declared: list[torch.library.Library] = []  # a library disappears with its last reference


class CompatWarning(UserWarning):
    """Something in the installed packages was broken and has been mended for this process."""


def mend_torchvision() -> None:
    """Make torchvision importable, with the module that BasicSR misses.

    PyPI's torchvision is built for CUDA. Beside a CPU build of torch its compiled operators do not load, and declaring
    the two that its Python code mentions is enough for models and transforms. ``functional_tensor``, from which BasicSR
    1.4.2 imports one function, went away in torchvision 0.17.
    """
    try:
        importlib.import_module('torchvision')
    except RuntimeError as error:
        if 'torchvision::nms' not in str(error):
            raise
        _declare_operators()
        importlib.import_module('torchvision')
    if _GONE not in sys.modules and importlib.util.find_spec(_GONE) is None:
        _alias_functional_tensor()


def _declare_operators() -> None:
    for name in [name for name in sys.modules if name.partition('.')[0] == 'torchvision']:
        del sys.modules[name]
    library = torch.library.Library('torchvision', 'DEF')
    for operator in ('nms', 'qnms'):
        library.define(f'{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    _declared.append(library)
    _announce("torchvision's compiled operators do not load beside this build of torch; models and transforms work, "
              'box operators do not')


def _alias_functional_tensor() -> None:
    functional = importlib.import_module('torchvision.transforms.functional')
    module = types.ModuleType(_GONE)
    module.rgb_to_grayscale = functional.rgb_to_grayscale  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    _announce(f'{_GONE}, which BasicSR imports, is gone from torchvision; an '
              'alias stands in for it')


def _announce(what: str) -> None:
    warnings.warn(f'sr_bigbatch: {what}.', CompatWarning, stacklevel=3)
