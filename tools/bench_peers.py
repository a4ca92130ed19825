#!/usr/bin/env python3
"""Print how far an update in parts is from the undivided one, as other trainers make it and as we make it."""
import sys

from sr_bigbatch.cli.bench_peers import main

if __name__ == '__main__':
    sys.exit(main())
