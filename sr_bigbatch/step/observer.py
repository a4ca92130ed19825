"""What a step tells those who watch it: planners, progress bars, benchmarks."""
from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    """Is told what a step is about to do. It must not change anything."""

    def on_phase(self, name: str) -> None:
        """A phase begins: ``generate``, ``judge``, ``grade``, ``learn`` or ``commit``; a repeated step begins again."""

    def on_part(self, part: str, samples: slice) -> None:
        """``generator``, ``perceptual`` or ``discriminator`` begins to work on ``samples`` of the batch."""


class NoObserver:
    """Watches nothing."""

    def on_phase(self, name: str) -> None:
        """Nothing."""

    def on_part(self, part: str, samples: slice) -> None:
        """Nothing."""
