"""sr_bigbatch: super-resolution GANs at batch sizes that do not fit on the GPU.

Importing the package registers its components with those of BasicSR and mmengine that are installed.
"""
from __future__ import annotations

import importlib
import importlib.util

__version__ = '0.1.0'


def install() -> None:
    """Register our components with the installed hosts; the second call and later ones do nothing."""
    has_mmengine = importlib.util.find_spec('mmengine') is not None
    if has_mmengine:
        importlib.import_module('sr_bigbatch.hosts.mmengine.optim_wrapper')
        importlib.import_module('sr_bigbatch.hosts.compat').mend_torchvision()
        importlib.import_module('sr_bigbatch.hosts.mmengine.hook')
        importlib.import_module('sr_bigbatch.hosts.mmengine.model')
    if has_mmengine and importlib.util.find_spec('basicsr') is not None:
        importlib.import_module('sr_bigbatch.hosts.basicsr.archs')
        importlib.import_module('sr_bigbatch.hosts.basicsr.dataset')
        importlib.import_module('sr_bigbatch.hosts.basicsr.metrics')
        importlib.import_module('sr_bigbatch.hosts.basicsr.model.models')


install()
