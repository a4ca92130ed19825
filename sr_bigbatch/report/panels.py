"""Panels of curves: what all pictures of runs are made of."""
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

_COLUMNS = 3  # panels side by side at most
_WIDTH, _HEIGHT = 3.7, 3.1  # of a panel, in inches
_DECADES = 1.3  # from here on a linear axis hides the smaller curves
_FEW = 30  # points that are marked

Line = Sequence[tuple[float, float]]
"""Points of a curve, in order."""


@dataclass(frozen=True)
class Panel:
    """One axis of a picture.

    Attributes:
        title: what is shown.
        unit: label of its y axis.
        lines: the points of each curve, by its label; curves without points are left out.
        counts: whether the values are whole numbers, of which 0 is one: the axis begins there.
    """

    title: str
    unit: str
    lines: Mapping[str, Line]
    counts: bool = False

    def draw(self, axis: Any, colours: Mapping[str, str] | None = None) -> None:
        """Draw the curves; those that differ by decades on a logarithmic axis with plain numbers.

        Args:
            axis: of matplotlib.
            colours: of the curves, by label; without it matplotlib's own.
        """
        for label, points in self.lines.items():
            if points:
                axis.plot(*zip(*points, strict=True), label=label, color=(colours or {}).get(label),
                          marker='o' if len(points) < _FEW else None, markersize=3)
        axis.set_title(self.title, fontsize='medium')
        axis.set_xlabel('iteration')
        axis.set_ylabel(self.unit)
        axis.grid(alpha=0.3)
        if self.counts:
            axis.set_ylim(bottom=0)
            axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        elif differ_by_decades(value for points in self.lines.values() for _, value in points):
            log_axis(axis.yaxis, axis.set_yscale)

    def __bool__(self) -> bool:
        """Whether there is something to draw."""
        return any(self.lines.values())


def points_of(records: Iterable[Mapping[str, Any]], key: str) -> Line:
    """The values of a field of a log, with their iterations."""
    return [(record['iter'], record[key]) for record in records if key in record]


def differ_by_decades(values: Iterable[float]) -> bool:
    """Whether values are all above 0 and their largest is more than 20 times their smallest."""
    known = list(values)
    return bool(known) and min(known) > 0 and max(known) > 10**_DECADES * min(known)


def log_axis(axis: Any, set_scale: Any) -> None:
    """Make an axis logarithmic, with numbers as people write them: 0.01, not 10 to the power of -2."""
    set_scale('log')
    plain = FuncFormatter(lambda value, _: f'{value:g}')
    axis.set_major_formatter(plain)
    low, high = axis.get_view_interval()
    if high < 100 * low:  # a single decade line says too little
        axis.set_minor_locator(LogLocator(subs=(2, 5)))
        axis.set_minor_formatter(plain)
    else:
        axis.set_minor_formatter(NullFormatter())


def panel_grid(count: int) -> tuple[Any, list[Any]]:
    """A figure with a number of panels, in rows that are filled to their end.

    Args:
        count: how many panels.
    """
    figure = plt.figure(figsize=grid_size(count), layout='constrained')
    return figure, axes_of(figure, count)


def grid_size(count: int) -> tuple[float, float]:
    """Width and height of a number of panels, in inches."""
    return _WIDTH * min(count, _COLUMNS), _HEIGHT * -(-count // _COLUMNS)


def axes_of(figure: Any, count: int) -> list[Any]:
    """Axes for a number of panels in a figure, or a part of one."""
    rows = -(-count // _COLUMNS)
    grid, axes = figure.add_gridspec(rows, math.factorial(_COLUMNS)), []
    for row in range(rows):
        width = math.factorial(_COLUMNS) // (count // rows + (row < count % rows))
        axes += [figure.add_subplot(grid[row, start:start + width]) for start in range(0, math.factorial(_COLUMNS), width)]
    return axes
