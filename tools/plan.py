#!/usr/bin/env python3
"""Which plan makes your effective batch fit on your GPU? Predicts memory and work without a GPU and without training."""
import sys

from sr_bigbatch.cli.plan import main

if __name__ == '__main__':
    sys.exit(main())
