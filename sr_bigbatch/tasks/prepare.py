"""Photographs become sub-images and their low-resolution partners."""
from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from sr_bigbatch.files.outputs import OutputRefused, folded
from sr_bigbatch.hosts.basicsr.images import bicubic

SUFFIXES = {'.png', '.jpg', '.jpeg', '.bmp', '.webp', '.tif', '.tiff'}
BUNDLED_TRAIN = ('astronaut.png', 'coffee.png', 'rocket.jpg', 'motorcycle_left.png', 'motorcycle_right.png')
BUNDLED_VAL = ('chelsea.png',)


@dataclass(frozen=True)
class Cut:
    """How photographs are cut.

    Attributes:
        size: width and height of a sub-image, in pixels, a multiple of ``scale``.
        step: distance of neighbouring sub-images, in pixels.
        scale: size of the ground truth over size of the low-resolution image.
    """

    size: int
    step: int
    scale: int

    def __post_init__(self) -> None:
        if self.scale < 1 or self.size < self.scale or self.size % self.scale:
            raise ValueError(f'the size of sub-images must be a multiple of the scale, got {self.size} and {self.scale}')
        if self.step < 1:
            raise ValueError(f'the step between sub-images must be positive, got {self.step}')


class RefusedImage(ValueError):
    """An image that cannot be used, with the reason."""


