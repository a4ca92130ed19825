"""Which plan makes your effective batch fit on your GPU? Predicts memory and work without a GPU and without training."""
from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from sr_bigbatch.options import positive_count, positive_number


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, predict, print the plans; returns the exit status."""
    return _run(_parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, epilog='Exit status: 0 a plan fits, 1 none does, 2 something in '
                                     'the options has to be changed first.')
    parser.add_argument('-opt', required=True, metavar='FILE', help='option file')
    parser.add_argument('--vram', type=positive_number, default=8, metavar='GB', help='memory of the GPU (default: 8)')
    parser.add_argument('--device', choices=['cuda', 'cpu'], default='cuda', help='what it will run on (default: cuda)')
    parser.add_argument('--processes', type=positive_count, default=1, metavar='K',
                        help='of the run, one per GPU (default: 1)')
    parser.add_argument('--val-size', type=positive_count, default=1024, metavar='PIXELS',
                        help='width of the largest validation image (default: 1024)')
    parser.add_argument('--tflops', type=positive_number, help='what the GPU sustains in convolutions, in 10^12 operations '
                        'a second: then images/s are told, too')
    parser.add_argument('--force_yml', nargs='+', default=[], metavar='SECTION:KEY=VALUE', help='change options')
    parser.add_argument('--json', action='store_true', help='print the chosen plan of each stage as JSON')
    parser.add_argument('--experiment', type=Path, metavar='FOLDER', help='also say whether the batch of this run was too '
                        'small, enough or wasteful, by the gradient noise in its log')
    return parser


def _run(args: argparse.Namespace) -> int:
    import torch

    import sr_bigbatch  # noqa: F401  (registers the components)
    from sr_bigbatch.hosts.basicsr.options.check import check
    from sr_bigbatch.hosts.basicsr.plan.prediction import CannotPredict, candidates
    from sr_bigbatch.hosts.basicsr.settings import TrainingSettings
    from sr_bigbatch.memory.plan_table import describe
    from sr_bigbatch.memory.predict import choose, sustained_flops
    from sr_bigbatch.memory.target import Target
    from sr_bigbatch.options import OptionError, load, override
    from sr_bigbatch.report.run_log import LOG_FILE, noise_verdict
    try:
        opt = load(args.opt)
        override(opt, args.force_yml)
        check(opt, data=False, weights=False)
        settings = TrainingSettings.from_options(opt)
        sizes = [int(opt['datasets']['train']['gt_size']), *(stage.gt_size for stage in settings.stages[1:])]
        print('Predicting, without a GPU; a minute or two for each crop size.', file=sys.stderr)
        target = Target.of_training(args.device, args.processes)
        found = {size: candidates(settings, size, args.val_size, target, os.cpu_count() or 1) for size in sizes}
    except (OptionError, CannotPredict) as error:
        print(f'{args.opt}: nothing was planned. To be changed:\n{error}', file=sys.stderr)
        return 2
    chosen = {size: choose(plans, args.vram * 2**30) for size, plans in found.items()}
    if args.json:
        print(json.dumps({size: plan and asdict(plan) for size, plan in chosen.items()}))
        return 0 if all(chosen.values()) else 1
    # The speed of a CPU says nothing about a GPU.
    measured = torch.cuda.is_available() and not args.tflops
    speed = sustained_flops(torch.device('cuda'), settings.dtype) if measured else (args.tflops or 0) * 1e12
    print(describe(found, settings.batch_size, args.vram, speed or None))
    if args.experiment:
        print(f'\n{noise_verdict(args.experiment / LOG_FILE)}')
    return 0 if all(chosen.values()) else 1


if __name__ == '__main__':
    sys.exit(main())
