"""What an object remembers from call to call: attributes, containers, buffers, generators, variables of closures."""
from __future__ import annotations

import functools
import itertools
import random
import sys
import types
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sr_bigbatch.step.sample_noise import comparable

_MOST_OBJECTS = 20_000  # a loss may refer to a host's whole model; what lies further off is not looked at
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.Size, torch.dtype, torch.device)
_TRANSPARENT = ('_modules', '_buffers', '_parameters')  # not part of the name of what they hold
_ABSENT = object()


class Memory:
    """The state of an object at one moment, apart from its parameters.

    Args:
        root: a network, a loss object or a function.
    """

    def __init__(self, root: object) -> None:
        self._leaves: dict[str, Any] = {}
        self._undo: list[Callable[[], None]] = []
        self._seen: dict[int, object] = {}  # kept alive, so that no other object gets the same id
        self._walk('', root)

    def restore(self) -> None:
        """Bring the object back to this state, in place."""
        for undo in self._undo:
            undo()

    def changes(self, later: Memory) -> list[str]:
        """Names of what differs between this state and a later one of the same object."""
        names = dict.fromkeys([*self._leaves, *later._leaves])
        return [name for name in names if not _same(self._leaves.get(name, _ABSENT), later._leaves.get(name, _ABSENT))]

    def _walk(self, path: str, value: Any) -> None:
        if isinstance(value, _PLAIN):
            self._leaves[path] = value
        elif not (id(value) in self._seen or len(self._seen) >= _MOST_OBJECTS
                  or isinstance(value, (nn.Parameter, type, types.ModuleType, torch.optim.Optimizer))):
            self._seen[id(value)] = value
            own = _own_state(value)
            if own is None:
                self._walk_parts(path, value)
            else:
                self._leaves[path] = own[0]
                self._undo.append(own[1])

    def _walk_parts(self, path: str, value: Any) -> None:
        if isinstance(value, dict):
            self._walk_namespace(path, value)
        elif isinstance(value, (list, tuple, deque, set, frozenset)):
            self._walk_items(path, value)
        elif isinstance(value, types.MethodType):
            self._walk(path, value.__func__)
            self._walk(path, value.__self__)
        elif hasattr(value, '__self__'):  # a method of a class in C, as ``random.Random().random``
            self._walk(path, value.__self__)
        elif isinstance(value, functools.partial):
            self._walk_items(path, (value.func, value.args, value.keywords))
        elif isinstance(value, types.FunctionType):
            self._walk_function(path, value)
        elif hasattr(value, '__dict__'):
            self._walk_namespace(path, vars(value))
            self._walk_class(path, type(value))

    def _walk_namespace(self, path: str, namespace: dict[Any, Any]) -> None:
        saved = dict(namespace)

        def undo() -> None:
            if list(map(id, namespace.values())) != list(map(id, saved.values())) or list(namespace) != list(saved):
                namespace.clear()
                namespace.update(saved)

        self._undo.append(undo)
        for name, value in saved.items():
            self._walk(path if name in _TRANSPARENT else _joined(path, name), value)

    def _walk_items(self, path: str, items: Any) -> None:
        saved = list(items)

        def undo() -> None:
            items.clear()
            items.update(saved) if isinstance(items, set) else items.extend(saved)

        if not isinstance(items, (tuple, frozenset)):
            self._undo.append(undo)
        for index, item in enumerate(sorted(saved, key=str) if isinstance(items, (set, frozenset)) else saved):
            self._walk(f'{path}[{index}]', item)

    def _walk_function(self, path: str, function: types.FunctionType) -> None:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # a variable that has no value yet
                continue
            self._undo.append(functools.partial(setattr, cell, 'cell_contents', value))
            self._walk(_joined(path, name), value)
        self._walk_namespace(path, vars(function))
        self._walk_items(path, (function.__defaults__, function.__kwdefaults__))
        for name in function.__code__.co_names:
            value = function.__globals__.get(name)
            if _is_variable(value):
                self._undo.append(functools.partial(function.__globals__.__setitem__, name, value))
                self._walk(name, value)

    def _walk_class(self, path: str, kind: type) -> None:
        """Variables of the class, and global ones that its methods name."""
        if kind.__module__.split('.')[0] in ('torch', *sys.stdlib_module_names):
            return
        for name, value in list(vars(kind).items()):
            if isinstance(value, types.FunctionType):
                self._walk(path, value)
            elif _is_variable(value) and not name.startswith('__'):
                self._undo.append(functools.partial(setattr, kind, name, value))
                self._walk(f'{kind.__name__}.{name}', value)


def _joined(path: str, name: object) -> str:
    return f'{path}.{name}' if path else str(name)


def _is_variable(value: object) -> bool:
    """Whether a global or class variable may hold a state, and not code."""
    return isinstance(value, (int, float, list, dict, deque)) or _own_state(value) is not None


def _own_state(value: Any) -> tuple[Any, Callable[[], None]] | None:
    """The state of an object without parts, and how to bring it back; None for all other objects."""
    if isinstance(value, Tensor):
        return _tensor_state(value)
    if isinstance(value, torch.Generator):
        return (state := value.get_state()), lambda: _ignored(value.set_state(state))
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return (internal := value.getstate()), lambda: value.setstate(internal)
    if isinstance(value, itertools.count):
        return repr(value), lambda: None  # the copy's: cannot be set back
    return _numpy_state(value) if 'numpy' in sys.modules else None


def _ignored(_: object) -> None:
    """For a call whose result does not count."""


def _tensor_state(tensor: Tensor) -> tuple[Tensor, Callable[[], None]]:
    state = tensor.detach().clone()

    def restore() -> None:
        if tensor.shape != state.shape or tensor.dtype != state.dtype:
            tensor.data = state.clone()
        elif not _same(tensor.detach(), state):
            tensor.detach().copy_(state)

    return state, restore


def _numpy_state(value: Any) -> tuple[Any, Callable[[], None]] | None:
    numpy = sys.modules['numpy']
    if isinstance(value, numpy.ndarray):
        array = value.copy()
        return (str(array.dtype), array.shape, array.tobytes()), lambda: value.__setitem__(..., array)
    if isinstance(value, numpy.random.Generator):
        internal = value.bit_generator.state
        return str(internal), lambda: setattr(value.bit_generator, 'state', internal)
    if isinstance(value, numpy.random.RandomState):
        saved = value.get_state()
        return comparable(saved), lambda: value.set_state(saved)
    return None


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
            return False
        return torch.equal(one.isnan(), other.isnan()) and torch.equal(one.nan_to_num(), other.nan_to_num())
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return False
    return bool(one == other or (one != one and other != other))
