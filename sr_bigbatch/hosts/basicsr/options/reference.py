"""The page of the docs on option files: our keys, from the JSON schema, and BasicSR's."""
from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from sr_bigbatch.hosts.basicsr.options.real_esrgan import REAL_ESRGAN_KEYS
from sr_bigbatch.hosts.basicsr.options.schema import SCHEMA
from sr_bigbatch.hosts.mmengine.hook import ProgressiveResolutionHook

_OUR_DEFAULTS = {
    'train.micro_batch_size': 'the whole batch', 'train.memory_budget_gb': 'the free memory',
    'train.kept_graphs': '`0`; with `activation_memory: auto` what fits', 'train.accumulation': '`exact`',
    'train.verify_every': '`0`', 'train.tf32': "torch's setting",
    'train.relativistic_gan': '`true`', 'train.batch_schedule': 'none',
    'train.optim_wrapper': '`{type: OverflowSafeOptimWrapper, dtype: float32}`', 'train.optim_wrapper.dtype': '`float32`',
    'train.optim_wrapper.loss_scale': '`dynamic`', 'train.optim_wrapper.clip_grad': 'none',
    'network_g.activation_memory': '`lean`', 'datasets.train.on_bad_image': '`fatal`', 'logger.keep_last': 'all saves',
    'logger.keep_best': '`false`', 'val.val_at_start': '`false`', 'custom_hooks': 'none'}

BASICSR_KEYS = {
    '': {
        'name': ('required', 'of the run; its folder is `experiments/NAME`'),
        'model_type': ('required', '`AccumulatingESRGANModel`, `AccumulatingSRModel`, or a model of BasicSR'),
        'scale': ('required', 'ground truth over low resolution'),
        'num_gpu': ('required', '`auto`, `0` for the CPU, or GPUs of this process'),
        'manual_seed': ('drawn, and saved', 'of weights and data order'),
        'datasets': ('required', 'sections `train` and `val`, `val_...`'),
        'network_g': ('required', 'the generator: `type` and its arguments'),
        'network_d': ('none', 'the discriminator: `type` and its arguments'),
        'path': ('required', 'see below'), 'train': ('required', 'see below'), 'logger': ('required', 'see below'),
        'val': ('no validation', 'see below'),
        'dist_params': ('none', '`backend`, and `port` for slurm; torchrun needs neither'),
        'find_unused_parameters': ('`false`', "of BasicSR's own models in several processes; ours do not need it")},
    'path': {
        'pretrain_network_g': ('none', 'weights that the generator starts from'),
        'param_key_g': ('`params`', 'their key in the file; `params_ema` for averaged ones'),
        'strict_load_g': ('`true`', 'whether all names must agree'),
        'pretrain_network_d': ('none', 'weights that the discriminator starts from'),
        'param_key_d': ('`params`', 'their key in the file'), 'strict_load_d': ('`true`', 'whether all names must agree'),
        'resume_state': ('none', 'the `.state` to go on from; `--auto_resume` finds the newest'),
        'ignore_resume_networks': ('none', 'networks that keep their `pretrain_network_...` when a run goes on'),
        'experiments_root': ('`experiments`', 'folder of all runs')},
    'train': {
        'ema_decay': ('`0`', 'of the averaged generator, which is validated and saved as `params_ema`; 0 for none'),
        'optim_g': ('required', "optimizer of the generator: `type` and torch's arguments"),
        'optim_d': ('required with a discriminator', 'optimizer of the discriminator'),
        'scheduler': ('required', 'of the learning rates: `type` and its arguments, counted in iterations'),
        'total_iter': ('required', 'the last iteration'),
        'warmup_iter': ('`-1`', 'iterations in which the learning rates rise from 0; -1 for none'),
        'pixel_opt': ('none', 'pixel loss: `type` and its arguments'),
        'perceptual_opt': ('none', 'perceptual and style loss: `type` and its arguments'),
        'ldl_opt': ('none', 'artifact loss; needs `ema_decay`'),
        'gan_opt': ('required with a discriminator', 'GAN loss: `type`, `gan_type`, `loss_weight`'),
        'net_d_iters': ('`1`', 'the generator learns every so many iterations'),
        'net_d_init_iters': ('`0`', 'iterations in which the discriminator learns alone')},
    'val': {
        'val_freq': ('required', 'iterations from one validation to the next'),
        'save_img': ('`false`', 'whether validation images are kept in `visualization/`'),
        'pbar': ('`false`', 'a progress bar over the images'),
        'suffix': ('none', 'end of the names of images in place of the iteration or the name of the run'),
        'metrics': ('none', 'a section for each: `type: calculate_psnr`, its arguments, `better: lower` or `higher`')},
    'logger': {
        'print_freq': ('required', 'iterations from one record of the log to the next'),
        'save_checkpoint_freq': ('required', 'iterations from one save to the next'),
        'use_tb_logger': ('`false`', 'whether TensorBoard gets the numbers'),
        'wandb': ('none', '`project`, `resume_id`: a copy of what TensorBoard gets')},
    'datasets.train': {
        'name': ('required', 'of the data set; of a validation set it stands in the log'),
        'type': ('required', '`PairedImageDataset`, or `ProgressivePairedImageDataset` for crops that grow'),
        'dataroot_gt': ('required', 'folder or `.lmdb` of the ground truth'),
        'dataroot_lq': ('none', 'folder or `.lmdb` of the low resolution; none: made from the photographs'),
        'meta_info_file': ('none', 'a list of the images to take'),
        'io_backend': ('required', '`type: disk` or `type: lmdb`'),
        'filename_tmpl': ("`'{}'`", 'name of a low-resolution image, given that of the ground truth'),
        'gt_size': ('required to train', 'width of the crops, in pixels'),
        'use_hflip': ('required to train', 'mirrored at random'), 'use_rot': ('required to train', 'turned at random'),
        'mean': ('none', 'subtracted from the images, for each channel'), 'std': ('none', 'that they are divided by'),
        'color': ('RGB', '`y`: luma alone'),
        'num_worker_per_gpu': ('required to train', 'processes that read images'),
        'batch_size_per_gpu': ('required to train', 'the effective batch of a process: images of one update'),
        'prefetch_mode': ('none', "`cpu` or `cuda`, in BasicSR's own script; those of `tools/train.py` work ahead anyway"),
        'num_prefetch_queue': ('`1`', 'batches that are ready beforehand, with `prefetch_mode: cpu`'),
        'pin_memory': ('`false`', "page-locked memory, in BasicSR's own script; `tools/train.py` has it on a GPU"),
        'persistent_workers': ('`false`', "in BasicSR's own script; the workers of `tools/train.py` live on anyway"),
        'dataset_enlarge_ratio': ('`1`', 'how often an image is shown in an epoch'),
        'use_shuffle': ('`true`', 'accepted; images always come in a random order')},
}
"""BasicSR's keys by section: the default, and the meaning."""

