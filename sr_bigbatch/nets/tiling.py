"""Runs a network on an image of any size, a tile at a time, without seams.

Shapes: image (h, w, C), result (H, W, C) with H = scale * h.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_FADE = 8  # pixels of the input

Run = Callable[[Tensor], Tensor]
"""``(1, C, h, w) -> (1, C, H, W)``, float, values in [0, 1]."""
Share = tuple[tuple[int, int], np.ndarray]
"""Begin and end of a tile along one side of an image, and what it has of those rows or columns of the result."""


@dataclass(frozen=True)
class Tiling:
    """How an image is cut.

    Attributes:
        tile: width and height of what the network sees at a time, in pixels of the input.
        overlap: pixels of the input that neighbouring tiles share. One tile fades into the next in the middle of it, over 8
            pixels; what is nearer to the border of a tile is thrown away, because a network knows less there. A trained RRDB
            of 23 blocks sees far: Real-ESRGAN's x4plus is off by 20 of 255 at 16 pixels from a border, by 9 at 40, by 1 at
            64 (the worst of four photographs).

    Raises:
        ValueError: if tiles would be all overlap.
    """

    tile: int = 512
    overlap: int = 144

    def __post_init__(self) -> None:
        if self.overlap < 0 or self.tile <= 2 * self.overlap:
            raise ValueError(f'a tile of {self.tile} pixels is too small for an overlap of {self.overlap}: it must be more '
                             'than twice as wide')

    def spans(self, length: int) -> list[tuple[int, int]]:
        """Begin and end of each tile along one side of an image."""
        if length <= self.tile:
            return [(0, length)]
        step = self.tile - self.overlap
        starts = [*range(0, length - self.tile, step), length - self.tile]
        return [(start, start + self.tile) for start in starts]


def blend_weights(spans: list[tuple[int, int]], overlap: int, scale: int) -> list[np.ndarray]:
    """How much each tile has of each of its rows (or columns) of the result; all that tiles have of one sums up to 1."""
    rise = min(_FADE, overlap) * scale
    away = (overlap * scale - rise) // 2
    edge = ((np.arange(away + rise) - away + 0.5) / rise).clip(0, 1)  # empty where nothing is shared
    weights, total = [], np.zeros(spans[-1][1] * scale)
    for number, (begin, end) in enumerate(spans):
        weight = np.ones((end - begin) * scale)
        if number > 0:
            weight[:len(edge)] = edge
        if number + 1 < len(spans):
            weight[len(weight) - len(edge):] = np.minimum(weight[len(weight) - len(edge):], edge[::-1])
        weights.append(weight)
        total[begin * scale:end * scale] += weight
    return [(weight / total[begin * scale:end * scale]).astype(np.float32)
            for weight, (begin, end) in zip(weights, spans, strict=True)]


def upscale(run: Run, image: np.ndarray, scale: int, tiling: Tiling,
            tick: Callable[[], object] = lambda: None) -> np.ndarray:
    """The network's image, in the integer type of ``image``.

    Only a band of tiles is held as floating-point numbers, so that the memory is that of both images and a band.

    Args:
        run: the network.
        image: (h, w, C), uint8 or uint16.
        scale: H / h.
        tiling: how the image is cut.
        tick: called after each tile.
    """
    height, width, channels = image.shape
    rows, columns = tiling.spans(height), tiling.spans(width)
    across = list(zip(columns, blend_weights(columns, tiling.overlap, scale), strict=True))
    result = np.empty((height * scale, width * scale, channels), image.dtype)
    carried = np.empty((0, width * scale, channels), np.float32)
    for number, (span, share) in enumerate(zip(rows, blend_weights(rows, tiling.overlap, scale), strict=True)):
        band = _band(run, image, scale, (span, share), across, tick)
        band[:len(carried)] += carried
        finished = ((rows[number + 1][0] if number + 1 < len(rows) else height) - span[0]) * scale
        for part in _blocks(finished):
            result[span[0] * scale + part.start:span[0] * scale + part.stop] = _integers(band[part], image.dtype)
        carried = band[finished:].copy()
        del band  # before the next one is made
    return result


def _band(run: Run, image: np.ndarray, scale: int, down: Share, across: list[Share],
          tick: Callable[[], object]) -> np.ndarray:
    """A row of tiles, each times what it has of the result."""
    (top, bottom), share = down
    band = np.zeros(((bottom - top) * scale, image.shape[1] * scale, image.shape[2]), np.float32)
    most = np.iinfo(image.dtype).max
    for (left, right), part in across:
        tile = torch.from_numpy(image[top:bottom, left:right].astype(np.float32) / most).permute(2, 0, 1)[None]
        with torch.no_grad():
            output = run(tile)[0].float().cpu().permute(1, 2, 0).numpy()
        band[:, left * scale:right * scale] += output * (share[:, None] * part)[..., None]
        tick()
    return band


def _blocks(rows: int, size: int = 64) -> Iterator[slice]:
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _integers(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    most = np.iinfo(dtype).max
    return (values.clip(0, 1) * most).round().astype(dtype)
