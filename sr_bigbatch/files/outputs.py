"""Files that a program writes beside those of its user: never over what it reads, and over others only if it is told."""
from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

_SHOWN = 3


class OutputRefused(ValueError):
    """A file would be written over another one; the message names them and says what to do."""


def refuse_outputs(inputs: Iterable[Path], outputs: Iterable[Path], *, overwrite: bool) -> None:
    """Look, before anything is written, whether something is in the place of an output.

    Args:
        inputs: files that are read. They are never written over, whatever name or link leads to them.
        outputs: files to be written.
        overwrite: whether other files may be written over.

    Raises:
        OutputRefused: if an output is an input, or is there already and ``overwrite`` is false.
    """
    there, read = [path for path in outputs if os.path.lexists(path)], {_identity(path) for path in inputs} - {None}
    own = [path for path in there if _identity(path) in read]
    if own:
        raise OutputRefused(f'{_names(own)} would be written over, which this program reads: choose another place')
    if there and not overwrite:
        raise OutputRefused(f'{_names(there)} would be written over: choose another place, or give --overwrite')


def _identity(path: Path) -> tuple[int, int] | None:
    """What is the same for all names of a file."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def _names(paths: Sequence[Path]) -> str:
    more = f' and {len(paths) - _SHOWN} more' if len(paths) > _SHOWN else ''
    return ', '.join(map(str, paths[:_SHOWN])) + more


def folded(name: str) -> str:
    """A name as file systems compare it that know no case, or one form of accents only: macOS's and Windows'."""
    return unicodedata.normalize('NFC', unicodedata.normalize('NFC', name).casefold())


def distinct_stems(files: Sequence[Path], ending: str) -> list[str]:
    """A name for the result of each file, all different on every file system.

    Args:
        files: which are read. Where the stem of a file is not its own, its suffix becomes part of the name, then a number.
        ending: of all names, the suffix included.
    """
    stems, taken, names = Counter(folded(file.stem) for file in files), set[str](), list[str]()
    alone = {folded(file.stem) for file in files if stems[folded(file.stem)] == 1}
    for file in files:
        own = folded(file.stem) in alone
        wanted = file.stem if own else f'{file.stem}_{file.suffix[1:]}'
        name, number = wanted, 1
        while folded(name) in taken or (not own and folded(name) in alone):
            number += 1
            name = f'{wanted}_{number}'
        taken.add(folded(name))
        names.append(f'{name}{ending}')
    return names
