"""BasicSR's own network, with the weights of ours."""
from __future__ import annotations

from basicsr.archs.rrdbnet_arch import RRDBNet
from torch import nn

from sr_bigbatch.nets.rrdb import CheckpointedRRDBNet


def plain_rrdb(net: CheckpointedRRDBNet) -> nn.Module:
    """The ``RRDBNet`` that computes what ``net`` computes, by plain operations; ours has backward passes of its own."""
    channels = net.conv_last.out_channels
    plain: nn.Module = RRDBNet(channels, channels, net.scale, net.conv_first.out_channels, len(net.body),
                               net.get_submodule('body.0.rdb1.conv1').out_channels)
    plain.load_state_dict(net.state_dict())
    return plain
