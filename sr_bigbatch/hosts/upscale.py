"""Upscales photographs of any size, depth and number of channels, in bounded memory."""
from __future__ import annotations

import glob
import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from tqdm import tqdm

from sr_bigbatch.core.live_bytes import LiveBytes
from sr_bigbatch.core.precision import autocast
from sr_bigbatch.core.storage import write_atomically
from sr_bigbatch.core.tiling import Tiling, upscale
from sr_bigbatch.hosts.basicsr_prepare import SUFFIXES
from sr_bigbatch.hosts.mmengine_optim import DTYPES
from sr_bigbatch.nets.restore import restore

_SMALLEST_TILE, _PROBE = 96, 64  # pixels
_PROCESS_BYTES = 450e6  # Python, torch and OpenCV themselves


class BadPicture(ValueError):
    """An image that cannot be read or written, or none at all; the message names it."""


@dataclass(frozen=True)
class Job:
    """An image to be read, and the PNG to be written."""

    source: Path
    target: Path


def find(patterns: Iterable[str]) -> list[Path]:
    """The image files that names, folders and patterns stand for.

    Raises:
        BadPicture: if one of them stands for none.
    """
    found: list[Path] = []
    for pattern in patterns:
        path = Path(pattern).expanduser()
        named = [path] if path.is_file() else map(Path, glob.glob(pattern))
        files = sorted(path.iterdir() if path.is_dir() else named)
        images = [file for file in files if file.suffix.lower() in SUFFIXES]
        if not images:
            raise BadPicture(f'{pattern}: there is no image')
        found += images
    return found


def upscale_all(jobs: Sequence[Job], weights: Path, tiling: Tiling | None, overlap: int, memory_gb: float, dtype: str,
                processes: int) -> list[str]:
    """Upscale every image, with a progress bar; returns a line for each that failed.

    Args:
        jobs: what to read and write.
        weights: of an RRDBNet.
        tiling: None for tiles as large as the memory allows.
        overlap: of tiles that are chosen here, in pixels.
        memory_gb: what a process may use, in GB.
        dtype: of autocast.
        processes: how many images at a time.

    Raises:
        BadFile: if the weights are none.
        ValueError: if the memory does not even hold the smallest tile.
    """
    restore(weights)  # before any process is started: is it one?
    arguments = [(job, weights, tiling, overlap, memory_gb, dtype, processes > 1) for job in jobs]
    if processes == 1:
        results: Iterable[str | None] = (_one(*argument) for argument in arguments)
        return [line for line in results if line]
    with ProcessPoolExecutor(min(processes, len(jobs)), multiprocessing.get_context('spawn')) as pool:
        results = tqdm(pool.map(_one, *zip(*arguments, strict=True)), total=len(jobs), unit='image')
        return [line for line in results if line]


def _one(job: Job, weights: Path, tiling: Tiling | None, overlap: int, memory_gb: float, dtype: str, quiet: bool,
         ) -> str | None:
    try:
        image = _read(job.source)
        net, device = restore(weights), torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        tiling = tiling or _tiling(net, image, overlap, memory_gb, DTYPES[dtype])

        def run(tile: torch.Tensor) -> torch.Tensor:
            with autocast(device, DTYPES[dtype]):
                output: torch.Tensor = net(_padded(tile.to(device), net.scale))
            return output[..., :tile.shape[-2] * net.scale, :tile.shape[-1] * net.scale]

        rows, columns = (len(tiling.spans(length)) for length in image.shape[:2])
        with tqdm(total=rows * columns, unit='tile', desc=job.source.name, disable=quiet) as bar:
            _write(_upscaled(run, image, net.scale, tiling, bar.update), job.target)
    except (BadPicture, OSError, cv2.error) as error:
        return f'{job.source}: {error}'
    return None


def _padded(tile: torch.Tensor, scale: int) -> torch.Tensor:
    """A tile whose sides the pixel unshuffle of scales 2 and 1 divides."""
    factor = 4 // scale
    below, right = (-tile.shape[-2] % factor, -tile.shape[-1] % factor)
    return torch.nn.functional.pad(tile, (0, right, 0, below), mode='replicate') if below or right else tile


def _tiling(net: Any, image: np.ndarray, overlap: int, memory_gb: float, dtype: torch.dtype) -> Tiling:
    """The largest tiles whose predicted memory fits beside the image, its result and a band of tiles."""
    height, width = image.shape[:2]
    per_pixel = _live_bytes(net, _PROBE, dtype) / _PROBE**2
    fixed = _PROCESS_BYTES + image.nbytes * (1 + 2 * net.scale**2)  # the result, and its PNG while it is being written
    band = width * net.scale**2 * 4 * 4 * 1.3  # per row of a tile: three channels and weights, and what is carried over
    tile = 0
    for size in range(_SMALLEST_TILE, 2049, 16):
        if fixed + band * min(size, height) + per_pixel * min(size, height) * min(size, width) <= memory_gb * 1e9:
            tile = size
    if tile <= 2 * overlap:
        needed = (fixed + band * (2 * overlap + 16) + per_pixel * (2 * overlap + 16)**2) / 1e9
        raise BadPicture(f'{width}x{height} pixels need about {needed:.1f} GB, and --memory is {memory_gb:g}')
    return Tiling(tile, overlap)


def _live_bytes(net: Any, size: int, dtype: torch.dtype) -> float:
    """Bytes of tensors that live while a tile is worked on, at their highest, beside the weights."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        fake: dict[str, torch.Tensor] = {name: mode.from_tensor(value) for name, value in net.state_dict().items()}
        tile = torch.rand(1, net.conv_last.out_channels, size, size)
        with LiveBytes([tile, *fake.values()]) as live, autocast(torch.device('cpu'), dtype):
            torch.func.functional_call(net, fake, (tile,))
        return float(live.peak['']) - sum(value.nbytes for value in fake.values())


def _read(path: Path) -> np.ndarray:
    image: Any = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise BadPicture('cannot be read as an image')
    if image.dtype not in (np.uint8, np.uint16):
        raise BadPicture(f'has {image.dtype} values; 8 and 16 bits are possible')
    pixels: np.ndarray = image if image.ndim == 3 else image[..., None]
    return pixels


def _upscaled(run: Any, image: np.ndarray, scale: int, tiling: Tiling, tick: Any) -> np.ndarray:
    """Colours by the network, alpha by bicubic interpolation; grey images are grey again."""
    colours, alpha = (image[..., :-1], image[..., -1]) if image.shape[2] in (2, 4) else (image, None)
    grey = colours.shape[2] == 1
    rgb = np.repeat(colours, 3, 2) if grey else colours[..., ::-1]
    result = upscale(run, rgb, scale, tiling, tick)
    result = result.mean(2, keepdims=True).round().astype(image.dtype) if grey else result[..., ::-1]
    if alpha is not None:
        size = (image.shape[1] * scale, image.shape[0] * scale)
        larger = cv2.resize(alpha, size, interpolation=cv2.INTER_CUBIC)
        result = np.dstack([np.repeat(result, 3, 2) if grey else result, larger])
    return result


def _write(image: np.ndarray, path: Path) -> None:
    done, encoded = cv2.imencode('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not done:
        raise BadPicture('cannot be written as PNG')
    write_atomically(lambda file: file.write(encoded.data), path)
