"""Train a super-resolution model from an option file of BasicSR."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sr_bigbatch.memory.allocator import use_expandable_segments


def main(arguments: Sequence[str] | None = None, root: Path | None = None) -> int:
    """Parse the command line, check the options, train; returns the exit status.

    Args:
        arguments: of the command line.
        root: where experiments are written; the working directory if it is not given.
    """
    return _run(_parser().parse_args(arguments), root or Path.cwd())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog='Exit status: 0 finished, 1 the training could not go on, 2 something in the options '
        'has to be changed first, 128 + N ended and saved by signal N (SIGTERM, SIGINT, SIGUSR1).')
    parser.add_argument('-opt', required=True, metavar='FILE', help='option file, e.g. options/quickstart.yml')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none',
                        help='how several processes were started; torchrun needs pytorch')
    parser.add_argument('--auto_resume', action='store_true', help='go on from the newest state of this experiment')
    parser.add_argument('--debug', action='store_true', help='log every iteration, save and validate every 8')
    parser.add_argument('--force_yml', nargs='+', default=[], metavar='SECTION:KEY=VALUE',
                        help='change options, e.g. train:total_iter=100 network_g:num_block=6; values are YAML')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0,
                        help='accepted for old launchers; the environment variable LOCAL_RANK counts')
    return parser


def _run(args: argparse.Namespace, root: Path) -> int:
    use_expandable_segments()  # torch reads it when it is imported

    import sr_bigbatch  # noqa: F401  (registers the components, and mends what `import basicsr` needs)
    from sr_bigbatch.files.run_lock import FolderInUse
    from sr_bigbatch.hosts.basicsr.model.saved_state import GaveUp
    from sr_bigbatch.hosts.basicsr.options.check import check, complete
    from sr_bigbatch.hosts.basicsr.options.notes import notes
    from sr_bigbatch.hosts.basicsr.training.loader import BadImage
    from sr_bigbatch.hosts.basicsr.training.train import start_processes, train
    from sr_bigbatch.options import OptionError, load, override
    from sr_bigbatch.step.distributed import leave_group
    from sr_bigbatch.step.out_of_memory import OutOfMemory
    try:
        opt = load(args.opt)
        override(opt, args.force_yml)
        check(opt)
        told = notes(opt)
        complete(opt, root, auto_resume=args.auto_resume, debug=args.debug)
        start_processes(opt, args.launcher)
        for note in told if opt['rank'] == 0 else []:
            print(f'{args.opt}: {note}', file=sys.stderr)
        status = train(opt, args.opt)
        leave_group()
        return status
    except OptionError as error:
        print(f'{args.opt}: training has not started. To be changed:\n{error}', file=sys.stderr)
        leave_group()  # all processes find the same
        return 2
    except FolderInUse as error:
        print(f'{args.opt}: training has not started: {error}', file=sys.stderr)
        return 2
    except (GaveUp, OutOfMemory, BadImage) as error:
        print(f'{args.opt}: the training has ended: {error}', file=sys.stderr)
        return 1


if __name__ == '__main__':
    sys.exit(main())
