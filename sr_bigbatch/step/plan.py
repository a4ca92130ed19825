"""How a step is cut into micro-batches."""
from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

WHOLE = sys.maxsize
"""A micro-batch size, or a number of kept graphs, that always covers the whole batch."""


@dataclass(frozen=True)
class MicroBatchSizes:
    """How many samples are worked on at a time, by part of the step.

    Attributes:
        generator: samples per forward and backward of the generator.
        perceptual: samples per evaluation of the pixel and perceptual losses.
        discriminator: samples per forward and backward of the discriminator.
    """

    generator: int
    perceptual: int
    discriminator: int

    def __post_init__(self) -> None:
        for name, size in vars(self).items():
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f'micro-batch size of the {name} must be a positive integer, got {size!r}')

    @classmethod
    def of(cls, setting: int | Mapping[str, int] | str | None) -> MicroBatchSizes:
        """The sizes of a setting: one number for all parts, a number for each part, ``'auto'`` or None for the whole batch.

        ``'auto'`` and None begin with the whole batch; it is cut where memory runs out.

        Raises:
            ValueError: for any other setting.
        """
        if setting is None or setting == 'auto':
            return cls(WHOLE, WHOLE, WHOLE)
        if isinstance(setting, int):
            return cls(setting, setting, setting)
        if not isinstance(setting, Mapping) or set(setting) != set(PARTS):
            raise ValueError("micro_batch_size must be a positive integer, 'auto', or a number for each of "
                             f'{", ".join(PARTS)}; got {setting!r}')
        return cls(**setting)

    def for_crop(self, old: int, new: int) -> MicroBatchSizes:
        """The sizes that keep the pixels of a micro-batch when crops of ``old`` pixels become ``new`` pixels wide."""
        return MicroBatchSizes(**{name: size if size == WHOLE else max(1, size * old**2 // new**2)
                                  for name, size in vars(self).items()})


PARTS = tuple(field.name for field in fields(MicroBatchSizes))


def micro_slices(batch_size: int, micro_batch_size: int) -> Iterator[slice]:
    """Yield consecutive slices of at most ``micro_batch_size`` that cover ``range(batch_size)``; the last may be short."""
    for start in range(0, batch_size, micro_batch_size):
        yield slice(start, min(start + micro_batch_size, batch_size))


def length(samples: slice) -> int:
    """Number of samples in a slice made by :func:`micro_slices`."""
    return int(samples.stop - samples.start)


def in_words(size: int) -> str:
    """A micro-batch size, or a number of kept graphs, for a person."""
    return 'all' if size == WHOLE else str(size)


@dataclass(frozen=True)
class StepPlan:
    """How a step is cut; the result does not depend on it under ``exact``.

    Attributes:
        micro: micro-batch sizes.
        kept_graphs: how many of the generator's micro-batches keep their graph between *generate* and *learn*; the
            others run forward a second time.
        exact: relativistic means over the whole batch, and nothing that would change the update is accepted; if False,
            means over each discriminator micro-batch, as plain gradient accumulation does.
        adapts: whether a discriminator that couples samples is given the whole batch: where one size stands for all parts,
            nobody has chosen one for the discriminator.
    """

    micro: MicroBatchSizes
    kept_graphs: int = 0
    exact: bool = True
    adapts: bool = False

    @classmethod
    def of(cls, setting: int | Mapping[str, int] | str | None, kept_graphs: int = 0, *, exact: bool = True) -> StepPlan:
        """The plan of a setting of micro-batch sizes; see :meth:`MicroBatchSizes.of`.

        Raises:
            ValueError: for any other setting.
        """
        return cls(MicroBatchSizes.of(setting), kept_graphs, exact, adapts=not isinstance(setting, Mapping))
