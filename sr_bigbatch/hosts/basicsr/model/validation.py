"""Generates a validation image that may be larger than the memory."""
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from basicsr.utils import get_root_logger

from sr_bigbatch.hosts.basicsr.model import saved_state
from sr_bigbatch.step.out_of_memory import is_out_of_memory, release

if TYPE_CHECKING:
    from sr_bigbatch.hosts.basicsr.model.accumulating import Accumulating


def generate(model: Accumulating, test: Callable[[], None]) -> None:
    """Have the host generate the image of ``model.lq``; if it does not fit, with all memory released, then on the CPU.

    Args:
        model: one of our models.
        test: the host's own method.
    """
    nets = [net for label, net in saved_state.networks(model).items() if label != 'net_d']
    for device in (model.device, model.device, torch.device('cpu')):
        try:
            for net in nets:
                net.to(device)
            model.lq = model.lq.to(device)
            test()
            return
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            failed = str(error).split('\n')[0]
        finally:
            for net in nets:
                net.to(model.device)
            model.net_g.train()
        release(model.device)
        get_root_logger().warning(f'A validation image of {tuple(model.lq.shape)} ran out of memory and is tried again '
                                  f'({failed})')
    raise RuntimeError(failed)
