"""Settings of torch on which the last digits of float32 hang: TF32, and which algorithms cuDNN may choose.

On GPUs from Ampere on (compute capability 8.0), torch lets cuDNN's convolutions round the operands of float32 to TF32, which
has the 10 bits of float16 after the point. They change nothing on the CPU.
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


def set_tf32(allowed: bool | None) -> None:
    """Let float32 convolutions and matrix products round to TF32, in the whole process, or not; None changes nothing."""
    if allowed is not None:
        for owner, name, value in _tf32(allowed):
            setattr(owner, name, value)


@contextmanager
def reproducible() -> Iterator[None]:
    """Inside, float32 is float32 and equal calls give equal results: no TF32, no algorithms that are found by trying."""
    cudnn = torch.backends.cudnn
    with ExitStack() as conditions:
        for owner, name, value in ((cudnn, 'benchmark', False), (cudnn, 'deterministic', True), *_tf32(False)):
            conditions.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield


def _tf32(allowed: bool) -> Iterator[tuple[Any, str, object]]:
    """Owner, name and value of each setting.

    torch has two interfaces, and refuses to read the older one where the newer one was used: only one is touched.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    if hasattr(matmul, 'fp32_precision'):
        for owner in (matmul, cudnn.conv, cudnn.rnn):  # type: ignore[attr-defined]
            yield owner, 'fp32_precision', 'tf32' if allowed else 'ieee'
    else:
        yield cudnn, 'allow_tf32', allowed
        yield matmul, 'allow_tf32', allowed
