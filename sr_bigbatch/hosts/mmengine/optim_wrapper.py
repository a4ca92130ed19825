"""Mixed precision for mmengine that an overflow cannot harm."""
from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor, nn

from sr_bigbatch.hosts.mmengine.types import Settings, State
from sr_bigbatch.step.base import Step
from sr_bigbatch.step.loss_scale import LossScale
from sr_bigbatch.step.precision import NO_BFLOAT16, autocast, has_bfloat16
from sr_bigbatch.step.update import SafeUpdate, Verdict

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}

WRAPPER = {'type': 'OverflowSafeOptimWrapper', 'dtype': 'float32'}
"""What an optimizer wrapper of a BasicSR training is where the options say nothing."""

_CLIPS: dict[str, tuple[Callable[..., Any], str]] = {
    'norm': (torch.nn.utils.clip_grad_norm_, 'max_norm'),
    'value': (torch.nn.utils.clip_grad_value_, 'clip_value')}


@OPTIM_WRAPPERS.register_module()
class OverflowSafeOptimWrapper(OptimWrapper):  # type: ignore[misc]
    """A drop-in for mmengine's ``AmpOptimWrapper`` with a loss scale that stays in its range, on CPU and GPU.

    A step whose gradient is not finite leaves weights and optimizer state as they are. By itself, under
    ``update_params``, it can then only skip; inside our steps the same batch is repeated at a lower scale.

    Attributes:
        last_verdict: what became of the last gradient; ``safe_update.loss_scale.overflows`` counts the refused ones.

    Args:
        loss_scale: ``'dynamic'``, a first value, or arguments of :class:`sr_bigbatch.step.loss_scale.LossScale`. Only
            float16 is scaled.
        dtype: ``float32``, ``bfloat16`` or ``float16``, as text or torch.dtype; None for autocast's default on the
            device of the parameters.
        use_fsdp: as in ``AmpOptimWrapper``; only False.
        **kwargs: arguments of mmengine's ``OptimWrapper``: ``optimizer``, ``clip_grad``, ``accumulative_counts``. They are
            left as they are, so that wrappers can share them.

    Raises:
        ValueError: for another dtype, bfloat16 on a GPU that only emulates it, sharded gradients, or settings by which
            gradients cannot be clipped.
    """

    def __init__(self, loss_scale: str | float | Settings = 'dynamic', dtype: str | torch.dtype | None = None,
                 use_fsdp: bool = False, **kwargs: Any) -> None:
        if use_fsdp:
            raise ValueError('use_fsdp must be False: sharded gradients are not summed by this wrapper')
        super().__init__(**{**kwargs, 'clip_grad': _clip_settings(kwargs.get('clip_grad'))})
        self.cast_dtype = self._dtype(dtype)
        self.safe_update = SafeUpdate(self.optimizer, self._loss_scale(loss_scale),
                                      self._clip_grad if self.clip_grad_kwargs else None)
        self.last_verdict: Verdict | None = None
        self._step: Step | None = None
        self._saved_step: State | None = None

    def adopt(self, step: Step) -> None:
        """Save the state of ``step`` with this wrapper's from now on, since a Runner saves optimizer wrappers and no steps.

        A state that was loaded before there was a step goes to it now.
        """
        self._step = step
        if self._saved_step is not None:
            step.load_state_dict(self._saved_step)
            self._saved_step = None

    def _dtype(self, dtype: str | torch.dtype | None) -> torch.dtype:
        device = self.optimizer.param_groups[0]['params'][0].device
        if dtype is None:
            dtype = torch.get_autocast_dtype(device.type)
        found = DTYPES.get(str(dtype).removeprefix('torch.'))
        if found is None:
            raise ValueError(f'dtype must be one of {", ".join(DTYPES)}, got {dtype!r}')
        if found is torch.bfloat16 and not has_bfloat16(device):
            raise ValueError(NO_BFLOAT16)
        return found

    def _loss_scale(self, loss_scale: str | float | Settings) -> LossScale:
        if self.cast_dtype is not torch.float16:
            return LossScale.constant()
        if loss_scale == 'dynamic':
            return LossScale()
        if isinstance(loss_scale, dict):
            return LossScale(**loss_scale)
        if isinstance(loss_scale, int | float):
            return LossScale(init_scale=float(loss_scale), floor=min(1.0, float(loss_scale)))
        raise ValueError(f"loss_scale must be 'dynamic', a number or a dict, got {loss_scale!r}")

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Differentiate the scaled loss."""
        super().backward(loss * self.safe_update.scale, **kwargs)

    def step(self, **kwargs: Any) -> None:
        """Make the optimizer step if the gradient is finite; ``last_verdict`` says what happened."""
        self.last_verdict = self.safe_update.commit()

    def state_dict(self) -> State:
        """State of the optimizer, of the loss scale (``loss_scaler``, in the layout of ``AmpOptimWrapper``) and of the step
        (``step``).
        """
        state: State = super().state_dict()
        state['loss_scaler'] = self.safe_update.loss_scale.state_dict()
        if self._step is not None:
            state['step'] = self._step.state_dict()
        elif self._saved_step is not None:  # no step has been made since it was loaded
            state['step'] = self._saved_step
        return state

    def load_state_dict(self, state_dict: State) -> None:
        """Take over a state of this class, of ``AmpOptimWrapper`` or of ``OptimWrapper``."""
        state_dict = dict(state_dict)
        self.safe_update.loss_scale.load_state_dict(state_dict.pop('loss_scaler', {}))
        saved_step = state_dict.pop('step', None)
        if self._step is None:
            self._saved_step = saved_step
        elif saved_step is not None:
            self._step.load_state_dict(saved_step)
        if 'state' in state_dict:
            state_dict['state'] = {index: _counted_on_the_host(entries) for index, entries in state_dict['state'].items()}
        super().load_state_dict(state_dict)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast to the wrapper's dtype, without gradient synchronisation while gradients accumulate."""
        device = self.optimizer.param_groups[0]['params'][0].device
        with super().optim_context(model), autocast(device, self.cast_dtype):
            yield


