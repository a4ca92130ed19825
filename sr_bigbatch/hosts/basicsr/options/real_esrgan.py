"""The options of Real-ESRGAN's models: their values, and what must be there."""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sr_bigbatch.hosts.basicsr.settings import Options
from sr_bigbatch.hosts.basicsr.synthesis.settings import GROUP, REAL_ESRGAN, REAL_ESRNET, SynthesisSettings
from sr_bigbatch.options import unknown_keys
from sr_bigbatch.step.distributed import world_size

_PHOTOGRAPH = 400  # px: the size to which RealESRGANDataset cuts
_SHARE: Options = {'type': 'number', 'minimum': 0, 'maximum': 1}


def _of(must_be: str, meaning: str, schema: Options) -> Options:
    return {'title': must_be, 'description': meaning, **schema}


def _range(meaning: str, **bounds: Any) -> Options:
    return _of('[lowest, highest]', meaning, {'type': 'array', 'items': {'type': 'number', **bounds}, 'minItems': 2,
                                              'maxItems': 2})


def _half(suffix: str, which: str) -> Options:
    keys = {
        'resize_prob': _of('[up, down, keep], three shares', f'how often the {which} resizing enlarges, shrinks, keeps', {
            'type': 'array', 'items': {'type': 'number', 'minimum': 0}, 'minItems': 3, 'maxItems': 3}),
        'resize_range': _range(f'factors of the {which} resizing', exclusiveMinimum=0),
        'gaussian_noise_prob': _of('a share', f'of Gaussian noise in the {which} round; the rest is Poisson noise', _SHARE),
        'noise_range': _range(f'standard deviations of the {which} Gaussian noise, in 8-bit levels', minimum=0),
        'poisson_scale_range': _range(f'strengths of the {which} Poisson noise', minimum=0),
        'gray_noise_prob': _of('a share', f'of grey noise in the {which} round', _SHARE),
        'jpeg_range': _range(f'qualities of the {which} JPEG', exclusiveMinimum=0, maximum=100)}
    return {name + suffix: key for name, key in keys.items()}


_FLAG: Options = {'type': 'boolean'}
_TARGETS: Options = {
    'l1_gt_usm': _of('true or false', 'the pixel loss compares with sharpened ground truth (Real-ESRGAN)', _FLAG),
    'percep_gt_usm': _of('true or false', 'the perceptual loss compares with sharpened ground truth (Real-ESRGAN)', _FLAG),
    'gan_gt_usm': _of('true or false', 'the discriminator sees sharpened ground truth (Real-ESRGAN)', _FLAG)}
_SYNTHESIS: Options = {
    **_half('', 'first'), **_half('2', 'second'),
    'second_blur_prob': _of('a share', 'of a second blur', _SHARE),
    'gt_size': _of('a positive whole number', 'of the crops, in pixels; that of datasets.train', {
        'type': 'integer', 'minimum': 1})}
REAL_ESRGAN_KEYS: Options = {
    'high_order_degradation': _of('true or false', 'false: the data set has ready-made pairs', _FLAG),
    'degradation_group': _of('a positive whole number',
                             f'images that share a draw of resizing, kind of noise and order of filters; {GROUP} if missing',
                             {'type': 'integer', 'minimum': 1}),
    'queue_size': _of('a whole number of pairs, 0 or more',
                      'of the pool from which batches are drawn; if missing 15 draws, and at least six batches; 0: no pool',
                      {'type': ['integer', 'null'], 'minimum': 0}),
    'gt_usm': _of('true or false', 'the ground truth is sharpened before it is degraded (Real-ESRNet)', _FLAG),
    **_TARGETS, **_SYNTHESIS}
"""Top-level keys of BasicSR's ``RealESRGANModel`` and ``RealESRNetModel``, and ``degradation_group``, as a JSON schema."""

_DATASET = {'name', 'type', 'dataroot_gt', 'meta_info', 'io_backend', 'gt_size', 'use_hflip', 'use_rot',
            'num_worker_per_gpu', 'batch_size_per_gpu', 'prefetch_mode', 'num_prefetch_queue', 'pin_memory',
            'persistent_workers', 'dataset_enlarge_ratio', 'use_shuffle', 'on_bad_image', 'final_sinc_prob',
            *(name + suffix for suffix in ('', '2') for name in (
                'blur_kernel_size', 'kernel_list', 'kernel_prob', 'sinc_prob', 'blur_sigma', 'betag_range', 'betap_range'))}
_DATASET_MAY_LACK = {'meta_info', 'num_prefetch_queue', 'pin_memory', 'persistent_workers', 'dataset_enlarge_ratio',
                     'use_shuffle', 'prefetch_mode', 'on_bad_image'}


def is_real(opt: Options) -> bool:
    """Whether the options are those of one of Real-ESRGAN's models."""
    return opt.get('model_type') in (REAL_ESRGAN, REAL_ESRNET)


def real_esrgan_findings(opt: Options) -> Iterable[str]:
    """A finding for each key that is missing or at odds with another; values are the schema's affair."""
    if not is_real(opt):
        return
    train_set = opt['datasets']['train']
    kind, made = train_set.get('type'), opt.get('high_order_degradation', True)
    if opt['model_type'] == REAL_ESRGAN:
        yield from (f'{key} is missing' for key in _TARGETS if opt.get(key) is None)
    if not made:
        if kind == 'RealESRGANDataset':
            yield ('high_order_degradation is false, but datasets.train.type is RealESRGANDataset, which has no '
                   'low-resolution images: use RealESRGANPairedDataset')
        return
    if opt['model_type'] == REAL_ESRNET and opt.get('gt_usm') is None:
        yield 'gt_usm is missing'
    missing = [key for key in _SYNTHESIS if opt.get(key) is None]
    yield from (f'{key} is missing' for key in missing)
    if kind != 'RealESRGANDataset':
        yield (f'datasets.train.type is {kind}, which gives no blur kernels: use RealESRGANDataset, or '
               'high_order_degradation: false for ready-made pairs')
        return
    yield from _of_photographs(train_set)
    if not missing:
        yield from _sizes(opt, train_set)


def _of_photographs(train_set: Options) -> Iterator[str]:
    yield from unknown_keys(train_set, _DATASET, 'datasets.train', {})
    yield from (f'datasets.train.{key} is missing' for key in sorted(_DATASET - _DATASET_MAY_LACK)
                if train_set.get(key) is None)
    backend = train_set.get('io_backend') or {}
    if backend.get('type') == 'disk' and train_set.get('meta_info') is None:
        yield 'datasets.train.meta_info is missing: a file with a line for each photograph, its path under dataroot_gt'


def _sizes(opt: Options, train_set: Options) -> Iterator[str]:
    size, scale, batch = opt['gt_size'], opt['scale'], train_set.get('batch_size_per_gpu')
    if size != train_set.get('gt_size'):
        yield f'gt_size is {size} but datasets.train.gt_size is {train_set.get("gt_size")}: make them equal'
    if size > _PHOTOGRAPH or _PHOTOGRAPH % scale:
        yield (f'RealESRGANDataset cuts photographs to {_PHOTOGRAPH} pixels: gt_size must not be larger, and scale must '
               f'divide {_PHOTOGRAPH}; they are {size} and {scale}')
    settings = SynthesisSettings.from_options(opt)
    whole = int(batch or 0) * world_size()
    if settings is not None and settings.queue_size and settings.queue_size < whole:
        yield (f'queue_size is {settings.queue_size} but a batch of all processes has {whole} images: make it at least as '
               'large, leave it out, or set it to 0 for no pool')
