#!/usr/bin/env python3
"""Time our exact step beside BasicSR's step on the same undivided batch: images a second, side by side in one run."""
import sys

from sr_bigbatch.cli.bench_step import main

if __name__ == '__main__':
    sys.exit(main())
