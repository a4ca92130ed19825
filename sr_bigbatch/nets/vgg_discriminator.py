"""The VGG-style discriminator of SRGAN and ESRGAN for any input size, which can grow with its input.

Shapes: images (M, C, S, S) with S the input size, features (M, F, s, s), logits (M, 1).
"""
from __future__ import annotations

import itertools
import re
from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

from .batch_norm_conv import batch_norm_conv

NORMS = ('none', 'group', 'spectral', 'batch')
SMALLEST, LARGEST = 32, 1024
_FINAL_SIZE = 4
_SLOPE = 0.2
_HIDDEN = 100


def _stages(input_size: int) -> int:
    return (input_size // _FINAL_SIZE).bit_length() - 1


class GrowableVGGDiscriminator(nn.Module):
    """Judges whole images. Each stage is a 3x3 and a strided 4x4 convolution; the last features are 4x4.

    With ``norm: batch`` and 128 or 256 the state-dict keys are those of BasicSR's ``VGGStyleDiscriminator``, so weights
    trained with it load.

    Args:
        num_in_ch: channels C of the images.
        num_feat: features of the first stage; they double until eight times as many.
        input_size: width and height S of the images, a power of two in 32..1024.
        norm: ``batch``, as in the paper; exact only when the discriminator judges the whole batch at once. ``group``
            (8 groups), ``spectral`` and ``none`` are exact at any micro-batch.

    Raises:
        ValueError: for another size or norm.
    """

    def __init__(self, num_in_ch: int = 3, num_feat: int = 64, input_size: int = 128, norm: str = 'batch') -> None:
        super().__init__()
        _check_size(input_size)
        if norm not in NORMS:
            raise ValueError(f'norm must be one of {", ".join(NORMS)}, got {norm!r}')
        self.input_size, self.norm, self.num_in_ch, self.num_feat = input_size, norm, num_in_ch, num_feat
        for stage in range(_stages(input_size)):
            self._add_stage(stage)
        self.linear1 = nn.Linear(self._width(_stages(input_size) - 1) * _FINAL_SIZE**2, _HIDDEN)
        self.linear2 = nn.Linear(_HIDDEN, 1)

    def _width(self, stage: int) -> int:
        return self.num_feat * min(1 << stage, 8)

    def _add_stage(self, stage: int) -> list[nn.Module]:
        before = self.num_in_ch if stage == 0 else self._width(stage - 1)
        added: OrderedDict[str, nn.Module] = OrderedDict()
        for part, (channels, kernel, stride) in enumerate(((before, 3, 1), (self._width(stage), 4, 2))):
            first = stage == 0 and part == 0
            conv: nn.Module = nn.Conv2d(channels, self._width(stage), kernel, stride, 1,
                                        bias=first or self.norm in ('none', 'spectral'))
            added[f'conv{stage}_{part}'] = spectral_norm(conv) if self.norm == 'spectral' else conv
            if not first and self.norm == 'batch':
                added[f'bn{stage}_{part}'] = nn.BatchNorm2d(self._width(stage))
            elif not first and self.norm == 'group':
                added[f'gn{stage}_{part}'] = nn.GroupNorm(8, self._width(stage))
        for name, module in added.items():
            self.add_module(name, module)
        return list(added.values())

    def forward(self, images: Tensor) -> Tensor:
        """Logits (M, 1) of ``images`` (M, C, S, S).

        Raises:
            ValueError: if the images have another size than this network judges.
        """
        if images.shape[-2:] != (self.input_size, self.input_size):
            raise ValueError(f'the discriminator judges {self.input_size}x{self.input_size} images, got '
                             f'{images.shape[-2]}x{images.shape[-1]}: make network_d.input_size and gt_size equal')
        features = self._features(images)
        hidden = F.leaky_relu_(self.linear1(features.flatten(1)), _SLOPE)
        logits: Tensor = self.linear2(hidden)
        return logits

    def _features(self, images: Tensor) -> Tensor:
        names = [f'{stage}_{part}' for stage in range(_stages(self.input_size)) for part in range(2)]
        if self.norm == 'batch':  # judges whole batches: keep what backward needs and no more
            features: Tensor = checkpoint(self._first, images, use_reentrant=False, preserve_rng_state=False)
            for name, following in itertools.pairwise(names[1:]):
                features = batch_norm_conv(features, getattr(self, f'bn{name}'), getattr(self, f'conv{following}'))
            return F.leaky_relu_(getattr(self, f'bn{names[-1]}')(features), _SLOPE)
        features = self._first(images)
        for name in names[1:]:
            if name != names[1]:
                features = getattr(self, f'conv{name}')(features)
            norm = getattr(self, f'gn{name}', None)
            features = F.leaky_relu_(features if norm is None else norm(features), _SLOPE)
        return features

    def _first(self, images: Tensor) -> Tensor:
        conv0_0, conv0_1 = self.get_submodule('conv0_0'), self.get_submodule('conv0_1')
        first: Tensor = conv0_1(F.leaky_relu_(conv0_0(images), _SLOPE))
        return first

    def stage_parameters(self) -> list[list[nn.Parameter]]:
        """The parameters of each stage, from the image inwards."""
        return [[parameter for name, parameter in self.named_parameters() if _stage_of(name) == stage]
                for stage in range(_stages(self.input_size))]

    def grow_to_match(self, state: Iterable[str]) -> None:
        """Grow until this network has the stages of a saved one, given the keys of its state dict."""
        deepest = max((stage for stage in map(_stage_of, state) if stage is not None), default=0)
        while _stages(self.input_size) <= deepest:
            self.grow()

    @torch.no_grad()
    def grow(self) -> list[nn.Parameter]:
        """Append a stage before the linear layers, for images of twice the size, as BasicSR's 256 px variant has it.

        The new stage starts as identity and 2x2 averaging, so that the linear layers go on seeing what they know.

        Returns:
            The new parameters, which no optimizer knows yet.

        Raises:
            ValueError: at the largest size, or where the appended stage would have more features than the last one.
        """
        _check_size(self.input_size * 2)
        stage = _stages(self.input_size)
        if self._width(stage) != self._width(stage - 1):
            raise ValueError(f'a discriminator for {self.input_size} px cannot grow: start at 64 px or more')
        added = self._add_stage(stage)
        reference = self.linear1.weight
        for module in added:
            module.to(reference)
            module.train(self.training)
        first, second = (getattr(self, f'conv{stage}_{part}') for part in range(2))
        nn.init.dirac_(first.weight.data if self.norm != 'spectral' else first.parametrizations.weight.original.data)
        averaging = torch.zeros_like(second.weight)
        channel = torch.arange(averaging.shape[0], device=averaging.device)
        averaging[channel, channel, 1:3, 1:3] = 0.25
        (second.parametrizations.weight.original if self.norm == 'spectral' else second.weight).data.copy_(averaging)
        for conv in (first, second):
            if conv.bias is not None:
                conv.bias.data.zero_()
        self.input_size *= 2
        return [parameter for module in added for parameter in module.parameters()]


def _stage_of(name: str) -> int | None:
    """The stage to which the parameter ``name`` belongs; None for the linear layers."""
    match = re.match(r'(?:conv|bn|gn)(\d+)_', name)
    return int(match[1]) if match else None


def _check_size(input_size: int) -> None:
    power = isinstance(input_size, int) and input_size > 0 and input_size & (input_size - 1) == 0
    if not power or not SMALLEST <= input_size <= LARGEST:
        raise ValueError(f'input_size must be a power of two in {SMALLEST}..{LARGEST}, got {input_size!r}')
