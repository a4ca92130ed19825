"""What a folder of images holds, in a few characters: cheap enough to be told in every save."""
from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

_CHARACTERS = 16
_CHANGES_WHEN_READ = 'lock.mdb'


def listing(path: Path) -> dict[str, int | str]:
    """The number of files in a folder, and digests of their names, their sizes and the times at which they were written.

    Hidden files and folders do not count, and no file is opened. A file instead of a folder counts as one that holds itself.

    Raises:
        OSError: if it cannot be read.
    """
    entries = [(path.name, path.stat())] if path.is_file() else [
        (entry.name, entry.stat()) for entry in sorted(os.scandir(path), key=lambda entry: entry.name)
        if not entry.name.startswith('.') and entry.name != _CHANGES_WHEN_READ and entry.is_file()]
    return {'files': len(entries), 'names': _digest(name for name, _ in entries),
            'sizes': _digest(stat.st_size for _, stat in entries), 'times': _digest(stat.st_mtime_ns for _, stat in entries)}


def _digest(values: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(f'{value}\n'.encode(errors='surrogateescape'))
    return digest.hexdigest()[:_CHARACTERS]
