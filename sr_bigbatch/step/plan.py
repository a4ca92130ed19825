"""Cutting an effective batch into micro-batches."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class MicroBatchSizes:
    """How many samples each part of the step works on at a time.

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

    def for_crop(self, old: int, new: int) -> MicroBatchSizes:
        """The sizes that keep the pixels of a micro-batch when crops of ``old`` pixels become ``new`` pixels wide."""
        return MicroBatchSizes(**{name: max(1, size * old**2 // new**2) for name, size in vars(self).items()})


PARTS = tuple(field.name for field in fields(MicroBatchSizes))


def micro_slices(batch_size: int, micro_batch_size: int) -> Iterator[slice]:
    """Yield consecutive slices of at most ``micro_batch_size`` that cover ``range(batch_size)``; the last may be short."""
    for start in range(0, batch_size, micro_batch_size):
        yield slice(start, min(start + micro_batch_size, batch_size))


def length(samples: slice) -> int:
    """Number of samples in a slice made by :func:`micro_slices`."""
    return int(samples.stop - samples.start)


@dataclass(frozen=True)
class StepPlan:
    """How a step is cut; the result does not depend on it under ``exact``.

    Attributes:
        micro: micro-batch sizes.
        kept_graphs: how many of the generator's micro-batches keep their graph between *generate* and *learn*; the
            others run forward a second time.
        exact: relativistic means over the whole batch; if False over each discriminator micro-batch, as plain
            gradient accumulation does.
    """

    micro: MicroBatchSizes
    kept_graphs: int = 0
    exact: bool = True
