"""Photographs become sub-images and their low-resolution partners."""
from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from sr_bigbatch.files.outputs import OutputRefused, folded
from sr_bigbatch.hosts.basicsr.images import MOST_PIXELS, bicubic, size_of
from sr_bigbatch.system import leave_signals_to_parent

BUNDLED_TRAIN = ('astronaut.png', 'coffee.png', 'rocket.jpg', 'motorcycle_left.png', 'motorcycle_right.png')
BUNDLED_VAL = ('chelsea.png',)
_FORMER_RECORD = re.compile(r'(?:Cut\(size=(\d+), step=(\d+), scale=\d+\)|None), scale (\d+)')  # up to version 0.1.0


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


def bundled(names: Iterable[str]) -> list[Path]:
    """Photographs that ship inside scikit-image."""
    import skimage
    return [Path(skimage.__file__).parent / 'data' / name for name in names]


class _Outcome(NamedTuple):
    """Of a photograph: why it was refused, if it was, and what of it is not in the sub-images."""

    refused: str | None = None
    deep: bool = False
    transparent: bool = False


def cut_all(files: list[Path], gt_folder: Path, lq_folder: Path, cut: Cut | None, scale: int, processes: int,
            label: str, root: Path | None = None) -> list[str]:
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
        root: a folder; the names of its subfolders become part of the names of the sub-images.

    Returns:
        A sentence for each photograph that was refused.

    Raises:
        OutputRefused: if images would be written over that this function has not written.
        ValueError: if the folders hold images that were cut in another way.
        OSError: if a sub-image could not be written.
    """
    refuse_folders_of(files, (gt_folder, lq_folder))
    for folder in (gt_folder, lq_folder):
        folder.mkdir(parents=True, exist_ok=True)
    _refuse_other_cut(gt_folder / '.cut', lq_folder, cut, scale)
    named, refused = _distinct(files, root)
    for reason in refused:
        print(f'left out: {reason}')
    work = partial(_cut_one, gt_folder=gt_folder, lq_folder=lq_folder, cut=cut, scale=scale)
    outcomes = []
    pool = ProcessPoolExecutor(max_workers=processes, initializer=leave_signals_to_parent)
    try:
        for outcome in tqdm(pool.map(work, named.values(), named), total=len(named), unit='photo', desc=label):
            outcomes.append(outcome)
            if outcome.refused:
                tqdm.write(f'left out: {outcome.refused}')
                refused.append(outcome.refused)
    finally:
        pool.shutdown(cancel_futures=True)  # whoever interrupts waits for the photographs that are under way alone
    for line in _lost(outcomes, label):
        print(line)
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


def _lost(outcomes: list[_Outcome], label: str) -> Iterator[str]:
    usable = sum(not outcome.refused for outcome in outcomes)
    deep, transparent = sum(outcome.deep for outcome in outcomes), sum(outcome.transparent for outcome in outcomes)
    if deep:
        yield f'{label}: {deep} of {usable} photographs have 16 bits a channel; their sub-images have 8'
    if transparent:
        yield f'{label}: {transparent} of {usable} photographs have transparent parts (alpha); it is left out'


def _refuse_other_cut(record: Path, lq_folder: Path, cut: Cut | None, scale: int) -> None:
    now = _in_words(cut.size, cut.step, scale) if cut else _in_words(None, None, scale)
    if not record.exists():
        for folder in (record.parent, lq_folder):
            if next(folder.glob('*.png'), None) is not None:
                raise OutputRefused(f'{folder} holds images that are not from here: choose another --out')
    else:
        former = _FORMER_RECORD.fullmatch(record.read_text(encoding='utf-8'))
        before = _in_words(*former.groups()) if former else record.read_text(encoding='utf-8')
        if before != now:
            raise ValueError(f'{record.parent} holds {before}, and {now} are asked for: choose another output '
                             'folder, or remove it')
    record.write_text(now, encoding='utf-8')


def _in_words(size: int | str | None, step: int | str | None, scale: int | str) -> str:
    if size is None:
        return f'whole photographs at scale {scale}'
    return f'sub-images of {size} px every {step} px at scale {scale}'


def _distinct(files: list[Path], root: Path | None) -> tuple[dict[str, Path], list[str]]:
    """Files by the names of their sub-images, and a sentence for each whose sub-images would collide with others."""
    named, first, refused = dict[str, Path](), dict[str, Path](), []
    for file in files:
        name = '_'.join(file.with_suffix('').relative_to(root).parts) if root else file.stem
        if first.setdefault(folded(name), file) is file:
            named[name] = file
        else:
            refused.append(f'{file} has the name of {first[folded(name)]}')
    return named, refused


def _cut_one(file: Path, name: str, gt_folder: Path, lq_folder: Path, cut: Cut | None, scale: int) -> _Outcome:
    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # what cannot be read is told below
    done, number, folders = gt_folder / f'.{name}{file.suffix}.done', 0, (gt_folder, lq_folder)
    try:
        content = file.read_bytes()
    except OSError:
        return _Outcome(f'{file} cannot be read as an image')
    digest = hashlib.sha256(content).hexdigest()
    if done.exists() and done.read_text(encoding='utf-8') == digest:
        return _Outcome()
    done.unlink(missing_ok=True)
    try:
        image, deep, transparent = _read(content, file)
        for number, part in enumerate(_parts(image, file, cut, scale), 1):
            target = _sub_image(name, number, cut)
            _write(gt_folder / target, part)
            _write(lq_folder / target, bicubic(part, 1 / scale))
        _remove_from(number + 1, name, folders, cut)
        done.write_text(digest, encoding='utf-8')
    except RefusedImage as error:
        _remove_from(1, name, folders, cut)
        return _Outcome(str(error))
    return _Outcome(None, deep, transparent)


def _sub_image(name: str, number: int, cut: Cut | None) -> str:
    return f'{name}_s{number:03d}.png' if cut else f'{name}.png'


def _remove_from(number: int, name: str, folders: Iterable[Path], cut: Cut | None) -> None:
    """Remove what an earlier photograph of this name has left; the last one first, so that a kill leaves no gap."""
    numbers = itertools.count(number) if cut else range(number, 2)
    parts = [[folder / _sub_image(name, each, cut) for folder in folders] for each in itertools.takewhile(
        lambda each: any((folder / _sub_image(name, each, cut)).exists() for folder in folders), numbers)]
    for paths in reversed(parts):
        for path in paths:
            path.unlink(missing_ok=True)


def _read(content: bytes, file: Path) -> tuple[np.ndarray, bool, bool]:
    """An image in 8 bits and three colours, turned as its EXIF data say; had it 16 bits? Had it alpha?"""
    size = size_of(file)
    if size is not None and size[0] * size[1] > MOST_PIXELS:
        raise RefusedImage(f'{file} has more than {MOST_PIXELS:,} pixels')
    whole = _decoded(content, file, cv2.IMREAD_UNCHANGED)
    if whole.dtype not in (np.uint8, np.uint16):
        raise RefusedImage(f'{file} has {whole.dtype} values; 8 and 16 bits are possible')
    alpha = whole[..., -1] if whole.ndim == 3 and whole.shape[2] in (2, 4) else None
    transparent = alpha is not None and bool((alpha < np.iinfo(whole.dtype).max).any())
    return _decoded(content, file, cv2.IMREAD_COLOR), whole.dtype == np.uint16, transparent


def _decoded(content: bytes, file: Path, flags: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
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
    try:
        partial_file.write_bytes(encoded.tobytes())
        os.replace(partial_file, target)
    finally:
        partial_file.unlink(missing_ok=True)
