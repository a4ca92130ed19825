"""Images as BasicSR makes, packs and measures them. All are (H, W, 3), blue first, uint8."""
from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from basicsr.metrics.psnr_ssim import calculate_psnr
from basicsr.utils.lmdb_util import make_lmdb_from_imgs
from basicsr.utils.matlab_functions import imresize


def bicubic(image: np.ndarray, factor: float) -> np.ndarray:
    """``image`` at ``factor`` times its size, as MATLAB's ``imresize`` makes it: how the field degrades images."""
    resized: np.ndarray = (imresize(image.astype(np.float32) / 255, factor).clip(0, 1) * 255).round().astype(np.uint8)
    return resized


def psnr(image: np.ndarray, truth: np.ndarray, border: int) -> float:
    """Peak signal-to-noise ratio in dB, without ``border`` pixels at each side."""
    return float(calculate_psnr(image, truth, crop_border=border))


def make_lmdb(folder: Path) -> Path:
    """Pack the PNG files of ``folder`` into ``folder.lmdb``, in BasicSR's layout; an older LMDB is replaced."""
    target, fresh = folder.with_suffix('.lmdb'), folder.with_name(f'{folder.name}.part.lmdb')
    for old in (fresh, target):
        shutil.rmtree(old, ignore_errors=True)
    names = sorted(path.name for path in folder.glob('*.png'))
    make_lmdb_from_imgs(str(folder), str(fresh), names, [Path(name).stem for name in names])
    os.replace(fresh, target)
    return target