_HEAD = '''# Options

Option files are those of BasicSR: YAML with the sections below. `python tools/check.py -opt FILE` names every key that is
not known, with the nearest one that is, and `python tools/check.py --schema` prints the JSON schema of the keys that this
package adds, for editors. A key that is missing has its default; `~` as value means none.

## Keys of this package

| key | must be | default | meaning |
|---|---|---|---|'''
_LOOPS = '''
## In a host's own loop

In BasicSR's own script, through `python -m sr_bigbatch`, all keys act but some that belong to the loop of `tools/train.py`:

| key | there |
|---|---|
| `val.val_at_start` | without effect |
| `datasets.train.on_bad_image` | without effect: an unreadable image ends the run with BasicSR's own message |
| `path.experiments_root` | without effect: BasicSR takes `experiments` in its own folder |

There is no `train_log.jsonl`, no throughput, no `curves.png` and no `comparison.png` either ([Logs and pictures](log.md)),
and a run that is resumed gets its data in another order. In [mmengine and mmagic](mmengine.md) the same settings are
arguments of the model.
'''


def reference() -> str:
    """All keys as a Markdown page."""
    lines = [_HEAD, *(f'| `{name}` | {key["title"]} | {_OUR_DEFAULTS[name]} | {key["description"]} |'
                      for name, key in _keys(SCHEMA, '') if name not in REAL_ESRGAN_KEYS)]
    lines += ['', '### ProgressiveResolutionHook in `custom_hooks`', '', '| key | must be | default |', '|---|---|---|']
    arguments = inspect.signature(ProgressiveResolutionHook).parameters
    lines += [f'| `{name}` | {_in_words(key)} | {_yaml(arguments[name].default) if name in arguments else "required"} |'
              for name, key in SCHEMA['properties']['custom_hooks']['items']['properties'].items()]
    lines += ['', "## Keys of Real-ESRGAN's models", '', 'At the top level; [Real-ESRGAN](realesrgan.md) explains them.', '',
              '| key | must be | meaning |', '|---|---|---|']
    lines += [f'| `{name}` | {key["title"]} | {key["description"]} |' for name, key in REAL_ESRGAN_KEYS.items()]
    lines += ['', "## BasicSR's keys", '', '| key | default | meaning |', '|---|---|---|']
    lines += [f'| `{section}{"." if section else ""}{key}` | {default} | {meaning} |'
              for section, keys in BASICSR_KEYS.items() for key, (default, meaning) in keys.items()]
    return '\n'.join(lines) + '\n' + _LOOPS


def _yaml(value: object) -> str:
    if value is inspect.Parameter.empty:
        return 'required'
    return 'from the options' if value is None else f'`{str(value).lower() if isinstance(value, bool) else value}`'


def _keys(section: Mapping[str, Any], where: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    for name, key in section.get('properties', {}).items():
        path = f'{where}.{name}' if where else name
        if 'title' in key:
            yield path, key
        yield from _keys(key, path)


def _in_words(key: Mapping[str, Any]) -> str:
    if 'enum' in key:
        return ' or '.join(f'`{choice}`' for choice in key['enum'])
    if key.get('type') == 'array':
        return f'a list of {{{", ".join(key["items"]["properties"])}}}'
    low = key.get('minimum', key.get('exclusiveMinimum'))
    bound = '' if low is None else f' {"at least" if "minimum" in key else "above"} {low}'
    words = {'integer': 'a whole number', 'number': 'a number', 'boolean': 'true or false', 'string': 'a name'}
    return words[key['type']] + bound
