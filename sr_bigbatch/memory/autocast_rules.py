"""Has autocast on the CPU cast as that of another device does, so that a step there keeps tensors of the same dtypes.

Both cast convolutions and matrix products to 16 bits. But CUDA's autocast runs, among others, normalisations and
interpolations in float32, which the CPU's leaves alone, and the CPU's runs some pooling and padding in float32, which CUDA's
leaves alone.
"""
from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.library import Library, fallthrough_kernel
from torch.utils._pytree import tree_map_only

IN_FLOAT32 = (
    'acos', 'asin', 'cosh', 'erfinv', 'exp', 'expm1', 'log', 'log10', 'log2', 'log1p', 'reciprocal', 'rsqrt', 'sinh', 'tan',
    'pow.Tensor_Scalar', 'pow.Tensor_Tensor', 'pow.Scalar', 'softplus', 'layer_norm', 'native_layer_norm', 'rms_norm',
    'group_norm', 'frobenius_norm.dim', 'nuclear_norm', 'nuclear_norm.dim', 'cosine_similarity', 'dist', 'pdist', 'renorm',
    'logsumexp', 'upsample_nearest1d', '_upsample_nearest_exact1d', 'upsample_nearest2d', '_upsample_nearest_exact2d',
    'upsample_nearest3d', '_upsample_nearest_exact3d', 'upsample_linear1d', 'upsample_bilinear2d', '_upsample_bilinear2d_aa',
    'upsample_trilinear3d', 'upsample_bicubic2d', '_upsample_bicubic2d_aa')
"""What CUDA's autocast gives its arguments in float32 and the CPU's leaves alone (``AT_FORALL_FP32`` in torch's headers)."""
TO_FLOAT32 = ('softmax.int', 'log_softmax.int', 'cumprod', 'cumsum', 'sum', 'sum.dim_IntList', 'linalg_vector_norm',
              'linalg_matrix_norm', 'linalg_matrix_norm.str_ord')
"""What CUDA's autocast gives its arguments as they are, and its result in float32."""
LEFT_ALONE = ('reflection_pad1d', 'reflection_pad2d', 'replication_pad1d', 'replication_pad2d', 'replication_pad3d',
              'avg_pool3d', 'adaptive_avg_pool3d', 'adaptive_max_pool3d', 'max_pool3d', 'max_unpool2d', 'max_unpool3d',
              'fractional_max_pool2d', 'fractional_max_pool3d', 'fft_fft2', 'fft_ifft2', 'fft_rfft2', 'fft_irfft2',
              'fft_fftn', 'fft_ifftn', 'fft_rfftn', 'fft_irfftn')
"""What the CPU's autocast runs in float32 and CUDA's leaves alone."""


@contextmanager
def autocast_as_on(kind: str) -> Iterator[None]:
    """Inside this context CPU tensors, real or fake, are cast by autocast as those of another device would be there.

    Args:
        kind: type of that device: ``'cuda'``; with ``'cpu'`` nothing changes.
    """
    if kind != 'cuda':
        yield
        return
    rules = Library('aten', 'IMPL', 'AutocastCPU')
    with warnings.catch_warnings():  # torch tells of every rule that gives way; they come back with the end of the context
        warnings.filterwarnings('ignore', message='(?s).*Overriding a previously registered kernel', category=UserWarning)
        for name in IN_FLOAT32:
            rules.impl(name, _in_float32(_operator(name)))
        for name in TO_FLOAT32:
            rules.impl(name, _to_float32(_operator(name)))
        for name in LEFT_ALONE:
            rules.impl(name, fallthrough_kernel)
    try:
        yield
    finally:
        del rules  # takes its registrations back


def _operator(name: str) -> Callable[..., Any]:
    packet, _, overload = name.partition('.')
    operator: Callable[..., Any] = getattr(getattr(torch.ops.aten, packet), overload or 'default')
    return operator


def _in_float32(operator: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map_only(Tensor, _widened, (args, kwargs))
        with torch.autocast('cpu', enabled=False):
            return operator(*args, **kwargs)
    return call


def _to_float32(operator: Callable[..., Any]) -> Callable[..., Any]:
    def call(values: Tensor, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Any:
        narrow = values.is_floating_point() and values.dtype is not torch.float64
        with torch.autocast('cpu', enabled=False):
            return operator(values, *args, dtype=torch.float32 if dtype is None and narrow else dtype, **kwargs)
    return call


def _widened(tensor: Tensor) -> Tensor:
    narrow = tensor.is_floating_point() and tensor.dtype is not torch.float64
    return tensor.float() if narrow else tensor
