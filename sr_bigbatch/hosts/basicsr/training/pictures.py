"""Pictures of a finished run: its curves, and bicubic | ours | ground truth of a validation photograph."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from basicsr.utils import tensor2img
from torch import Tensor

from sr_bigbatch.hosts.basicsr.images import bicubic, psnr
from sr_bigbatch.report.pictures import draw_comparison, draw_curves
from sr_bigbatch.report.run_log import LOG_FILE


def validation_picture(model: Any, val_loader: Any, scale: int) -> np.ndarray | None:
    """Bicubic, ours and, where there is one, the ground truth of the first validation image, side by side.

    Returns:
        (H, W, 3), red first, uint8; None for an empty validation set.
    """
    sample = next(iter(val_loader), None)
    if sample is None:
        return None
    model.feed_data(sample)
    model.test()
    visuals = model.get_current_visuals()
    for name in {'lq', 'gt', 'output'} & set(vars(model)):  # as BasicSR's own validation does: they may be large
        delattr(model, name)
    shown = [bicubic(_coloured(visuals['lq']), scale),
             *(_coloured(visuals[name]) for name in ('result', 'gt') if name in visuals)]
    height = min(len(image) for image in shown)  # of a ground truth that is no multiple of the scale
    picture: np.ndarray = np.concatenate([image[:height] for image in shown], 1)[..., ::-1]
    return picture


def _coloured(image: Tensor) -> np.ndarray:
    """(H, W, 3), blue first, uint8, of an image in grey or colour."""
    pixels: np.ndarray = tensor2img([image])
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2)


def draw_run(model: Any, val_loader: Any, folder: Path, scale: int) -> list[Path]:
    """Draw ``curves.png`` and ``comparison.png`` into the experiment's folder; returns their paths."""
    drawn = [draw_curves(folder / LOG_FILE, folder / 'curves.png')]
    sample = next(iter(val_loader))
    if 'gt' in sample:
        model.feed_data(sample)
        model.test()
        visuals = model.get_current_visuals()
        low, ours, truth = (_coloured(visuals[name]) for name in ('lq', 'result', 'gt'))
        images = {f'{name}, {psnr(image, truth, scale):.2f} dB': image
                  for name, image in (('bicubic', bicubic(low, scale)), ('ours', ours))}
        drawn.append(draw_comparison({**images, 'ground truth': truth}, folder / 'comparison.png'))
    return drawn
