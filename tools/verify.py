#!/usr/bin/env python3
"""Is the update of your training that of the undivided batch? Tries it on your own option file."""
import sys

from sr_bigbatch.cli.verify import main

if __name__ == '__main__':
    sys.exit(main())
