#!/usr/bin/env python3
"""Train with mmengine's Runner from a configuration file."""
import sys

from sr_bigbatch.cli.train_mmengine import main

if __name__ == '__main__':
    sys.exit(main())
