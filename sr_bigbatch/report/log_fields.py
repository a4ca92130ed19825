"""What stands in ``train_log.jsonl``: each field with its meaning and unit, for the docs and the pictures."""
from __future__ import annotations

from dataclasses import dataclass

from sr_bigbatch.step.report import KINDS


@dataclass(frozen=True)
class LogField:
    """A field of a record of the log.

    Attributes:
        name: its key, or how its keys begin where it ends with an asterisk.
        unit: of its value.
        meaning: in a few words.
    """

    name: str
    unit: str
    meaning: str


_COUNTERS = ', '.join(f'`n_{kind.replace(" ", "_")}`' for kind in KINDS)

TRAINING = (
    LogField('iter', 'iterations', 'the iteration, counted from 1; one iteration is one update with an effective batch'),
    LogField('epoch', 'epochs', 'how often all images have been shown, counted from 0'),
    LogField('lr', 'none', 'learning rate of the generator'),
    LogField('lr_d', 'none', 'learning rate of the discriminator'),
    LogField('l_g_pix', 'none', 'pixel loss of the generator, with its weight, over the whole batch of all processes'),
    LogField('l_g_percep', 'none', 'perceptual loss of the generator, likewise'),
    LogField('l_g_style', 'none', 'style loss of the generator, likewise'),
    LogField('l_g_ldl', 'none', 'artifact loss of the generator, likewise'),
    LogField('l_g_gan', 'none', 'GAN loss of the generator, likewise'),
    LogField('l_pix', 'none', 'pixel loss of a training without a discriminator'),
    LogField('l_percep', 'none', 'perceptual loss of a training without a discriminator'),
    LogField('l_style', 'none', 'style loss of a training without a discriminator'),
    LogField('l_d_real', 'none', 'GAN loss of the discriminator for real images'),
    LogField('l_d_fake', 'none', 'GAN loss of the discriminator for generated images'),
    LogField('out_d_real', 'logits', 'mean logit of the discriminator for real images'),
    LogField('out_d_fake', 'logits', 'mean logit of the discriminator for generated images'),
    LogField('scale_g', 'none', 'loss scale of the generator, with float16'),
    LogField('scale_d', 'none', 'loss scale of the discriminator, with float16'),
    LogField('noise_scale_g', 'images', "noise scale of the generator's gradient, once it is known"),
    LogField('noise_scale_d', 'images', "noise scale of the discriminator's gradient, once it is known"),
    LogField('verify_g', 'none', "distance of the generator's gradient from that of the undivided batch, over its length; "
                              'with `train.verify_every`'),
    LogField('verify_d', 'none', "distance of the discriminator's gradient, likewise"),
    LogField('n_*', 'events', f'how many events of a kind there were so far, if any: {_COUNTERS}; `n_unreadable`: images '
                              'that could not be read'),
    LogField('images_per_s', 'images/s', 'images of all processes a second since the last record, with loading and updates'),
    LogField('peak_gb', 'GB (10^9 bytes)', 'the most memory that was in use at a time so far: of the GPU, or of the process '
                                           'on a CPU'),
    LogField('batch', 'images', 'effective batch of this iteration, of all processes'),
    LogField('gt_size', 'pixels', 'width of the crops'),
)
"""Fields of a record every ``logger.print_freq`` iterations."""

VALIDATION = (
    LogField('iter', 'iterations', 'the iteration after which it was measured; 0: before the first'),
    LogField('val', '-', 'name of the validation set'),
    LogField('psnr, ssim, ...', "the metric's: dB for PSNR, none for SSIM", 'mean over the images, a field for each key of '
                                                                        '`val.metrics`'),
)
"""Fields of a record of each validation set every ``val.val_freq`` iterations."""

EVENT = (
    LogField('iter', 'iterations', 'the iteration in which it happened'),
    LogField('event', '-', f'its kind: {", ".join(KINDS)}'),
    LogField('part', '-', 'the network or the part of the step concerned'),
    LogField('text', '-', 'a sentence: what it was, and what was done about it'),
)
"""Fields of a record of each event."""

_UNITS = {'psnr': 'dB', 'lr': 'learning rate', 'd_gap': 'logits', 'images_per_s': 'images/s', 'batch': 'images'}
_TITLES = {'psnr': 'PSNR', 'ssim': 'SSIM', 'niqe': 'NIQE', 'lpips': 'LPIPS', 'perceptual': 'Perceptual distance',
           'l_g_pix': 'Pixel loss of the generator', 'l_pix': 'Pixel loss', 'l_g_percep': 'Perceptual loss of the generator',
           'l_percep': 'Perceptual loss', 'l_g_gan': 'GAN loss of the generator', 'd_gap': 'Logit gap, real - generated'}


def title_of(key: str) -> str:
    """A field or metric as the title of a picture; ``psnr, SET`` names its validation set."""
    name, comma, rest = key.partition(',')
    return _TITLES.get(name, name) + comma + rest


def unit_of(key: str) -> str:
    """The unit of a field or metric; empty where it has none."""
    return _UNITS.get(key.partition(',')[0], '')


def with_unit(key: str) -> str:
    """A field or metric with its unit, as the label of an axis or the head of a column."""
    unit = unit_of(key)
    return f'{title_of(key)}, {unit}' if unit else title_of(key)


def reference() -> str:
    """The fields as tables of a Markdown page."""
    parts = []
    for title, fields in (('Every `logger.print_freq` iterations', TRAINING), ('Of each validation set', VALIDATION),
                          ('Of each event', EVENT)):
        rows = [f'| {_code(field.name)} | {field.unit} | {field.meaning} |' for field in fields]
        parts += [f'### {title}', '', '| field | unit | meaning |', '|---|---|---|', *rows, '']
    return '\n'.join(parts)


def _code(names: str) -> str:
    return ', '.join(name if name == '...' else f'`{name}`' for name in names.split(', '))
