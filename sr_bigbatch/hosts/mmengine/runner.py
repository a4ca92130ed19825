"""Runs mmengine's Runner where it would stumble over current versions of torch, or over a machine without a GPU."""
from __future__ import annotations

import argparse
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from basicsr.metrics.psnr_ssim import calculate_psnr
from basicsr.utils import tensor2img
from mmengine.config import Config, DictAction
from mmengine.evaluator import BaseMetric
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.registry import METRICS

from sr_bigbatch.hosts.mmengine.safe_runner import SafeRunner
from sr_bigbatch.hosts.shared_memory import AHEAD, batch_bytes, lack_of_room
from sr_bigbatch.options import OptionError
from sr_bigbatch.step.distributed import leave_group


@METRICS.register_module()
class PSNRMetric(BaseMetric):  # type: ignore[misc]
    """Mean PSNR in dB of 8-bit RGB images, as BasicSR has it.

    Args:
        crop_border: pixels at each border that do not count.
        **kwargs: arguments of mmengine's ``BaseMetric``.
    """

    default_prefix = ''

    def __init__(self, crop_border: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.crop_border = crop_border

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Take images ``pred`` and ``gt`` (C, H, W) in [0, 1]."""
        for sample in data_samples:
            images = [tensor2img([sample[name]]) for name in ('pred', 'gt')]
            self.results.append(calculate_psnr(*images, crop_border=self.crop_border))

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        """The mean over the images."""
        return {'psnr': float(np.mean(results))}


def _method_of_history(owner: Any, name: str) -> Any:
    """The ``getattr`` of mmengine's checkpoints, which hold the names of statistics of HistoryBuffer; and no other."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise pickle.UnpicklingError(f'the checkpoint asks for {name} of {owner!r}, which no checkpoint of mmengine does')
    return getattr(HistoryBuffer, name)


def admit_histories() -> None:
    """Let ``torch.load`` read what mmengine's checkpoints hold besides tensors; it still refuses everything else."""
    numpy_core: Any = getattr(np, '_core', None) or np.core
    torch.serialization.add_safe_globals(
        [HistoryBuffer, numpy_core.multiarray.scalar, numpy_core.multiarray._reconstruct, np.ndarray, np.dtype,
         *{type(np.dtype(kind)) for kind in ('f8', 'f4', 'i8', 'i4', 'b1')},
         (_method_of_history, 'builtins.getattr'), (_method_of_history, '__builtin__.getattr')])


def _shared_memory(config: Config) -> list[str]:
    loader = config.get('train_dataloader') or {}
    images = (loader.get('dataset') or {}).get('opt') or {}
    if not images.get('gt_size') or not loader.get('batch_size'):
        return []  # a data set that is not BasicSR's: what a batch looks like is not known
    stages = [stage['gt_size'] for hook in config.get('custom_hooks') or [] for stage in hook.get('stages', [])]
    size = batch_bytes(loader['batch_size'], max([images['gt_size'], *stages]), images.get('scale', 1), 3)
    lack = lack_of_room(size, loader.get('num_workers', 0), 'train_dataloader.num_workers',
                        loader.get('prefetch_factor') or AHEAD)
    return [] if lack is None else [f'train_dataloader: {lack}']


def configuration(path: str, changes: Sequence[str]) -> Config:
    """Read a configuration file of mmengine.

    Args:
        path: of the file.
        changes: ``KEY=VALUE``, as of mmengine's own scripts.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
    config = Config.fromfile(path)
    config.merge_from_dict(parser.parse_args(['--cfg-options', *changes] if changes else []).cfg_options)
    return config


def run(config: Config, *, amp: bool = False) -> None:
    """Train with :class:`sr_bigbatch.hosts.mmengine.safe_runner.SafeRunner`.

    Args:
        config: of mmengine's Runner, with ``launcher`` and ``work_dir``.
        amp: mixed precision in every optimizer wrapper whose settings name no dtype of 16 bits.

    Raises:
        OptionError: if the machine has no room for the batches that loader workers prepare.
        RunEnded: if it ends before its last iteration.
        BadFile: if the checkpoint of ``load_from`` cannot be read.
    """
    findings = _shared_memory(config)
    if findings:
        raise OptionError(findings)
    admit_histories()
    if not torch.cuda.is_available():
        if config.launcher == 'pytorch':
            config.env_cfg = {**config.get('env_cfg', {}), 'dist_cfg': {'backend': 'gloo'}}
        torch.cuda.set_device = lambda device: None  # the launcher calls it also where there is no GPU
    if amp:
        dtype = 'float16' if torch.cuda.is_available() else 'bfloat16'
        for settings in config.optim_wrapper.values():
            if isinstance(settings, dict) and settings.get('dtype', 'float32') == 'float32':
                settings['dtype'] = dtype
    SafeRunner.from_cfg(config).train()
    leave_group()
