"""Names that a file system takes as one component of a path, on Linux, macOS and Windows alike."""
from __future__ import annotations

import os
from pathlib import Path

_RESERVED = set('<>:"/\\|?*')
_DEVICES = {'con', 'prn', 'aux', 'nul', *(f'{port}{number}' for port in ('com', 'lpt') for number in range(1, 10))}
_MOST_BYTES = 200  # file systems take 255; log files and archived folders have a date and more around the name


def fault_of_name(name: object) -> str | None:
    """Why a value cannot be the name of a folder, as the end of a sentence that begins with it; None if it can.

    Args:
        name: of any type, as options hold it.
    """
    if not isinstance(name, str):
        return f'must be text: write it in quotation marks, as "{name}"'
    if not name.strip(' .'):
        return 'must name a folder of its own'
    odd = sorted({letter for letter in name if letter in _RESERVED or not letter.isprintable()})
    if odd:
        return f'must be the name of one folder, without {" ".join(map(repr, odd))}'
    if name != name.strip() or name.endswith('.'):
        return 'must not begin or end with a space, nor end with a dot: Windows would leave it out'
    if name.split('.')[0].strip().lower() in _DEVICES:
        return 'must not be the name of a device of Windows'
    if len(name.encode()) > _MOST_BYTES:
        return f'must not be longer than {_MOST_BYTES} bytes'
    return None


def path_of(text: str | Path) -> Path:
    """A path that somebody has written: ``~`` is the home folder; ``~name`` stays as it is where nobody has that name."""
    return Path(os.path.expanduser(text))
