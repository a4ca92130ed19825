#!/usr/bin/env python3
"""Translate an option file of BasicSR or a recipe of DL-Art-School to another effective batch; each change is explained."""
import sys

from sr_bigbatch.cli.recipe import main

if __name__ == '__main__':
    sys.exit(main())
