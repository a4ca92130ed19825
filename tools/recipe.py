#!/usr/bin/env python3
"""Translate a BasicSR option file to another effective batch: the same number of images, each change explained."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sr_bigbatch.files.outputs import OutputRefused, refuse_outputs
from sr_bigbatch.hosts.basicsr.options.check import check
from sr_bigbatch.options import OptionError, load, positive_count
from sr_bigbatch.tasks.recipe import LR_RULES, translate


def main() -> int:
    """Parse the command line, translate; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter,
                                     epilog='Exit status: 0 written, 2 the file cannot be translated.')
    parser.add_argument('source', type=Path, help='option file of ESRGANModel or SRModel')
    parser.add_argument('target', type=Path, help='the option file to write')
    parser.add_argument('--batch', type=positive_count, default=128, help='effective batch, in images')
    parser.add_argument('--lr', choices=LR_RULES, default='same', help='how learning rates grow with the batch')
    parser.add_argument('--overwrite', action='store_true', help='write over a file that is there; never over the source')
    args = parser.parse_args()
    try:
        refuse_outputs([args.source], [args.target], overwrite=args.overwrite)
    except OutputRefused as error:
        print(error, file=sys.stderr)
        return 2
    try:
        text = translate(load(args.source), args.batch, args.lr)
        args.target.write_text(text, encoding='utf-8')
        check(load(args.target), data=False, weights=False)
    except OptionError as error:
        where = args.target if args.target.exists() else args.source
        print(f'{where}:\n{error}', file=sys.stderr)
        return 2
    print(args.target)
    return 0


if __name__ == '__main__':
    sys.exit(main())
