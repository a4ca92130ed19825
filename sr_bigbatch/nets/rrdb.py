"""The generator of ESRGAN (Wang et al. 2018, https://arxiv.org/abs/1809.00219) on a fraction of the memory.

Shapes: lq (M, C, h, w), features (M, F, h, w), output (M, C, H, W) with H = scale * h.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .dense_block import GROWING_CONVS, RESIDUAL_SCALE, dense_block
from .upsampling_tail import MAPS, upsampling_tail


@dataclass(frozen=True)
class Recompute:
    """What a backward pass computes again instead of keeping it.

    Attributes:
        features: of each dense block's four inner features, how many, from the first, 0..4.
        blocks: in place of that, how many RRDBs are kept by their input alone and computed again as a whole; 0 for none.
        tail: of the upsampling tail's three maps, how many, from the last, 0..3.

    Raises:
        ValueError: for a number out of its range.
    """

    features: int = 0
    blocks: int = 0
    tail: int = 0

    def __post_init__(self) -> None:
        for name, most in (('features', GROWING_CONVS), ('blocks', None), ('tail', MAPS)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0 or (most is not None and value > most):
                raise ValueError(f'activation_memory.{name} must be a whole number from 0'
                                 f'{"" if most is None else f" to {most}"}, got {value!r}')


POLICIES = {'lean': Recompute(), 'compact': Recompute(features=GROWING_CONVS, tail=MAPS),
            'minimal': Recompute(blocks=1, tail=MAPS)}
_UNSHUFFLE = {4: 1, 2: 2, 1: 4}


class ResidualDenseBlock(nn.Module):
    """Five convolutions, each of which sees the outputs of all before it.

    Args:
        num_feat: channels F of input and output.
        num_grow_ch: channels that each of the first four convolutions adds.
    """

    def __init__(self, num_feat: int = 64, num_grow_ch: int = 32) -> None:
        super().__init__()
        for index in range(GROWING_CONVS):
            self.add_module(f'conv{index + 1}', nn.Conv2d(num_feat + index * num_grow_ch, num_grow_ch, 3, 1, 1))
        self.conv5 = nn.Conv2d(num_feat + GROWING_CONVS * num_grow_ch, num_feat, 3, 1, 1)
        for conv in self.children():
            _initialise(conv)

    def forward(self, x: Tensor, recomputed: int = 0) -> tuple[Tensor, Tensor]:
        """Returns the output and x itself, both (M, F, h, w); see :func:`sr_bigbatch.nets.dense_block.dense_block`."""
        return dense_block(x, list(self.parameters()), recomputed)


def _initialise(conv: nn.Module) -> None:
    # The small start of ESRGAN: normal of He et al. times 0.1.
    if isinstance(conv, nn.Conv2d) and conv.bias is not None:
        nn.init.kaiming_normal_(conv.weight)
        conv.weight.data *= 0.1
        nn.init.zeros_(conv.bias)


class RRDB(nn.Module):
    """Three residual dense blocks inside a residual connection."""

    def __init__(self, num_feat: int, num_grow_ch: int = 32) -> None:
        super().__init__()
        self.rdb1 = ResidualDenseBlock(num_feat, num_grow_ch)
        self.rdb2 = ResidualDenseBlock(num_feat, num_grow_ch)
        self.rdb3 = ResidualDenseBlock(num_feat, num_grow_ch)

    def forward(self, x: Tensor, recomputed: int = 0) -> tuple[Tensor, Tensor]:
        """Returns the output and x itself, both (M, F, h, w)."""
        out, x = self.rdb1(x, recomputed)
        out, _ = self.rdb2(out, recomputed)
        out, _ = self.rdb3(out, recomputed)
        return out * RESIDUAL_SCALE + x, x


class CheckpointedRRDBNet(nn.Module):
    """BasicSR's RRDBNet: the same arguments, state-dict keys, outputs and gradients, with a choice of what is kept.

    Args:
        num_in_ch: channels of the input image.
        num_out_ch: channels of the output image.
        scale: 4, 2 or 1; for 2 and 1 the input is folded into more channels first (pixel unshuffle).
        num_feat: features F of the trunk.
        num_block: number of RRDBs.
        num_grow_ch: growth inside a dense block.
        activation_memory: what a forward pass keeps for backward. ``lean``: each feature once, nothing is computed
            again. ``compact``: one map of F channels per dense block. ``minimal``: one map per RRDB; everything else is
            computed again. Or the arguments of :class:`Recompute`, as a dict: with ``blocks: k``, every k RRDBs are
            kept by one map.

    Raises:
        ValueError: for another scale or policy.
    """

    def __init__(self, num_in_ch: int, num_out_ch: int, scale: int = 4, num_feat: int = 64, num_block: int = 23,
                 num_grow_ch: int = 32, activation_memory: str | dict[str, int] = 'lean') -> None:
        super().__init__()
        if scale not in _UNSHUFFLE:
            raise ValueError(f'scale must be one of 1, 2 and 4, got {scale!r}')
        self.scale, self.recompute = scale, _read(activation_memory)
        self.conv_first = nn.Conv2d(num_in_ch * _UNSHUFFLE[scale]**2, num_feat, 3, 1, 1)
        self.body = nn.Sequential(*(RRDB(num_feat, num_grow_ch) for _ in range(num_block)))
        self.conv_body = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.conv_up1 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.conv_up2 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.conv_hr = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Upscale ``x`` (M, C, h, w), values in [0, 1], to (M, C, H, W); the values are not clamped."""
        return self.tail(self.trunk(x))

    def tail(self, features: Tensor) -> Tensor:
        """Images (M, C, 4h, 4w) of the trunk's features (M, F, h, w)."""
        convs = (self.conv_up1, self.conv_up2, self.conv_hr, self.conv_last)
        return upsampling_tail(features, [parameter for conv in convs for parameter in conv.parameters()],
                               self.recompute.tail)

    def trunk(self, x: Tensor) -> Tensor:
        """Features of ``x``; for scales 2 and 1 they have half and a quarter of its height and width."""
        skip = out = self.conv_first(F.pixel_unshuffle(x, _UNSHUFFLE[self.scale]))
        together = self.recompute.blocks if torch.is_grad_enabled() else 0
        for start in range(0, len(self.body), together or 1):
            if together:
                out, first_input = checkpoint(self._blocks, out, start, start + together, use_reentrant=False,
                                              preserve_rng_state=False)
            else:
                out, first_input = self._blocks(out, start, start + 1)
            if start == 0:
                skip = first_input
        result: Tensor = skip + self.conv_body(out)
        return result

    def _blocks(self, out: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        first_input = out
        for index, block in enumerate(list(self.body)[start:stop]):
            out, block_input = block(out, self.recompute.features)
            if index == 0:
                first_input = block_input
        return out, first_input


def _read(activation_memory: str | dict[str, int]) -> Recompute:
    if isinstance(activation_memory, dict):
        try:
            return Recompute(**activation_memory)
        except TypeError as error:
            raise ValueError(f'activation_memory takes features, blocks and tail, got {activation_memory!r}') from error
    if activation_memory not in POLICIES:
        raise ValueError(f'activation_memory must be one of {", ".join(POLICIES)}, got {activation_memory!r} (auto is for '
                         'option files of AccumulatingESRGANModel and AccumulatingSRModel)')
    return POLICIES[activation_memory]
