#!/usr/bin/env python3
"""Draw progressive runs beside one another: losses, logit gap, effective batch, PSNR and images across the borders."""
import sys

from sr_bigbatch.cli.draw_progress import main

if __name__ == '__main__':
    sys.exit(main())
