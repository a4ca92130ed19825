#!/usr/bin/env python3
"""Check an option file as a training would, and tell everything that is wrong at once. Nothing is written or downloaded."""
import sys

from sr_bigbatch.cli.check import main

if __name__ == '__main__':
    sys.exit(main())
