"""Images as BasicSR makes, packs and measures them. All are (H, W, 3), blue first, uint8."""
from __future__ import annotations

import hashlib
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import lmdb
import numpy as np
from basicsr.metrics.psnr_ssim import calculate_psnr
from basicsr.utils.matlab_functions import imresize
from PIL import Image
from tqdm import tqdm

from sr_bigbatch.files.names import path_of

SUFFIXES = {'.png', '.jpg', '.jpeg', '.bmp', '.webp', '.tif', '.tiff'}
_COMPRESSION = 1  # of PNG, as in BasicSR's own LMDBs: larger and faster
_LONGEST_KEY = 400  # bytes; LMDB takes 511
_PAGES, _SPARE = 2**14, 2**24  # bytes: what an entry may waste, and the LMDB itself
MOST_PIXELS = 178_956_970
"""Of an image, as Pillow has it: what is larger may be a small file that would fill the memory."""


def bicubic(image: np.ndarray, factor: float) -> np.ndarray:
    """``image`` at ``factor`` times its size, as MATLAB's ``imresize`` makes it: how the field degrades images."""
    resized: np.ndarray = (imresize(image.astype(np.float32) / 255, factor).clip(0, 1) * 255).round().astype(np.uint8)
    return resized


def size_of(file: Path) -> tuple[int, int] | None:
    """Width and height, from the head of an image file, of whatever size; None for what is no image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            with Image.open(file) as image:
                return image.width, image.height
    except Image.DecompressionBombError:  # Pillow says the size in words only
        return MOST_PIXELS, MOST_PIXELS
    except (OSError, ValueError, SyntaxError):
        return None


def psnr(image: np.ndarray, truth: np.ndarray, border: int) -> float:
    """Peak signal-to-noise ratio in dB, without ``border`` pixels at each side."""
    return float(calculate_psnr(image, truth, crop_border=border))


def photographs_of(dataset: Mapping[str, Any]) -> list[Path]:
    """The ground-truth images of a data set in a folder: those of ``meta_info_file``, or all, in order of their names."""
    folder, listing = path_of(dataset['dataroot_gt']), dataset.get('meta_info_file')
    if listing is not None:
        lines = Path(listing).read_text(encoding='utf-8').splitlines()
        return [folder / line.split(' ')[0] for line in lines if line.strip()]
    return sorted(file for file in folder.iterdir()
                  if file.suffix.lower() in SUFFIXES and not file.name.startswith('.') and not file.is_dir())


def make_lmdb(folder: Path) -> Path:
    """Pack the PNG files of ``folder`` into ``folder.lmdb``, in BasicSR's layout; an older LMDB is replaced.

    Raises:
        OSError: if an image cannot be read, or the LMDB not be written.
    """
    target, fresh = folder.with_name(f'{folder.name}.lmdb'), folder.with_name(f'{folder.name}.part.lmdb')
    for old in (fresh, target):
        shutil.rmtree(old, ignore_errors=True)
    files = sorted(folder.glob('*.png'))
    size = 2 * sum(file.stat().st_size for file in files) + len(files) * _PAGES + _SPARE
    with lmdb.open(str(fresh), map_size=size) as environment, environment.begin(write=True) as transaction, \
            (fresh / 'meta_info.txt').open('w', encoding='ascii') as listing:
        for file in tqdm(files, unit='image', desc=target.name):
            image = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_UNCHANGED)
            if image is None:
                raise OSError(f'{file} cannot be read as an image')
            content = cv2.imencode('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, _COMPRESSION])[1]
            transaction.put(lmdb_key(file.stem).encode('ascii'), content.tobytes())
            height, width, channels = (*image.shape, 1)[:3]
            listing.write(f'{lmdb_key(file.stem)}.png ({height},{width},{channels}) {_COMPRESSION}\n')
    os.replace(fresh, target)
    return target


def lmdb_key(name: str) -> str:
    """The key of an image: BasicSR's ends at the first dot and is ASCII, so other characters are written as in addresses."""
    key = quote(name, safe=' ').replace('.', '%2E')
    return key if len(key) <= _LONGEST_KEY else key[:_LONGEST_KEY - 41] + '_' + hashlib.sha1(name.encode()).hexdigest()
