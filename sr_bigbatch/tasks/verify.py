"""Makes one update of a user's own training undivided and divided, and measures how far they are apart."""
from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sr_bigbatch.hosts.basicsr.outside_training import model_of
from sr_bigbatch.hosts.basicsr.synthesis.settings import REAL_ESRGAN
from sr_bigbatch.hosts.basicsr.undivided_update import undivided_update
from sr_bigbatch.options import OptionError
from sr_bigbatch.step.plan import MicroBatchSizes, StepPlan
from sr_bigbatch.step.replay import one_power_iteration

TOLERANCE = 1e-10
_SPREAD = 3.0  # of a trained discriminator's logits
_SMALL_BATCH = 7


@dataclass(frozen=True)
class Difference:
    """Relative distance of an update from the undivided one, in the 2-norm over all parameters."""

    network: str
    divided: float
    plain: float | None

    @property
    def holds(self) -> bool:
        """Whether the divided update is the undivided one, up to rounding in float64."""
        return self.divided <= TOLERANCE


def reduce(opt: dict[str, Any]) -> None:
    """Make the options small enough to be verified in seconds: fewer blocks and features, small crops, batch 7."""
    network_g, network_d, data = opt['network_g'], opt.get('network_d') or {}, opt['datasets']['train']
    if network_g['type'] in ('CheckpointedRRDBNet', 'RRDBNet'):
        network_g.update(num_block=2, num_feat=16, num_grow_ch=8)
    if network_d.get('type') == 'GrowableVGGDiscriminator':
        network_d.update(input_size=64, num_feat=8)
        data['gt_size'] = 64
    elif network_d.get('type') != 'VGGStyleDiscriminator':
        data['gt_size'] = 64
    data['batch_size_per_gpu'] = min(_SMALL_BATCH, int(data['batch_size_per_gpu']))
    micro = opt['train'].get('micro_batch_size', 2)
    if isinstance(micro, dict):
        opt['train']['micro_batch_size'] = {part: max(1, min(int(size), data['batch_size_per_gpu'] // 2))
                                            for part, size in micro.items()}
    else:
        opt['train']['micro_batch_size'] = 2
    opt['custom_hooks'] = []


def verify(opt: dict[str, Any], root: Path, seed: int = 0) -> list[Difference]:
    """Compare one update of BasicSR's own code on the undivided batch with ours and with plain accumulation.

    Everything runs in float64. The logits are spread as a trained discriminator's are. Adam gets a rate and an epsilon of 1
    and the average a decay of 0.5, because Adam would otherwise divide each gradient by itself at its first step, and small
    updates of large weights would be lost in rounding.

    Args:
        opt: options, checked but for files.
        root: of the experiment's folders; nothing is written there.
        seed: of networks and images.

    Returns:
        One difference each for generator, discriminator and averaged generator.
    """
    model = _model(opt, root, seed)
    data, scale = opt['datasets']['train'], opt['scale']
    size, count = int(data['gt_size']), int(data['batch_size_per_gpu'])
    generator = torch.Generator().manual_seed(seed)
    brightness = torch.linspace(0.2, 1, count, dtype=torch.float64).view(-1, 1, 1, 1)  # samples differ, as photographs do
    gt = torch.rand(count, 3, size, size, generator=generator, dtype=torch.float64) * brightness
    lq = nn.functional.interpolate(gt, scale_factor=1 / scale, mode='area')
    model.lq, model.gt = lq.to(model.device), gt.to(model.device)
    _spread_logits(model)
    start = _snapshot(model)
    undivided = _update(model, start, None)
    divided = _update(model, start, model.first_plan)
    smallest = min(vars(model.first_plan.micro).values())
    plain = None if smallest >= count else _update(model, start, replace(
        model.first_plan, micro=MicroBatchSizes(smallest, smallest, smallest), exact=False))
    return [Difference(name, _distance(divided[name], undivided[name], start[name]),
                       None if plain is None else _distance(plain[name], undivided[name], start[name]))
            for name in start]


def _model(opt: dict[str, Any], root: Path, seed: int) -> Any:
    opt = copy.deepcopy(opt)
    for name in ('optim_g', 'optim_d'):
        if opt['train'].get(name):
            opt['train'][name].update(lr=1.0, eps=1.0)
    if opt['train'].get('ema_decay'):
        opt['train']['ema_decay'] = 0.5
    opt['train']['optim_wrapper'] = {'dtype': 'float32'}  # no autocast, and no clipping, which BasicSR does not have
    if opt['train'].get('ldl_opt') and opt['model_type'] != REAL_ESRGAN:
        raise OptionError(['train.ldl_opt: no model of BasicSR makes the undivided update with relativistic and artifact '
                           'loss; verify without it (--force_yml train:ldl_opt=~)'])
    model = model_of(opt, root, seed)
    losses = (getattr(model, name, None) for name in ('cri_pix', 'cri_perceptual', 'cri_ldl', 'cri_gan'))
    for part in (*_networks(model).values(), *losses):
        if part is not None:
            part.double()
    return model


def _networks(model: Any) -> dict[str, nn.Module]:
    names = {'generator': 'net_g', 'discriminator': 'net_d', 'averaged generator': 'net_g_ema'}
    return {label: getattr(model, name) for label, name in names.items() if hasattr(model, name)}


def _spread_logits(model: Any) -> None:
    if not hasattr(model, 'net_d'):
        return
    with torch.no_grad(), one_power_iteration(model.net_d):
        spread = model.net_d(model.gt).std()
        layers = [module for module in model.net_d.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        layers[-1].weight.mul_(_SPREAD / spread.clamp_min(1e-12))


def _snapshot(model: Any) -> dict[str, dict[str, Tensor]]:
    return {label: copy.deepcopy(net.state_dict()) for label, net in _networks(model).items()}


def _update(model: Any, start: dict[str, dict[str, Tensor]], plan: StepPlan | None) -> dict[str, dict[str, Tensor]]:
    """Make one update from ``start``: ours with a plan, BasicSR's without."""
    for label, net in _networks(model).items():
        net.load_state_dict(start[label])
    for optimizer in model.optimizers:
        optimizer.state.clear()
    iteration = model.opt['train'].get('net_d_init_iters', 0) + model.opt['train'].get('net_d_iters', 1)
    iteration += -iteration % model.opt['train'].get('net_d_iters', 1)
    if plan is not None:
        model.step.plan = plan
        model.optimize_parameters(iteration)
    else:
        undivided_update(model, iteration)
    return _snapshot(model)


def _distance(update: dict[str, Tensor], reference: dict[str, Tensor], start: dict[str, Tensor]) -> float:
    names = [name for name, value in reference.items() if value.is_floating_point() and 'running_' not in name]
    error = sum(((update[name] - reference[name])**2).sum() for name in names)
    moved = sum(((start[name] - reference[name])**2).sum() for name in names)
    return float(torch.as_tensor(error / moved).sqrt())

