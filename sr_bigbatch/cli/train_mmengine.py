"""Train with mmengine's Runner from a configuration file."""
from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sr_bigbatch.memory.allocator import use_expandable_segments


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, train; returns the exit status."""
    return _run(_parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, epilog='Exit status: 0 finished, 1 the training could not go on, '
                                     '2 the configuration has to be changed first, 128 + N ended and saved by signal N.')
    parser.add_argument('config', help='e.g. options/mmengine/quickstart.py')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints')
    parser.add_argument('--resume', action='store_true', help='go on from the newest checkpoint of the folder')
    parser.add_argument('--amp', action='store_true', help='mixed precision: bfloat16 on a CPU, float16 on a GPU')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE',
                        help='change the configuration, e.g. train_cfg.max_iters=100')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
                        help='how several processes were started; torchrun needs pytorch')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    return parser


def _run(args: argparse.Namespace) -> int:
    use_expandable_segments()  # torch reads it when it is imported

    import sr_bigbatch  # noqa: F401  (registers the components)
    from sr_bigbatch.files.storage import BadFile
    from sr_bigbatch.hosts.mmengine.runner import configuration, run
    from sr_bigbatch.hosts.mmengine.safe_runner import RunEnded
    from sr_bigbatch.options import OptionError
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if not Path(args.config).is_file():
        print(f'there is no file {args.config}', file=sys.stderr)
        return 2
    try:
        config = configuration(args.config, args.cfg_options)
    except (ImportError, SyntaxError, ValueError, KeyError) as error:
        print(f'{args.config}: {type(error).__name__}: {error}', file=sys.stderr)
        return 2
    config.launcher, config.resume = args.launcher, args.resume
    if args.work_dir:
        config.work_dir = args.work_dir
    config.setdefault('work_dir', str(Path('experiments') / Path(args.config).stem))
    try:
        run(config, amp=args.amp)
    except OptionError as error:
        print(f'{args.config}: training has not started. To be changed:\n{error}', file=sys.stderr)
        return 2
    except RunEnded as error:
        print(f'{args.config}: the training has ended: {error}', file=sys.stderr)
        return error.status
    except BadFile as error:
        print(f'{args.config}: training has not started: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
