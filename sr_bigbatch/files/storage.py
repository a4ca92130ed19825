"""Files that are whole or do not exist, and that hold tensors and nothing that runs."""
from __future__ import annotations

import os
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from sr_bigbatch.system import sync

_TORN = (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, IndexError, TypeError, UnicodeDecodeError)


class BadFile(ValueError):
    """A file that is torn, foreign or hostile; the message names it and says what is wrong."""


@contextmanager
def beside(path: Path, ending: str = '.part') -> Iterator[Path]:
    """Where to write a file that a kill or a full disk cannot tear; at the end: fsync, rename, fsync the folder.

    Args:
        path: where the file is to be.
        ending: of the name to write to, for libraries that look at it.

    Raises:
        OSError: if it could not be written; a file that was there before is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}.{os.getpid()}{ending}')
    try:
        yield part
        sync(part)
        os.replace(part, path)
    except RuntimeError as error:  # torch's zip writer hides a full disk behind one
        raise OSError(f'{path} could not be written: {str(error).splitlines()[0]}') from error
    finally:
        part.unlink(missing_ok=True)
    sync(path.parent)


def write_atomically(write: Callable[[BinaryIO], Any], path: Path) -> None:
    """Let ``write`` fill an open file, see :func:`beside`.

    Raises:
        OSError: if it could not be written; a file that was there before is still there.
    """
    with beside(path) as part, part.open('wb') as file:
        write(file)


def save_atomically(content: Any, path: Path) -> None:
    """``torch.save`` by :func:`write_atomically`."""
    write_atomically(lambda file: torch.save(content, file), path)


def load_tensors(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU: tensors and plain values; ``.safetensors`` is read under the key ``params``.

    Raises:
        BadFile: if it is torn, no checkpoint, or asks for code.
    """
    if not path.is_file():
        raise BadFile(f'there is no file {path}')
    try:
        if path.suffix == '.safetensors':
            from safetensors.torch import load_file
            return {'params': load_file(path)}
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of other pickle protocols; what matters is said below
            content = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise BadFile(f'{path} is not read, because it {_what_it_wants(str(error))}') from None
    except _TORN as error:
        raise BadFile(f'{path} is torn or no checkpoint ({type(error).__name__})') from None
    except Exception as error:  # safetensors has errors of its own
        raise BadFile(f'{path} is torn or no checkpoint ({str(error).splitlines()[0]})') from None
    if not isinstance(content, dict):
        raise BadFile(f'{path} holds a {type(content).__name__}, and a checkpoint is a dict')
    return content


def _what_it_wants(message: str) -> str:
    found = re.search(r'(?:GLOBAL|class|function)\s+([\w.]+)', message)
    if found:
        return (f'asks for {found[1]}, which no checkpoint of weights needs: it would run code of whoever made it. Get the '
                'weights in another format (safetensors)')
    return 'holds more than tensors and plain values, or is torn'
