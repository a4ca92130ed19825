"""Files that are whole or do not exist."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def save_atomically(content: Any, path: Path) -> None:
    """``torch.save`` that a kill or a full disk cannot tear: write beside ``path``, fsync, rename, fsync the folder.

    Raises:
        OSError: if it could not be written; a file that was there before is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        with beside.open('wb') as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except RuntimeError as error:  # torch's zip writer hides a full disk behind one
        raise OSError(f'{path} could not be written: {str(error).splitlines()[0]}') from error
    finally:
        beside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
