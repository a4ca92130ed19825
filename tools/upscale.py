#!/usr/bin/env python3
"""Upscale photographs with the weights of any RRDBNet: files, folders, patterns; tile by tile, without seams."""
import sys

from sr_bigbatch.cli.upscale import main

if __name__ == '__main__':
    sys.exit(main())
