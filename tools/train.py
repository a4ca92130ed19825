#!/usr/bin/env python3
"""Train a super-resolution model from an option file of BasicSR."""
import sys
from pathlib import Path

from sr_bigbatch.cli.train import main

if __name__ == '__main__':
    sys.exit(main(root=Path(__file__).resolve().parent.parent))
