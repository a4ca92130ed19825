"""In which memory layout the weights of a network lie; its features follow them."""
from __future__ import annotations

import torch
from torch import nn

_GENERATORS = {'CheckpointedRRDBNet', 'RRDBNet'}
_OTHERS = {'GrowableVGGDiscriminator', 'UNetDiscriminatorSN', 'Float32Features'}


def memory_format(net: nn.Module, device: torch.device) -> torch.memory_format:
    """The layout in which ``net`` is fastest on ``device``: channels last on GPUs, whose tensor cores want it.

    On the CPU it makes generators of the RRDB kind faster, and discriminators slower. A network that is not known keeps its
    layout: it may call ``view`` on its features, which fails there.

    Args:
        net: known by the names of its class and base classes, since each host has its own.
        device: where it will run.
    """
    names = {kind.__name__ for kind in type(net).__mro__}
    fast = names & _GENERATORS or (device.type == 'cuda' and names & _OTHERS)
    return torch.channels_last if fast else torch.preserve_format


def arrange(*nets: nn.Module | None) -> None:
    """Bring each network, in place, to the layout in which it is fastest on its device; None is passed over."""
    for net in nets:
        if net is not None and (parameter := next(net.parameters(), None)) is not None:
            layout = memory_format(net, parameter.device)
            if layout is not torch.preserve_format:
                net.to(memory_format=layout)  # type: ignore[call-overload]
