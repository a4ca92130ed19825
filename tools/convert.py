#!/usr/bin/env python3
"""Convert the weights of a generator between BasicSR, mmagic and AccumulatingESRGAN, in any direction and without loss."""
from __future__ import annotations

import argparse
import pickle
import sys
from pathlib import Path

import torch

import sr_bigbatch  # noqa: F401  (so that this script sees the same package as the training)
from sr_bigbatch.core.storage import save_atomically
from sr_bigbatch.core.weights import FORMATS, converted
from sr_bigbatch.hosts.mmengine_train import admit_histories


def main() -> int:
    """Parse the command line, convert; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, epilog='Exit status: 0 written, 2 the file is no such checkpoint.')
    parser.add_argument('source', type=Path, help='checkpoint with a generator')
    parser.add_argument('target', type=Path, help='the file to write')
    parser.add_argument('--to', choices=FORMATS, required=True)
    args = parser.parse_args()
    admit_histories()
    try:
        checkpoint = torch.load(args.source, map_location='cpu', weights_only=True)
        save_atomically(converted(checkpoint, args.to), args.target)
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        print(f'{args.source}: {str(error).splitlines()[0]}', file=sys.stderr)
        return 2
    print(args.target)
    return 0


if __name__ == '__main__':
    sys.exit(main())
