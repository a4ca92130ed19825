"""Translate an option file of BasicSR or a recipe of DL-Art-School to another effective batch; each change is explained."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sr_bigbatch.options import positive_count


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, translate; returns the exit status."""
    return _run(_parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, epilog='The number of images stays the same. Exit status: 0 '
                                     'written, 2 the file cannot be translated.')
    parser.add_argument('source', type=Path, help="option file of BasicSR's ESRGANModel, SRModel, RealESRGANModel or "
                        'RealESRNetModel, or a recipe of DL-Art-School')
    parser.add_argument('target', type=Path, help='the option file to write')
    parser.add_argument('--batch', type=positive_count, help='effective batch, in images (default: 128; for a recipe of '
                        'DL-Art-School its own)')
    parser.add_argument('--lr', choices=('same', 'sqrt', 'linear'), default='same',
                        help='how learning rates grow with the batch (default: same)')
    parser.add_argument('--overwrite', action='store_true', help='write over a file that is there; never over the source')
    return parser


def _run(args: argparse.Namespace) -> int:
    from sr_bigbatch.files.outputs import OutputRefused, refuse_outputs
    from sr_bigbatch.hosts.basicsr.options.check import check
    from sr_bigbatch.options import OptionError, load
    from sr_bigbatch.tasks.recipe import translate
    from sr_bigbatch.tasks.recipe_dlas import from_dlas, is_dlas
    try:
        refuse_outputs([args.source], [args.target], overwrite=args.overwrite)
    except OutputRefused as error:
        print(error, file=sys.stderr)
        return 2
    try:
        opt = load(args.source)
        recipe = from_dlas(opt, args.batch, args.lr) if is_dlas(opt) else translate(opt, args.batch or 128, args.lr)
        args.target.write_text(recipe.text(), encoding='utf-8')
        check(load(args.target), data=False, weights=False)
    except OptionError as error:
        where = args.target if args.target.exists() else args.source
        print(f'{where}:\n{error}', file=sys.stderr)
        return 2
    print(f'{recipe.table()}\n\nWritten: {args.target}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
