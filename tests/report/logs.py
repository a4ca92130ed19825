"""Logs of runs, made up, as trainings write them."""
import json

import cv2
import numpy as np
from matplotlib.text import Text


def write_run(folder, total=40, batch=32, sets=('city', 'trees'), border=None, later_batch=None, **more):
    """``train_log.jsonl`` of a run, with losses that differ by decades, and two validation images."""
    records = []
    for iteration in range(0, total + 1, 4):
        if iteration:
            late = border is not None and iteration > border
            records.append({
                'iter': iteration, 'epoch': 0, 'lr': 1e-3, 'l_g_pix': 0.1 / iteration, 'l_g_percep': 3.0, 'l_g_gan': 0.005,
                'l_d_real': 0.6, 'l_d_fake': 0.7, 'out_d_real': 1.0, 'out_d_fake': -1.0, 'images_per_s': 9.0, 'peak_gb': 1.0,
                'batch': later_batch if late and later_batch else batch, 'gt_size': 64 if late else 32, **more})
        if iteration % 8 == 0:
            records += [{'iter': iteration, 'val': name, 'psnr': 20.0 + number + iteration / batch, 'niqe': 5.0 - number}
                        for number, name in enumerate(sets)]
    records.append({'iter': 12, 'event': 'out of memory', 'part': 'generator', 'text': 'made up'})
    folder.mkdir(parents=True)
    (folder / 'train_log.jsonl').write_text('\n'.join(map(json.dumps, records)) + '\n')
    for iteration in range(0, total + 1, 8):
        image = folder / 'visualization' / 'photo' / f'photo_{iteration}.png'
        image.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(image), np.full((150, 300, 3), iteration % 256, np.uint8))
    return folder


def panels(figure):
    """The axes of a figure with curves, by their title."""
    return {axis.get_title(): axis for axis in figure.get_axes() if axis.lines}


def smallest_text(figure, dpi):
    """Height in pixels of the smallest text of a drawn figure."""
    figure.canvas.draw()
    shown = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    return min(text.get_fontsize() for text in shown) * dpi / 72


def ticks(axis):
    """The numbers beside an axis, major and minor."""
    return [label.get_text() for label in (*axis.get_ticklabels(), *axis.get_ticklabels(minor=True)) if label.get_text()]
