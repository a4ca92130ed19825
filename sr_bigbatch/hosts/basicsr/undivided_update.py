"""The update that BasicSR's own code makes of an undivided batch."""
from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from basicsr.models.esrgan_model import ESRGANModel
from basicsr.models.realesrgan_model import RealESRGANModel
from basicsr.models.sr_model import SRModel
from basicsr.models.srgan_model import SRGANModel

from sr_bigbatch.step.replay import one_power_iteration


def undivided_update(model: Any, iteration: int) -> None:
    """Have ``model``, one of ours with a batch, make an update by the code of the model of BasicSR that it derives from.

    Spectral norms advance once, as in a step of ours.
    """
    if not hasattr(model, 'net_d'):
        host = SRModel
    elif model.settings.relativistic:
        host = ESRGANModel
    else:
        host = RealESRGANModel if hasattr(model, 'gt_usm') else SRGANModel
    nets = [getattr(model, name) for name in ('net_g', 'net_d', 'net_g_ema') if hasattr(model, name)]
    with ExitStack() as frozen:
        for net in nets:
            frozen.enter_context(one_power_iteration(net))
        host.optimize_parameters(model, iteration)