def photographs(folder: Path) -> list[Path]:
    """The image files of a folder, in order of their names.

    Raises:
        FileNotFoundError: if it is not a folder or holds no image.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f'there is no folder {folder}')
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise FileNotFoundError(f'{folder} holds no image ({", ".join(sorted(SUFFIXES))})')
    return found


def bundled(names: Iterable[str]) -> list[Path]:
    """Photographs that ship inside scikit-image."""
    import skimage
    return [Path(skimage.__file__).parent / 'data' / name for name in names]


def cut_all(files: list[Path], gt_folder: Path, lq_folder: Path, cut: Cut | None, scale: int, processes: int,
            label: str) -> list[str]:
    """Cut photographs into ``gt_folder`` and ``lq_folder`` in several processes, with a progress bar.

    Photographs that are done already are passed over, so an interrupted call can be repeated. One that has been replaced
    under its name is cut anew.

    Args:
        files: the photographs.
        gt_folder: receives the sub-images as PNG.
        lq_folder: receives their low-resolution partners, under the same names.
        cut: how to cut; None to keep photographs whole (cropped to a multiple of ``scale``).
        scale: size of the ground truth over size of the low-resolution image.
        processes: number of worker processes.
        label: stands before the progress bar.

    Returns:
        A sentence for each photograph that was refused.

    Raises:
        OutputRefused: if images would be written over that this function has not written.
        ValueError: if the folders hold images that were cut in another way.
    """
    refuse_folders_of(files, (gt_folder, lq_folder))
    for folder in (gt_folder, lq_folder):
        folder.mkdir(parents=True, exist_ok=True)
    _refuse_other_cut(gt_folder / '.cut', lq_folder, f'{cut}, scale {scale}')
    files, refused = _distinct(files)
    for reason in refused:
        print(f'left out: {reason}')
    work = partial(_cut_one, gt_folder=gt_folder, lq_folder=lq_folder, cut=cut, scale=scale)
    with ProcessPoolExecutor(max_workers=processes) as pool:
        for reason in tqdm(pool.map(work, files), total=len(files), unit='photo', desc=label):
            if reason:
                tqdm.write(f'left out: {reason}')
                refused.append(reason)
    return refused


def refuse_folders_of(files: Iterable[Path], folders: Iterable[Path]) -> None:
    """Look, before anything is written, whether photographs lie in folders that are written to, by whatever link.

    Raises:
        OutputRefused: if one does.
    """
    homes = {folder for file in files for folder in (file.parent, file.resolve().parent)}
    for folder in folders:
        if folder.exists() and any(home.samefile(folder) for home in homes):
            raise OutputRefused(f'{folder} would be written to, and photographs are read from it: choose another --out')


def _refuse_other_cut(record: Path, lq_folder: Path, now: str) -> None:
    if not record.exists():
        for folder in (record.parent, lq_folder):
            if next(folder.glob('*.png'), None) is not None:
                raise OutputRefused(f'{folder} holds images that are not from here: choose another --out')
    elif record.read_text() != now:
        raise ValueError(f'{record.parent} holds images cut as {record.read_text()}, not as {now}: choose another output '
                         'folder, or remove it')
    record.write_text(now)


def _distinct(files: list[Path]) -> tuple[list[Path], list[str]]:
    """Files whose names differ before the suffix, and a sentence for each other: their sub-images would collide."""
    first: dict[str, Path] = {}
    refused = []
    for file in files:
        if first.setdefault(folded(file.stem), file) is not file:
            refused.append(f'{file} has the name of {first[folded(file.stem)]}')
    return list(first.values()), refused


def _cut_one(file: Path, gt_folder: Path, lq_folder: Path, cut: Cut | None, scale: int) -> str | None:
    cv2.setNumThreads(1)
    done, number, folders = gt_folder / f'.{file.name}.done', 0, (gt_folder, lq_folder)
    try:
        content = file.read_bytes()
    except OSError:
        return f'{file} cannot be read as an image'
    digest = hashlib.sha256(content).hexdigest()
    if done.exists() and done.read_text() == digest:
        return None
    done.unlink(missing_ok=True)
    try:
        for number, part in enumerate(_parts(_decoded(content, file), file, cut, scale), 1):
            name = _name(file, number, cut)
            _write(gt_folder / name, part)
            _write(lq_folder / name, bicubic(part, 1 / scale))
        _remove_from(number + 1, file, folders, cut)
        done.write_text(digest)
    except RefusedImage as error:
        _remove_from(1, file, folders, cut)
        return str(error)
    return None


def _name(file: Path, number: int, cut: Cut | None) -> str:
    return f'{file.stem}_s{number:03d}.png' if cut else f'{file.stem}.png'


def _remove_from(number: int, file: Path, folders: Iterable[Path], cut: Cut | None) -> None:
    """Remove what an earlier photograph of this name has left; the last one first, so that a kill leaves no gap."""
    numbers = itertools.count(number) if cut else range(number, 2)
    parts = [[folder / _name(file, each, cut) for folder in folders] for each in itertools.takewhile(
        lambda each: any((folder / _name(file, each, cut)).exists() for folder in folders), numbers)]
    for paths in reversed(parts):
        for path in paths:
            path.unlink(missing_ok=True)


def _decoded(content: bytes, file: Path) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        image = None
    if image is None:
        raise RefusedImage(f'{file} cannot be read as an image')
    return np.asarray(image)


def _parts(image: np.ndarray, file: Path, cut: Cut | None, scale: int) -> Iterator[np.ndarray]:
    height, width = image.shape[:2]
    smallest = cut.size if cut else scale
    if min(height, width) < smallest:
        raise RefusedImage(f'{file} has {width}x{height} pixels, less than {smallest}x{smallest}')
    if cut is None:
        yield image[:height - height % scale, :width - width % scale]
        return
    for top in _starts(height, cut):
        for left in _starts(width, cut):
            yield image[top:top + cut.size, left:left + cut.size]


def _starts(length: int, cut: Cut) -> list[int]:
    starts = list(range(0, length - cut.size + 1, cut.step))
    return starts if starts[-1] == length - cut.size else [*starts, length - cut.size]


def _write(target: Path, image: np.ndarray) -> None:
    # A sibling, then a rename: a torn file must never pass for a finished one.
    encoded = cv2.imencode('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, 3])[1]
    partial_file = target.with_name(f'.{target.name}.part')
    partial_file.write_bytes(encoded.tobytes())
    os.replace(partial_file, target)
