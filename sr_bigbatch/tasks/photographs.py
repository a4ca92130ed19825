"""Finds the photographs of a folder, and tells what in it is none."""
from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sr_bigbatch.hosts.basicsr.images import SUFFIXES

_OTHER_IMAGES = {'.gif', '.heic', '.heif', '.avif', '.jxl', '.jp2', '.svg', '.psd', '.raw', '.dng', '.cr2', '.cr3', '.nef',
                 '.arw', '.orf', '.rw2', '.raf'}


@dataclass
class Found:
    """What is in a folder.

    Attributes:
        photographs: the image files, in order of their names.
        notes: a sentence for each kind of thing that is left out, with numbers.
    """

    photographs: list[Path]
    notes: list[str] = field(default_factory=list)


def look(folder: Path, recursive: bool = False) -> Found:
    """Look for photographs in a folder and, where ``recursive``, in its subfolders and in folders that it links to.

    Raises:
        FileNotFoundError: if it is not a folder or holds no image that can be read; the message says what it holds.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f'there is no folder {folder}')
    files, subfolders = _listed(folder)
    if recursive:
        files += [file for inside in _inside(subfolders, {folder.resolve()}) for file in _listed(inside)[0]]
    found = Found(sorted(file for file in files if file.suffix.lower() in SUFFIXES))
    found.notes += _not_read(file.suffix.lower() for file in files)
    if subfolders and not recursive:
        found.notes += _not_entered(subfolders, {folder.resolve()})
    if not found.photographs:
        raise FileNotFoundError('. '.join([f'{folder} holds no image ({", ".join(sorted(SUFFIXES))})', *found.notes]))
    return found


def _listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files and folders; hidden ones, which are those of other programs, count as none."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith('.'))
    folders = [entry for entry in entries if entry.is_dir()]
    return [entry for entry in entries if entry not in set(folders)], folders


def _inside(folders: list[Path], seen: set[Path]) -> Iterator[Path]:
    """These folders and all below them, each once, though links may lead in a circle."""
    for folder in folders:
        if folder.resolve() not in seen and os.access(folder, os.R_OK | os.X_OK):
            seen.add(folder.resolve())
            yield folder
            yield from _inside(_listed(folder)[1], seen)


def _not_read(suffixes: Iterable[str]) -> Iterator[str]:
    counts = Counter(suffix for suffix in suffixes if suffix not in SUFFIXES)
    images = {suffix: count for suffix, count in counts.items() if suffix in _OTHER_IMAGES}
    others = {suffix or 'without suffix': count for suffix, count in counts.items() if suffix not in _OTHER_IMAGES}
    if images:
        yield f'{_count(images, "image")} of formats that are not read ({_each(images)}): save them as PNG or JPEG'
    if others:
        yield f'{_count(others, "other file")} ({_each(others)})'


def _not_entered(folders: list[Path], seen: set[Path]) -> Iterator[str]:
    linked = [folder for folder in folders if folder.is_symlink()]
    for kind, those in (('subfolder', [folder for folder in folders if folder not in linked]), ('linked folder', linked)):
        images = sum(file.suffix.lower() in SUFFIXES for inside in _inside(those, seen) for file in _listed(inside)[0])
        if those:
            names = ', '.join(folder.name for folder in those[:3]) + (' ...' if len(those) > 3 else '')
            yield f'{_plural(len(those), kind)} with {_plural(images, "image")} ({names}): --recursive takes them, too'


def _count(counts: dict[str, int], what: str) -> str:
    return _plural(sum(counts.values()), what)


def _plural(number: int, what: str) -> str:
    return f'{number} {what}{"" if number == 1 else "s"}'


def _each(counts: dict[str, int]) -> str:
    return ', '.join(f'{count} {suffix}' for suffix, count in sorted(counts.items()))
