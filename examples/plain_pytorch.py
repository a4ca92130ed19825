"""ESRGAN at an effective batch of 16 with the memory of 4 images, in a loop of one's own.

``plain_pytorch.py`` is the base. The other examples are the base and marked lines: between ``# >>>`` and ``# <<<`` stands
what is new, behind ``# - `` what it replaces.
"""
from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from sr_bigbatch import AdversarialStep, CheckpointedRRDBNet

BATCH, MICRO_BATCH, SCALE = 16, 4, 4


def pairs(count: int) -> TensorDataset:
    """Smooth random images of 32 px and their low-resolution partners; put your photographs here."""
    gt = F.interpolate(torch.rand(count, 3, 4, 4), size=32, mode='bicubic').clamp(0, 1)
    return TensorDataset(F.interpolate(gt, scale_factor=1 / SCALE, mode='area'), gt)


def networks() -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator; any module will do."""
    net_g = CheckpointedRRDBNet(3, 3, SCALE, num_feat=16, num_block=2, num_grow_ch=8)
    net_d = nn.Sequential(nn.Conv2d(3, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 32, 4, 2, 1), nn.GroupNorm(4, 32),
                          nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(32 * 8 * 8, 1))
    return net_g, net_d


def losses(output: Tensor, gt: Tensor, lq: Tensor) -> dict[str, Tensor]:
    """The losses that are means over samples, by the name to log."""
    return {'l_pix': F.l1_loss(output, gt)}


def gan_loss(logits: Tensor, target_is_real: bool, is_disc: bool = False) -> Tensor:
    """The adversarial loss of a batch of logits."""
    loss = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(target_is_real)))
    return loss if is_disc else 0.005 * loss


def make_step(net_g: nn.Module, net_d: nn.Module) -> AdversarialStep:
    """The step: it owns the plan, the check and what a resumed run has to know."""
    opt_g, opt_d = (torch.optim.Adam(net.parameters(), 1e-4, (0.9, 0.99)) for net in (net_g, net_d))
    return AdversarialStep(net_g, net_d, opt_g, opt_d, losses, gan_loss, micro_batch_size=MICRO_BATCH)


def train(epochs: int, path: Path) -> float:
    """Train, save networks and step; returns the last pixel loss."""
    torch.manual_seed(0)
    net_g, net_d = networks()
    loader = DataLoader(pairs(2 * BATCH), BATCH, shuffle=True)
    step = make_step(net_g, net_d)
    for epoch in range(epochs):
        for lq, gt in loader:
            report = step(lq, gt)  # one update of the whole batch
        print(f'epoch {epoch}', {name: round(float(loss), 4) for name, loss in report.losses.items()}, *report.events)
    torch.save({'net_g': net_g.state_dict(), 'net_d': net_d.state_dict(), 'step': step.state_dict()}, path)
    return float(report.losses['l_pix'])


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--epochs', type=int, default=5)
    parser.add_argument('--out', type=Path, default=Path('example.pth'))
    args = parser.parse_args()
    train(args.epochs, args.out)


if __name__ == '__main__':
    main()
