"""Is the update of your training that of the undivided batch? Tries it on your own option file."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, verify, print a table; returns the exit status."""
    return _run(_parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="One update by BasicSR's own code on the undivided batch is compared with ours and with "
        'plain gradient accumulation, in float64, on random images. Exit status: 0 it holds, 1 it does not, 2 something in '
        'the options has to be changed first.')
    parser.add_argument('-opt', required=True, metavar='FILE', help='option file')
    parser.add_argument('--full', action='store_true', help='networks, crops and batch at their real size (slow, large)')
    parser.add_argument('--force_yml', nargs='+', default=[], metavar='SECTION:KEY=VALUE', help='change options')
    parser.add_argument('--seed', type=int, default=0, help='of networks and images')
    return parser


def _run(args: argparse.Namespace) -> int:
    import sr_bigbatch  # noqa: F401  (registers the components)
    from sr_bigbatch.hosts.basicsr.options.check import check
    from sr_bigbatch.options import OptionError, load, override
    from sr_bigbatch.tasks.verify import TOLERANCE, reduce, verify
    try:
        opt = load(args.opt)
        override(opt, args.force_yml)
        check(opt, data=False)
        if not args.full:
            reduce(opt)
        differences = verify(opt, Path.cwd(), args.seed)
    except OptionError as error:
        print(f'{args.opt}: nothing was verified. To be changed:\n{error}', file=sys.stderr)
        return 2
    print(f'{"":20}  {"ours":>10}  {"plain accumulation":>18}   (relative difference from the undivided update)')
    for found in differences:
        plain = '-' if found.plain is None else f'{found.plain:.1e}'
        print(f'{found.network:20}  {found.divided:10.1e}  {plain:>18}   {"holds" if found.holds else "DOES NOT HOLD"}')
    holds = all(found.holds for found in differences)
    print(f'The update {"is" if holds else "is NOT"} that of the undivided batch (tolerance {TOLERANCE:.0e}, float64).')
    return 0 if holds else 1


if __name__ == '__main__':
    sys.exit(main())
