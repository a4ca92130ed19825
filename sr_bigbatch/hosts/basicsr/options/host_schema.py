"""The option keys of BasicSR itself, as a JSON schema: types and ranges outside which BasicSR fails."""
from __future__ import annotations

from typing import Any

Schema = dict[str, Any]  # JSON

_MOST = 2**31 - 1
_LONGEST = 10**12  # iterations
_LAST_SEED = 2**32 - 2**16  # numpy takes 32 bits, and each process adds its number


def _key(must_be: str, **schema: Any) -> Schema:
    return {'title': must_be, **schema}


def _or_nothing(key: Schema) -> Schema:
    return {**key, 'title': f'{key["title"]}, or ~ for none', 'type': [key['type'], 'null']}


def _section(**properties: Any) -> Schema:
    return _key('a section of "key: value" lines', type='object', properties=properties)


_TEXT = _key('text (write it in quotation marks)', type='string', minLength=1)
_PATH = _key('a path (write it in quotation marks)', type='string', minLength=1, maxLength=4096)
_FLAG = _key('true or false', enum=[True, False, 0, 1, None])
_COUNT = _key('a positive whole number', type='integer', minimum=1, maximum=_MOST)
_SHARE = _key('a whole number, 0 or more', type='integer', minimum=0, maximum=_MOST)
_ITERATIONS = _key('a positive whole number of iterations', type='integer', minimum=1, maximum=_LONGEST)
_NUMBER = _key('a number', type='number')
_COLOURS = _key('a list of one number, or one per colour', type='array', minItems=1, items=_NUMBER)

_DATA_SET = _section(
    name=_TEXT, dataroot_gt=_or_nothing(_PATH), dataroot_lq=_or_nothing(_PATH),
    meta_info_file=_or_nothing(_PATH), filename_tmpl=_TEXT, gt_size=_COUNT, batch_size_per_gpu=_COUNT,
    io_backend=_key('a section such as {type: disk}', type='object'),
    use_hflip=_FLAG, use_rot=_FLAG, use_shuffle=_FLAG, pin_memory=_FLAG, persistent_workers=_FLAG,
    mean=_or_nothing(_COLOURS), std=_or_nothing(_COLOURS), color=_or_nothing(_TEXT),
    num_worker_per_gpu=_or_nothing(_key('a whole number from 0 to 1024', type='integer', minimum=0, maximum=1024)),
    prefetch_mode=_or_nothing(_TEXT), num_prefetch_queue=_COUNT,
    dataset_enlarge_ratio=_key('a number above 0', type='number', exclusiveMinimum=0, maximum=_MOST))
_LOSS = _or_nothing(_section(loss_weight=_NUMBER))
_OPTIMIZER = _section(
    lr=_key('a number, 0 or more', type='number', minimum=0),
    weight_decay=_key('a number, 0 or more', type='number', minimum=0),
    betas=_key('two numbers from 0 to 1, 1 excluded', type='array', minItems=2, maxItems=2,
               items={'type': 'number', 'minimum': 0, 'exclusiveMaximum': 1}))
_STEPS = _key('a list of iterations', type='array', items={'type': 'integer', 'minimum': 0, 'maximum': _LONGEST})
_NUMBERS = _key('a list of numbers', type='array', items=_NUMBER)

HOST_SCHEMA: Schema = _section(
    scale=_COUNT, find_unused_parameters=_FLAG, dist_params=_or_nothing(_section()),
    num_gpu=_key('auto, 0 (CPU) or a number of GPUs', anyOf=[
        {'const': 'auto'}, {'type': 'integer', 'minimum': 0, 'maximum': _MOST}]),
    manual_seed=_or_nothing(_key(f'a whole number from 0 to {_LAST_SEED}', type='integer', minimum=0, maximum=_LAST_SEED)),
    datasets=_key('a section of data sets', type='object', additionalProperties=_DATA_SET),
    network_g=_section(), network_d=_or_nothing(_section()),
    path=_section(
        pretrain_network_g=_or_nothing(_PATH), pretrain_network_d=_or_nothing(_PATH), resume_state=_or_nothing(_PATH),
        experiments_root=_or_nothing(_PATH), param_key_g=_or_nothing(_TEXT), param_key_d=_or_nothing(_TEXT),
        strict_load_g=_FLAG, strict_load_d=_FLAG,
        ignore_resume_networks=_key('a name or a list of names', type=['string', 'array', 'null'])),
    train=_section(
        ema_decay=_key('in [0, 1)', type='number', minimum=0, exclusiveMaximum=1),
        total_iter=_ITERATIONS, optim_g=_OPTIMIZER, optim_d=_or_nothing(_OPTIMIZER),
        warmup_iter=_key('a whole number of iterations, or -1 for none', type='integer', minimum=-1, maximum=_LONGEST),
        scheduler=_section(milestones=_STEPS, gamma=_NUMBER, restarts=_STEPS, restart_weights=_NUMBERS,
                           periods=_STEPS, eta_min=_NUMBER),
        pixel_opt=_LOSS, perceptual_opt=_LOSS, ldl_opt=_LOSS, gan_opt=_LOSS,
        net_d_iters=_COUNT, net_d_init_iters=_key('a whole number of iterations, 0 or more', type='integer', minimum=0,
                                                  maximum=_LONGEST)),
    val=_or_nothing(_section(
        val_freq=_ITERATIONS, save_img=_FLAG, pbar=_FLAG, suffix=_or_nothing({**_TEXT, 'minLength': 0}),
        metrics=_or_nothing(_key('a section of metrics', type='object', additionalProperties=_section())))),
    logger=_section(print_freq=_ITERATIONS, save_checkpoint_freq=_ITERATIONS, use_tb_logger=_FLAG,
                    wandb=_or_nothing(_section(project=_or_nothing(_TEXT), resume_id=_or_nothing(_TEXT)))))
"""What stands nowhere here is BasicSR's, or of another package, and is looked at where it is built."""