def _counted_on_the_host(entries: State) -> State:
    """An optimizer's entries of a parameter, with ``step`` on the CPU.

    mmengine reads checkpoints onto the GPU, and torch leaves ``step`` where it finds it: Adam would then wait for the GPU
    once for each parameter in every step. Optimizers that want it there (``fused``, ``capturable``) move it back.
    """
    return {name: value.cpu() if name == 'step' and isinstance(value, Tensor) else value for name, value in entries.items()}


def _clip_settings(settings: Any) -> Settings | None:
    """A copy of ``clip_grad``, which mmengine takes apart; tried here, because mmengine first uses it in a step."""
    if settings is None:
        return None
    if not isinstance(settings, Mapping) or str(settings.get('type', 'norm')) not in _CLIPS:
        raise ValueError(f'clip_grad must be {{max_norm: 1}} or {{type: value, clip_value: 1}}, got {settings!r}')
    copied = copy.deepcopy(dict(settings))
    function, limit = _CLIPS[copied.get('type', 'norm')]
    if limit not in copied:
        raise ValueError(f'clip_grad needs {limit}, a positive number, got {settings!r}')
    for name in {limit, 'norm_type'} & set(copied):
        if not _is_positive(copied[name]):
            raise ValueError(f'clip_grad.{name} must be a positive number, got {copied[name]!r}')
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    try:
        function([weight], **{name: value for name, value in copied.items() if name != 'type'})
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f'clip_grad: {error}') from error
    return copied


def _is_positive(value: Any) -> bool:
    """Whether torch's ``float(value)`` is a number above 0; infinity is one, as a norm without limit."""
    try:
        return not isinstance(value, bool) and float(value) > 0
    except (TypeError, ValueError):
        return False
