"""Trains through a storm of overflows with torch's GradScaler and with our step, and counts what our checks cost."""
from __future__ import annotations

import copy
import cProfile
import pstats
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from basicsr.data import build_dataset
from basicsr.models import build_model
from basicsr.models.esrgan_model import ESRGANModel
from matplotlib import pyplot as plt
from torch import Tensor, nn
from tqdm import tqdm

from sr_bigbatch.hosts.basicsr.options.check import complete
from sr_bigbatch.hosts.basicsr.training.pictures import save_figure
from sr_bigbatch.hosts.basicsr.training.train import start_processes
from sr_bigbatch.step import finite, replay, trial, update

_TOO_LARGE = 2.0**20  # beyond float16; a power of two, so that wider formats lose nothing by it
CHECKS = (trial.Recovery.bad_input, trial.Recovery.look_at, trial.Recovery.widen_overflowed,
          finite.spoil_unless_finite, update.SafeUpdate.is_doomed, update.SafeUpdate.is_finite, replay.Traces.__init__)
"""Everything that our step does only because something might overflow."""


class GradScalerESRGANModel(ESRGANModel):  # type: ignore[misc]
    """BasicSR's ESRGAN step under autocast to float16, with a ``GradScaler`` per optimizer, as in torch's manual."""

    def init_training_settings(self) -> None:
        """Build what the host builds, and the scalers."""
        super().init_training_settings()
        self.scalers = [torch.amp.GradScaler(self.device.type) for _ in self.optimizers]

    def optimize_parameters(self, current_iter: int) -> None:
        """One step of the generator, then one of the discriminator."""
        losses = {}
        for parameter in self.net_d.parameters():
            parameter.requires_grad_(False)
        self.optimizer_g.zero_grad()
        with torch.autocast(self.device.type, torch.float16):
            self.output = self.net_g(self.lq)
            fake, real = self.net_d(self.output), self.net_d(self.gt).detach()
        losses['l_g_pix'] = self.cri_pix(self.output.float(), self.gt)
        real, fake = real.float(), fake.float()
        losses['l_g_gan'] = (self.cri_gan(real - fake.mean(), False) + self.cri_gan(fake - real.mean(), True)) / 2
        self._move(0, losses['l_g_pix'] + losses['l_g_gan'])
        for parameter in self.net_d.parameters():
            parameter.requires_grad_(True)
        self.optimizer_d.zero_grad()
        with torch.autocast(self.device.type, torch.float16):
            real, fake = self.net_d(self.gt), self.net_d(self.output.detach())
        real, fake = real.float(), fake.float()
        self._move(1, (self.cri_gan(real - fake.mean(), True, is_disc=True)
                       + self.cri_gan(fake - real.mean(), False, is_disc=True)) / 2)
        self.log_dict = {name: loss.item() for name, loss in losses.items()}
        self.log_dict['scale_g'] = self.scalers[0].get_scale()

    def _move(self, index: int, loss: Tensor) -> None:
        self.scalers[index].scale(loss).backward()
        self.scalers[index].step(self.optimizers[index])
        self.scalers[index].update()


def through_a_storm(opt: dict[str, Any], iterations: int, storm: range) -> dict[str, list[dict[str, float]]]:
    """Train both from the same weights on the same batches, while in ``storm`` the generator's numbers exceed float16.

    Args:
        opt: an option file of ours.
        iterations: of each run.
        storm: iterations in which the generator's output is multiplied by 2^20 and divided by it again.

    Returns:
        The log of each iteration by contender.
    """
    ours = copy.deepcopy(opt)
    ours['train']['optim_wrapper'] = {'type': 'OverflowSafeOptimWrapper', 'dtype': 'float16'}
    logs: dict[str, list[dict[str, float]]] = {}
    for name, settings, kind in (('torch GradScaler', opt, GradScalerESRGANModel), ('OverflowSafeOptimWrapper', ours, None)):
        torch.manual_seed(0)
        model = _model(settings, kind)
        current, logs[name] = [0], []
        _disturb(model.net_g, current, storm)
        for iteration, batch in zip(tqdm(range(1, iterations + 1), desc=name), _batches(model.opt), strict=False):
            current[0] = iteration
            model.feed_data(batch)
            model.optimize_parameters(iteration)
            logs[name].append(dict(model.get_current_log()))
    return logs


def _model(opt: dict[str, Any], kind: type[ESRGANModel] | None) -> Any:
    opt = copy.deepcopy(opt)
    complete(opt, Path.cwd(), auto_resume=False, debug=False)
    start_processes(opt, 'none')
    if kind is not None:
        opt['network_g'] = {**opt['network_g'], 'type': 'RRDBNet'}
        opt['network_g'].pop('activation_memory', None)
    return build_model(opt) if kind is None else kind(opt)


def _disturb(net: nn.Module, current: list[int], storm: range) -> None:
    net.register_forward_hook(lambda module, inputs, output:
                              output * _TOO_LARGE / _TOO_LARGE if current[0] in storm else output)


def _batches(opt: dict[str, Any]) -> Iterator[dict[str, Any]]:
    dataset, count = build_dataset(opt['datasets']['train']), opt['datasets']['train']['batch_size_per_gpu']
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.utils.data.default_collate([dataset[index] for index in torch.randint(len(dataset), (count,),
                                                                                           generator=generator).tolist()])


def draw_storm(logs: dict[str, list[dict[str, float]]], storm: range, target: Path) -> Path:
    """Draw pixel loss and loss scale of both runs over their iterations."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8))
    titles = {'l_g_pix': 'Pixel loss of the generator', 'scale_g': 'Loss scale'}
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        for name, rows in logs.items():
            axis.plot(range(1, len(rows) + 1), [row.get(key, float('nan')) for row in rows], label=name)
        axis.axvspan(storm.start, storm.stop - 1, color='grey', alpha=0.2, label='numbers beyond float16')
        axis.set_yscale('log')
        axis.set_title(title)
        axis.set_xlabel('iteration')
        axis.grid(alpha=0.3)
        axis.legend(fontsize='small')
    return save_figure(figure, target)


def share_of_checks(opt: dict[str, Any], steps: int) -> tuple[float, float]:
    """Seconds of a step, and the share of it that goes into :data:`CHECKS`, as a profiler of calls sees it."""
    torch.manual_seed(0)
    model, profile = _model(opt, None), cProfile.Profile()
    batches = _batches(model.opt)
    for number in range(steps + 2):
        model.feed_data(next(batches))
        if number >= 2:
            profile.enable()
        model.optimize_parameters(number + 1)
        profile.disable()
    stats: dict[Any, Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    whole = _seconds(stats, [type(model).optimize_parameters])
    return whole / steps, _seconds(stats, CHECKS) / whole


def _seconds(stats: dict[Any, Any], functions: Iterable[Any]) -> float:
    places = {(function.__code__.co_filename, function.__code__.co_firstlineno) for function in functions}
    return float(sum(row[3] for (file, line, _), row in stats.items() if (file, line) in places))
