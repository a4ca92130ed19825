"""Upscales photographs of any size, depth and number of channels, in bounded memory."""
from __future__ import annotations

import glob
import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from tqdm import tqdm

from sr_bigbatch.files.names import path_of
from sr_bigbatch.files.outputs import distinct_stems, refuse_outputs
from sr_bigbatch.files.storage import beside
from sr_bigbatch.hosts.basicsr.images import MOST_PIXELS, SUFFIXES, size_of
from sr_bigbatch.hosts.mmengine.optim_wrapper import DTYPES
from sr_bigbatch.memory.live_bytes import LiveBytes
from sr_bigbatch.nets.restore import restore
from sr_bigbatch.nets.tail_in_strips import TailInStrips
from sr_bigbatch.nets.tiling import Tiling, upscale
from sr_bigbatch.step.precision import autocast

_PROBES = 128, 256  # pixels
_LARGEST_TILE = 2048
_PROCESS_BYTES = 450e6  # Python, torch and OpenCV themselves
_SPARE = 1.05  # for what allocators do not give back


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
        path = path_of(pattern)
        named = [path] if path.is_file() else map(Path, glob.glob(pattern))
        files = sorted(path.iterdir() if path.is_dir() else named)
        images = [file for file in files if file.suffix.lower() in SUFFIXES]
        if not images:
            raise BadPicture(f'{pattern}: there is no image')
        found += images
    return list({file.absolute(): file for file in found}.values())  # each once, however often it was named


def jobs(files: Sequence[Path], weights: Path, out: Path, suffix: str, *, overwrite: bool) -> list[Job]:
    """What is to be read and written: results in one folder, under names of their own.

    Args:
        files: the images.
        weights: are read, too.
        out: the folder.
        suffix: added to the names.
        overwrite: whether files may be written over that are none of these.

    Raises:
        OutputRefused: if a file would be written over that must stay.
        ValueError: if the folder is a file, or the suffix leads into another folder.
    """
    if Path(f'x{suffix}').name != f'x{suffix}' or '\0' in suffix:
        raise ValueError(f'--suffix must be a part of a name, got {suffix!r}')
    if out.exists() and not out.is_dir():
        raise ValueError(f'{out} is a file, and --out must be a folder')
    targets = [out / name for name in distinct_stems(files, f'{suffix}.png')]
    refuse_outputs([*files, weights], targets, overwrite=overwrite)
    return [Job(file, target) for file, target in zip(files, targets, strict=True)]


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
    _network.cache_clear()
    _network(weights)  # before any process is started: is it one?
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
        strips = _network(weights)
        net, device = strips.net, next(strips.parameters()).device
        tiling = tiling or _tiling(strips, image, overlap, memory_gb, DTYPES[dtype])

        def run(tile: torch.Tensor) -> torch.Tensor:
            with autocast(device, DTYPES[dtype]):
                output: torch.Tensor = strips(_padded(tile.flip(1).to(device), net.scale))  # OpenCV has blue first
            return output[..., :tile.shape[-2] * net.scale, :tile.shape[-1] * net.scale].flip(1)

        rows, columns = (len(tiling.spans(length)) for length in image.shape[:2])
        with tqdm(total=rows * columns, unit='tile', desc=job.source.name, disable=quiet) as bar:
            _write(_upscaled(run, image, net.scale, tiling, bar.update), job.target)
    except (BadPicture, OSError, cv2.error) as error:
        return f'{job.source}: {error}'
    return None


@lru_cache(maxsize=1)
def _network(weights: Path) -> TailInStrips:
    """The network of a file, read once for all images of a process."""
    strips = TailInStrips(restore(weights))
    strips.to('cuda' if torch.cuda.is_available() else 'cpu', memory_format=torch.channels_last)  # type: ignore[call-overload]
    return strips


def _padded(tile: torch.Tensor, scale: int) -> torch.Tensor:
    """A tile whose sides the pixel unshuffle of scales 2 and 1 divides."""
    factor = 4 // scale
    below, right = (-tile.shape[-2] % factor, -tile.shape[-1] % factor)
    return torch.nn.functional.pad(tile, (0, right, 0, below), mode='replicate') if below or right else tile


def _tiling(strips: TailInStrips, image: np.ndarray, overlap: int, memory_gb: float, dtype: torch.dtype) -> Tiling:
    """The largest tiles whose predicted memory fits beside the image, its result and a band of tiles."""
    height, width, channels = image.shape
    scale = strips.net.scale
    enlarged = height * width * scale**2 * image.itemsize
    fixed = _PROCESS_BYTES + image.nbytes + enlarged * (3 if channels == 3 else 4 + 2 * channels)
    fixed += 2 * sum(parameter.nbytes for parameter in strips.parameters())  # while they are read
    row = width * scale**2 * 3 * 4  # of a band of float32 colours
    small, large = (_live_bytes(strips, size, dtype) for size in _PROBES)
    pixel = (large - small) / (_PROBES[1]**2 - _PROBES[0]**2)
    fixed += max(0.0, large - pixel * _PROBES[1]**2)
    pixel = max(pixel, 12 * 4 * scale**2)  # a tile's colours, those that OpenCV wants, and its share of the result

    def needed(size: int) -> float:
        band, tile = min(size, height) + overlap, min(size, height) * min(size, width)
        return float(_SPARE * (fixed + row * band + pixel * tile) / 1e9)

    smallest = 2 * overlap + 16
    if needed(smallest) > memory_gb:
        raise BadPicture(f'{width}x{height} pixels need about {needed(smallest):.1f} GB with an overlap of {overlap}, and '
                         f'--memory is {memory_gb:g}')
    return Tiling(max(size for size in range(smallest, _LARGEST_TILE, 16) if needed(size) <= memory_gb), overlap)


@lru_cache(maxsize=len(_PROBES))
def _live_bytes(strips: TailInStrips, size: int, dtype: torch.dtype) -> int:
    """Bytes of tensors that live while a tile is worked on, at their highest, beside the weights."""
    device = next(strips.parameters()).device
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        fake: dict[str, torch.Tensor] = {name: mode.from_tensor(value) for name, value in strips.state_dict().items()}
        tile = torch.rand(1, strips.net.conv_last.out_channels, size, size, device=device)
        with LiveBytes([tile, *fake.values()]) as live, autocast(device, dtype):
            torch.func.functional_call(strips, fake, (tile,))
        return int(live.peak['']) - sum(value.nbytes for value in fake.values())


def _read(path: Path) -> np.ndarray:
    size = size_of(path)
    if size is not None and size[0] * size[1] > MOST_PIXELS:
        raise BadPicture(f'has more than {MOST_PIXELS:,} pixels')
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
    result = upscale(run, np.repeat(colours, 3, 2) if grey else colours, scale, tiling, tick)
    if grey:
        result = result.mean(2, keepdims=True).round().astype(image.dtype)
    if alpha is not None:
        size = (image.shape[1] * scale, image.shape[0] * scale)
        larger = cv2.resize(alpha, size, interpolation=cv2.INTER_CUBIC)
        result = np.dstack([np.repeat(result, 3, 2) if grey else result, larger])
    return result


def _write(image: np.ndarray, path: Path) -> None:
    with beside(path, '.part.png') as part:
        if not cv2.imwrite(str(part), image, [cv2.IMWRITE_PNG_COMPRESSION, 3]):  # to the file: no copy in memory
            raise BadPicture(f'{path} could not be written')
