#!/usr/bin/env python3
"""Train a super-resolution model from an option file of BasicSR."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sr_bigbatch.memory.allocator import use_expandable_segments

use_expandable_segments()  # torch reads it when it is imported

import sr_bigbatch  # noqa: E402, F401  (registers the components, and mends what `import basicsr` needs)
from sr_bigbatch.files.run_lock import FolderInUse  # noqa: E402
from sr_bigbatch.hosts.basicsr.model.saved_state import GaveUp  # noqa: E402
from sr_bigbatch.hosts.basicsr.options.check import check, complete  # noqa: E402
from sr_bigbatch.hosts.basicsr.options.notes import notes  # noqa: E402
from sr_bigbatch.hosts.basicsr.training.loader import BadImage  # noqa: E402
from sr_bigbatch.hosts.basicsr.training.train import start_processes, train  # noqa: E402
from sr_bigbatch.options import OptionError, load, override  # noqa: E402
from sr_bigbatch.step.distributed import leave_group  # noqa: E402
from sr_bigbatch.step.out_of_memory import OutOfMemory  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Parse the command line, check the options, train; returns the exit status."""
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
    args = parser.parse_args()
    try:
        opt = load(args.opt)
        override(opt, args.force_yml)
        check(opt)
        told = notes(opt)
        complete(opt, ROOT, auto_resume=args.auto_resume, debug=args.debug)
        start_processes(opt, args.launcher)
        for note in told if opt['rank'] == 0 else []:
            print(f'{args.opt}: {note}', file=sys.stderr)
        status = train(opt, args.opt)
        leave_group()
        return status
    except OptionError as error:
        print(f'{args.opt}: training has not started. To be changed:\n{error}', file=sys.stderr)
        return 2
    except FolderInUse as error:
        print(f'{args.opt}: training has not started: {error}', file=sys.stderr)
        return 2
    except (GaveUp, OutOfMemory, BadImage) as error:
        print(f'{args.opt}: the training has ended: {error}', file=sys.stderr)
        return 1


if __name__ == '__main__':
    sys.exit(main())
