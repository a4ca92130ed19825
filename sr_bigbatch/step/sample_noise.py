"""Random numbers under control: each sample of a batch draws its own, whatever batch it is in.

With that, a network that draws random numbers can be compared on a batch and on its parts like any other.
"""
from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten


@dataclass(frozen=True)
class Generators:
    """The states of all global random number generators: torch's on every device in use, Python's and numpy's."""

    torch: list[Tensor]
    python: tuple[Any, ...]
    numpy: tuple[Any, ...] | None

    @staticmethod
    def capture() -> Generators:
        """The states as they are now."""
        numpy = sys.modules.get('numpy')  # code that draws from it has imported it
        return Generators(torch_states(), random.getstate(), numpy.random.get_state() if numpy else None)

    def restore(self) -> None:
        """Draw the same numbers from now on as after :meth:`capture`."""
        restore_torch(self.torch)
        random.setstate(self.python)
        if self.numpy is not None:
            sys.modules['numpy'].random.set_state(self.numpy)

    def moved(self) -> str | None:
        """Name of a generator that has moved since :meth:`capture`; None: none has."""
        now = Generators.capture()
        if now.python != self.python:
            return "Python's random"
        if self.numpy is not None and now.numpy is not None and comparable(now.numpy) != comparable(self.numpy):
            return 'numpy.random'
        return "torch's" if have_moved(now.torch, self.torch) else None


def torch_states() -> list[Tensor]:
    """The states of torch's global generators, the CPU's first."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ())]


def restore_torch(states: Sequence[Tensor]) -> None:
    """Bring torch's global generators back to states from :func:`torch_states`."""
    torch.set_rng_state(states[0])
    for device, state in enumerate(states[1:]):
        torch.cuda.set_rng_state(state, device)


def have_moved(states: Sequence[Tensor], before: Sequence[Tensor]) -> bool:
    """Whether a generator of torch is in another state than before."""
    return not all(map(torch.equal, states, before))


def comparable(numpy_state: tuple[Any, ...]) -> tuple[Any, ...]:
    """The state of a ``numpy.random.RandomState`` as values that ``==`` compares."""
    kind, key, *others = numpy_state
    return (kind, key.tobytes(), *others)


def _seed(sample: int, number: int) -> list[Tensor]:
    """Seed all generators of torch for a draw; returns their states."""
    seed = (sample + 2) * 1_000_003 + number * 7_919
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    return torch_states()


@dataclass
class Draws:
    """What a function has drawn so far.

    Attributes:
        shared: by the number of the draw in a call, whether all samples share it. The first call with several samples
            decides, because in a call with one sample every draw seems to belong to it.
        own: whether any sample drew numbers of its own.
        axis: the dimension that belongs to samples. Only the code that draws knows it, so several are tried.
        sample_major: whether the rows of one sample lie together where there are several for each.
    """

    axis: int = 0
    sample_major: bool = True
    shared: dict[int, bool] = field(default_factory=dict)
    own: bool = False


class SampleNoise(TorchDispatchMode):
    """Makes every draw a function of the sample's number and of the number of the draw.

    A draw is cut along the dimension of the samples if that is a multiple of their number; each slice is drawn after
    seeding with the sample's number. All other draws are shared by the samples of a call. A private ``torch.Generator`` is
    left to itself, and so is code that has set the seed.

    Args:
        samples: the numbers of the samples in this call.
        draws: what has been found out so far; it is continued.
        private: called with each private generator before it is used.
    """

    def __init__(self, samples: Sequence[int], draws: Draws, private: Callable[[torch.Generator], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._samples, self._draws, self._private, self._number = samples, draws, private, 0
        self._start = torch_states()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        """Run an operation; if it draws, slice by slice."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        generator = kwargs.get('generator')
        if generator is not None and generator not in (torch.default_generator, *torch.cuda.default_generators):
            self._private(generator)
            return func(*args, **kwargs)
        before = torch_states()
        if have_moved(before, self._start):
            return func(*args, **kwargs)
        try:
            return self._draw(func, args, kwargs)
        finally:
            restore_torch(before)

    def _draw(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rows, count, number = self._rows(args, kwargs), len(self._samples), self._number
        divisible = rows is not None and rows > 0 and rows % count == 0
        if rows is None or not divisible or self._draws.shared.get(number, False):
            seeded = _seed(-1, number)
            result = func(*args, **kwargs)
            if have_moved(torch_states(), seeded):
                self._draws.shared.setdefault(number, not divisible)
                self._number += 1
            return result
        results, moved = [], False
        for place, sample in enumerate(self._samples):
            cut = self._cut(place, rows // count)
            seeded = _seed(sample, number)
            results.append(self._of_rows(func, args, kwargs, rows, cut))
            moved = moved or have_moved(torch_states(), seeded)
        if moved:
            self._number += 1
            self._draws.own = True
            if count > 1:
                self._draws.shared.setdefault(number, False)
        changes_argument = func._schema.returns and func._schema.returns[0].alias_info is not None
        return args[0] if changes_argument else self._joined(results, rows // count)

    def _rows(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
        """How many rows what is drawn has along the dimension of the samples; None: it lacks that dimension."""
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) or _is_size(value):
                shape = value.shape if isinstance(value, Tensor) else value
                return int(shape[self._draws.axis]) if len(shape) > self._draws.axis else None
        return None

    def _cut(self, place: int, block: int) -> tuple[slice, ...]:
        count = len(self._samples)
        rows = slice(place * block, (place + 1) * block) if self._draws.sample_major else slice(place, None, count)
        return (slice(None),) * self._draws.axis + (rows,)

    def _of_rows(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], rows: int, cut: tuple[slice, ...]) -> Any:
        """Run an operation on the rows of one sample, of tensors and of the size of what is drawn."""
        axis, copies = self._draws.axis, []

        def one(value: Any) -> Any:
            if not (isinstance(value, Tensor) and value.dim() > axis and value.shape[axis] == rows):
                return value
            # Contiguous: the order in which numbers are drawn follows the strides, and these may depend on the batch.
            copies.append((value[cut], value[cut].contiguous()))
            return copies[-1][1]

        def sized(value: Any) -> Any:
            if _is_size(value) and len(value) > axis and value[axis] == rows:
                return [*value[:axis], rows // len(self._samples), *value[axis + 1:]]
            return tree_map(one, value)

        result = func(*map(sized, args), **{name: sized(value) for name, value in kwargs.items()})
        if func._schema.is_mutable:
            for original, contiguous in copies:
                original.copy_(contiguous)
        return result

    def _joined(self, results: list[Any], block: int) -> Any:
        leaves, structure = zip(*map(tree_flatten, results), strict=True)
        joined = [self._together(parts, block) for parts in zip(*leaves, strict=True)]
        return tree_unflatten(joined, structure[0])

    def _together(self, parts: tuple[Any, ...], block: int) -> Any:
        axis = self._draws.axis
        if not (isinstance(parts[0], Tensor) and parts[0].dim() > axis and parts[0].shape[axis] == block):
            return parts[0]
        if self._draws.sample_major:
            return torch.cat(parts, axis)
        return torch.stack(parts, axis + 1).flatten(axis, axis + 1)


def _is_size(value: object) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, int) for item in value)
