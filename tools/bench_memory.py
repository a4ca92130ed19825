#!/usr/bin/env python3
"""What a generator keeps per sample for its backward pass, and how long a step takes, beside BasicSR's RRDBNet."""
import sys

from sr_bigbatch.cli.bench_memory import main

if __name__ == '__main__':
    sys.exit(main())
