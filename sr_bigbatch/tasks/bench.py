"""Measures our step and our generator beside BasicSR's own, in one run."""
from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot as plt
from torch import nn
from tqdm import tqdm

from sr_bigbatch.hosts.basicsr.outside_training import model_of
from sr_bigbatch.hosts.basicsr.plain_rrdb import plain_rrdb
from sr_bigbatch.nets.arrangement import arrange
from sr_bigbatch.nets.rrdb import POLICIES, CheckpointedRRDBNet
from sr_bigbatch.report.pictures import save_figure

BASELINE = 'BasicSR, undivided'
_OURS = ('micro_batch_size', 'kept_graphs', 'accumulation', 'optim_wrapper', 'relativistic_gan')


def contenders(opt: dict[str, Any], gt_size: int, batch: int, micro: int, blocks: int) -> dict[str, dict[str, Any]]:
    """The options of BasicSR's model and of ours under several plans, from an option file of ours."""
    opt = copy.deepcopy(opt)
    opt['datasets']['train'].update(gt_size=gt_size, batch_size_per_gpu=batch)
    opt['network_g']['num_block'] = blocks
    opt['network_d']['input_size'] = gt_size
    opt['train'].update(micro_batch_size=micro, optim_wrapper={'dtype': 'float32'})
    host = copy.deepcopy(opt)
    host.update(model_type='ESRGANModel')
    host['network_g'] = {**opt['network_g'], 'type': 'RRDBNet'}
    host['network_g'].pop('activation_memory', None)
    host['train'] = {key: value for key, value in opt['train'].items() if key not in _OURS}
    ours = {f'ours, {memory}, micro-batch {size}, graphs {"kept" if kept else "replayed"}':
            {**opt, 'network_g': {**opt['network_g'], 'activation_memory': memory},
             'train': {**opt['train'], 'micro_batch_size': size, 'kept_graphs': kept}}
            for memory, size, kept in (('lean', batch, 'all'), ('lean', micro, 'all'), ('lean', micro, 0),
                                       ('compact', micro, 'all'))}
    return {BASELINE: host, **ours}


@contextmanager
def as_in_training() -> Iterator[None]:
    """Let cuDNN choose its algorithms by trying, as a training does."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@as_in_training()
def images_per_second(candidates: dict[str, dict[str, Any]], rounds: int) -> dict[str, list[float]]:
    """Images a second of each candidate, one value a round; the candidates take turns within a round."""
    steps = {name: _step(opt) for name, opt in candidates.items()}
    batch = next(iter(candidates.values()))['datasets']['train']['batch_size_per_gpu']
    speeds: dict[str, list[float]] = {name: [] for name in steps}
    for number in tqdm(range(rounds + 1), unit='round'):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if number > 0:  # the first round warms up
                speeds[name].append(batch / (time.perf_counter() - started))
    return speeds


def _step(opt: dict[str, Any]) -> Callable[[], None]:
    model = model_of(opt, Path.cwd())
    data = opt['datasets']['train']
    count, size, low = data['batch_size_per_gpu'], data['gt_size'], data['gt_size'] // opt['scale']
    batch = {'gt': torch.rand(count, 3, size, size), 'lq': torch.rand(count, 3, low, low)}

    def step() -> None:
        model.feed_data(batch)
        model.optimize_parameters(1)
        if model.device.type == 'cuda':
            torch.cuda.synchronize()

    return step


def rows(speeds: dict[str, list[float]]) -> list[tuple[str, float, float]]:
    """Name, median images a second, and median over the rounds of the ratio to the baseline of the same round."""
    return [(name, statistics.median(values),
             statistics.median(value / base for value, base in zip(values, speeds[BASELINE], strict=True)))
            for name, values in speeds.items()]


def generators(blocks: int, device: torch.device | None = None) -> dict[str, nn.Module]:
    """BasicSR's RRDBNet, and ours with the same weights under each policy, as they lie in a training on ``device`` (CPU)."""
    ours = {policy: CheckpointedRRDBNet(3, 3, 4, 64, blocks, 32, policy) for policy in POLICIES}
    first = next(iter(ours.values()))
    for one in ours.values():
        one.load_state_dict(first.state_dict())
    nets: dict[str, nn.Module] = {'BasicSR': plain_rrdb(first), **ours}
    for net in nets.values():
        net.to(device or torch.device('cpu'))
    arrange(*nets.values())
    return nets


def draw_bytes(kept: dict[tuple[str, str], int], target: Path) -> Path:
    """Draw the bytes kept per sample, by dtype and policy, as bars.

    Args:
        kept: (dtype, name of the network) -> bytes a sample.
        target: the PNG to write.
    """
    labels, names = (list(dict.fromkeys(key[index] for key in kept)) for index in range(2))
    figure, axis = plt.subplots(figsize=(7, 3.6))
    for row, label in enumerate(labels):
        places = [index + 0.4 * row for index in range(len(names))]
        values = [kept[label, name] / 1e6 for name in names]
        axis.bar_label(axis.bar(places, values, width=0.38, label=label), fmt='%.0f')
    axis.set_xticks([index + 0.2 for index in range(len(names))], names)
    axis.margins(y=0.12)
    axis.set_ylabel('MB kept per sample')
    axis.set_title("What the generator keeps for its backward pass")
    axis.legend()
    return save_figure(figure, target)
