"""sr_bigbatch: super-resolution GANs at batch sizes that do not fit on the GPU.

The names below are loaded when they are asked for, and need torch alone. If BasicSR or mmengine is imported, before or
after this package, the components are registered there (:func:`register`).
"""
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sr_bigbatch.registration import register, register_with_hosts

if TYPE_CHECKING:
    from sr_bigbatch.nets.rrdb import CheckpointedRRDBNet
    from sr_bigbatch.step.adversarial_step import AdversarialStep
    from sr_bigbatch.step.check import NotExact
    from sr_bigbatch.step.out_of_memory import OutOfMemory
    from sr_bigbatch.step.overflow_guard import PoisonedWeights
    from sr_bigbatch.step.plan import MicroBatchSizes, StepPlan
    from sr_bigbatch.step.supervised_step import SupervisedStep

__version__ = '0.1.0'
__all__ = ['AdversarialStep', 'CheckpointedRRDBNet', 'MicroBatchSizes', 'NotExact', 'OutOfMemory', 'PoisonedWeights',
           'StepPlan', 'SupervisedStep', 'install', 'register']

_MODULES = {
    'AdversarialStep': 'step.adversarial_step', 'CheckpointedRRDBNet': 'nets.rrdb', 'MicroBatchSizes': 'step.plan',
    'NotExact': 'step.check', 'OutOfMemory': 'step.out_of_memory', 'PoisonedWeights': 'step.overflow_guard',
    'StepPlan': 'step.plan', 'SupervisedStep': 'step.supervised_step'}

install = register
"""The name of :func:`register` in earlier versions."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(importlib.import_module(f'{__name__}.{_MODULES[name]}'), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_with_hosts()
