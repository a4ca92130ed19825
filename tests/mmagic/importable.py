"""Makes the super-resolution part of mmagic 1.2.0 importable beside mmcv-lite, without a compiler and without diffusers.

mmagic imports all of its editors at once, and those of diffusion models need packages that an ESRGAN does not. The packages
whose ``__init__`` does so are given empty bodies here; their modules are mmagic's own.
"""
import importlib
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

NEED_DIFFUSERS = {'attention_injection', 'wrapper', 'lora', 'tokenizer'}


def _hollow(name: str, root: Path) -> ModuleType:
    package = ModuleType(name)
    package.__path__ = [str(root.joinpath(*name.split('.')[1:]))]
    sys.modules[name] = package
    parent, _, child = name.rpartition('.')
    setattr(sys.modules[parent], child, package)
    return package


def _fill(package: ModuleType, child: str) -> None:
    module = importlib.import_module(f'{package.__name__}.{child}')
    public = {name: value for name, value in vars(module).items() if name[0] != '_' and not isinstance(value, ModuleType)}
    vars(package).update(public)


def import_mmagic() -> ModuleType:
    """Import it; returns the package."""
    np.bool8 = np.bool_  # gone from numpy 2
    mmagic = importlib.import_module('mmagic')
    root = Path(mmagic.__file__).parent
    models, editors, archs = (_hollow(f'mmagic.models{name}', root) for name in ('', '.editors', '.archs'))
    for found in pkgutil.iter_modules(archs.__path__):
        if found.name not in NEED_DIFFUSERS:
            _fill(archs, found.name)
    for editor in ('srgan', 'esrgan', 'real_esrgan'):
        _fill(editors, editor)
    for part in ('losses', 'base_models', 'data_preprocessors'):
        _fill(models, part)
    vars(models).update({name: value for name, value in vars(editors).items() if name[0] != '_'})
    for part in ('engine.hooks', 'engine.optimizers', 'engine.runner', 'engine.schedulers', 'datasets',
                 'datasets.transforms', 'evaluation', 'visualization'):
        importlib.import_module(f'mmagic.{part}')
    return mmagic
