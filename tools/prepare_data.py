#!/usr/bin/env python3
"""Turn a folder of photographs into training data: sub-images, bicubic low resolution, LMDB."""
import sys

from sr_bigbatch.cli.prepare_data import main

if __name__ == '__main__':
    sys.exit(main())
