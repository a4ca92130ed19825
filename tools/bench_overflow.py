#!/usr/bin/env python3
"""Train in float16 through a storm of overflows, with torch's GradScaler and with ours; measure what our checks cost."""
import sys

from sr_bigbatch.cli.bench_overflow import main

if __name__ == '__main__':
    sys.exit(main())
