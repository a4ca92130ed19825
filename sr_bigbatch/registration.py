"""Registers our components with BasicSR and mmengine, at the moment at which one of them is imported."""
from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

HOSTS = ('basicsr', 'mmengine')
_state = {'begun': False}


def register() -> None:
    """Import the installed hosts and register our components with them; the second call and later ones do nothing.

    Nobody has to call this: ``import sr_bigbatch`` has it called as soon as a host is imported.
    """
    if _state['begun']:
        return
    _state['begun'] = True  # at once: the imports below lead here again
    try:
        _register()
    except BaseException:
        _state['begun'] = False  # so that the next call tells the same reason
        raise
    _watch.remove()


def _register() -> None:
    if importlib.util.find_spec('mmengine') is None:
        return
    importlib.import_module('sr_bigbatch.hosts.mmengine.optim_wrapper')
    _mend()
    importlib.import_module('sr_bigbatch.hosts.mmengine.hook')
    importlib.import_module('sr_bigbatch.hosts.mmengine.model')
    if importlib.util.find_spec('basicsr') is not None:
        importlib.import_module('sr_bigbatch.hosts.basicsr.archs')
        importlib.import_module('sr_bigbatch.hosts.basicsr.dataset')
        importlib.import_module('sr_bigbatch.hosts.basicsr.metrics')
        importlib.import_module('sr_bigbatch.hosts.basicsr.model.models')
        importlib.import_module('sr_bigbatch.hosts.basicsr.model.real_models')


def _mend() -> None:
    importlib.import_module('sr_bigbatch.hosts.compat').mend_torchvision()


def register_with_hosts() -> None:
    """Register now if a host has been imported already, and otherwise after the first one is."""
    if any(host in sys.modules for host in HOSTS):
        register()
    else:
        sys.meta_path.insert(0, _watch)


class _HostWatch(importlib.abc.MetaPathFinder):
    """Finds a host as the other finders do, and has something done before and after its import."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in HOSTS:
            return None
        others = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in others if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec

    def remove(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)


class _RegisteringLoader(importlib.abc.Loader):
    """Mends what the import of a host needs, leaves the import to the host's own loader, and registers our components.

    A host is the whole package: after its ``__init__`` has run, everything that we derive from can be imported.
    """

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        if module.__name__ == 'basicsr':
            _mend()
        self.loader.exec_module(module)
        register()


_watch = _HostWatch()
