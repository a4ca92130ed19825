"""Pretrained weights of BasicSR's networks: under which key of a file they are, and whether they fit."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from basicsr.utils import get_root_logger
from torch import Tensor, nn

from sr_bigbatch.files.formats import networks_in, refuse_not_finite
from sr_bigbatch.files.storage import BadFile, load_tensors


def weights_of(path: str, keys: Sequence[str | None]) -> dict[str, Tensor]:
    """The weights of one network in a file of BasicSR's, of safetensors, of mmagic or of weights alone.

    Args:
        path: of the file.
        keys: in which it may be, the first that is there; None: the file is the weights.

    Raises:
        BadFile: if the file is torn, hostile, not finite, or does not say which weights are meant.
    """
    networks = networks_in(load_tensors(Path(path)))
    key = key_of(path, networks, keys)
    try:
        refuse_not_finite(networks[key], path)
    except ValueError as error:
        raise BadFile(str(error)) from None
    if key != keys[0]:
        get_root_logger().info(other_key(path, keys[0], key))
    return {name.removeprefix('module.'): value for name, value in networks[key].items()}


def key_of(path: str, networks: dict[str | None, dict[str, Tensor]], keys: Sequence[str | None]) -> str | None:
    """The first of ``keys`` that a file has; otherwise ``params``, as BasicSR does; otherwise the only one that it has.

    Raises:
        BadFile: if it has none, or several and none of these.
    """
    for key in (*keys, 'params'):
        if key in networks:
            return key
    if len(networks) == 1:
        return next(iter(networks))
    if not networks:
        raise BadFile(f'{path} holds no weights of a network')
    raise BadFile(f'{path} has no {keys[0]}, but {", ".join(map(str, networks))}: choose one (path.param_key_g, '
                  'path.param_key_d)')


def other_key(path: str, wanted: str | None, key: str | None) -> str:
    """A sentence for weights that are taken from another key than was wanted; None: the file is the weights."""
    taken = 'its weights stand in it without a key and' if key is None else f'its {key}'
    return f'{path} has no {wanted or "weights without a key"}: {taken} are taken'


def misfit(net: nn.Module, weights: dict[str, Tensor], strict: bool) -> str | None:
    """Why weights cannot be loaded into a network; None if they can.

    Args:
        net: on any device, also on ``meta``.
        weights: by their names, with or without the ``module.`` of DistributedDataParallel.
        strict: whether all names must be the same; otherwise one that fits is enough.
    """
    given: dict[str, tuple[int, ...]] = {name.removeprefix('module.'): tuple(value.shape) for name, value in weights.items()}
    own = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    missing, unknown = [name for name in own if name not in given], [name for name in given if name not in own]
    other = [name for name in own if name in given and given[name] != own[name]]
    if not (missing or unknown or other) or (not strict and len(missing) + len(other) < len(own)):
        return None
    parts = []
    if other:
        name = other[0]
        parts.append(f'{name} is {_size(given[name])} in the file and {_size(own[name])} in the network'
                     + (f', as {len(other) - 1} more are of other sizes' if len(other) > 1 else ''))
    if missing:
        parts.append(f'{len(missing)} of {len(own)} tensors are not in the file, {missing[0]} first')
    if unknown:
        parts.append(f'{len(unknown)} are not in the network, {unknown[0]} first')
    return '; '.join(parts)


def _size(shape: tuple[int, ...]) -> str:
    return 'x'.join(map(str, shape)) or 'one number'
