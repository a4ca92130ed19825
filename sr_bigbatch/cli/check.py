"""Check an option file as a training would, and tell everything that is wrong at once. Nothing is written or downloaded."""
from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence

from sr_bigbatch.options import positive_number


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, check; returns the exit status."""
    parser = _parser()
    args = parser.parse_args(arguments)
    return _run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, epilog='Exit status: 0 a training can start, 2 something has to '
                                     'be changed first.')
    parser.add_argument('-opt', metavar='FILE', help='option file')
    parser.add_argument('--force_yml', nargs='+', default=[], metavar='SECTION:KEY=VALUE', help='change options')
    parser.add_argument('--vram', type=positive_number, metavar='GB', help='also predict whether it fits a GPU of this size')
    parser.add_argument('--schema', action='store_true', help="print the JSON schema of this package's keys, for editors")
    parser.add_argument('--reference', action='store_true', help='print these keys as a Markdown page')
    return parser


def _run(args: argparse.Namespace) -> int:
    import sr_bigbatch  # noqa: F401  (registers the components)
    from sr_bigbatch.hosts.basicsr.options.check import check
    from sr_bigbatch.hosts.basicsr.options.notes import notes
    from sr_bigbatch.hosts.basicsr.options.reference import reference
    from sr_bigbatch.hosts.basicsr.options.schema import SCHEMA
    from sr_bigbatch.hosts.basicsr.plan.automatic import choose_plan, plan_later_stages
    from sr_bigbatch.hosts.basicsr.settings import TrainingSettings
    from sr_bigbatch.memory.target import Target
    from sr_bigbatch.options import OptionError, load, override
    if args.schema or args.reference:
        print(json.dumps(SCHEMA, indent=1) if args.schema else reference(), end='')
        return 0
    if args.opt is None:
        _parser().error('give -opt FILE, or --schema')
    try:
        opt = load(args.opt)
        override(opt, args.force_yml)
        check(opt)
        if args.vram:
            settings = TrainingSettings.from_options(opt)
            target = Target.of_training('cuda')
            plan_later_stages(settings, args.vram * 2**30, target)
            plan = choose_plan(settings, int(opt['datasets']['train']['gt_size']), args.vram * 2**30, target)
            print(f'Predicted peak {plan.total_bytes / 2**30:.2f} GB of {args.vram:g} GB: {shlex.join(plan.options)}')
    except OptionError as error:
        print(f'{args.opt}: {len(error.findings)} to be changed:\n{error}', file=sys.stderr)
        return 2
    print('\n'.join(f'{args.opt}: {line}' for line in [*notes(opt), 'nothing to be changed.']))
    return 0


if __name__ == '__main__':
    sys.exit(main())
