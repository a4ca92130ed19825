"""Writes a generator as ONNX, for programs without torch."""
from __future__ import annotations

import logging
from pathlib import Path

import torch

from sr_bigbatch.files.storage import write_atomically
from sr_bigbatch.hosts.basicsr.plain_rrdb import plain_rrdb
from sr_bigbatch.nets.rrdb import CheckpointedRRDBNet

_EXAMPLE = 64  # pixels


def export_onnx(net: CheckpointedRRDBNet, path: Path) -> None:
    """Write ``net`` with input ``image`` (N, C, h, w) and output ``upscaled`` (N, C, H, W), float32; N, h and w are free.

    Raises:
        OSError: if it could not be written.
        ImportError: if onnx or onnxscript is not installed.
    """
    channels = net.conv_last.out_channels
    logging.getLogger('torch.onnx').setLevel(logging.ERROR)
    example = torch.rand(2, channels, _EXAMPLE, _EXAMPLE)
    free = {0: torch.export.Dim('n'), 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.onnx.export(plain_rrdb(net).eval(), (example,), dynamo=True, input_names=['image'],
                                output_names=['upscaled'], dynamic_shapes=(free,), verbose=False)
    if program is None:
        raise RuntimeError('torch.onnx.export returned nothing')
    content = program.model_proto.SerializeToString()
    write_atomically(lambda file: file.write(content), path)
