#!/usr/bin/env python3
"""Which plan makes your effective batch fit on your GPU? Predicts memory and work without a GPU and without training."""
from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import torch

import sr_bigbatch  # noqa: F401  (registers the components)
from sr_bigbatch.hosts.basicsr.options.check import check
from sr_bigbatch.hosts.basicsr.plan.prediction import CannotPredict, candidates
from sr_bigbatch.hosts.basicsr.settings import TrainingSettings
from sr_bigbatch.memory.plan_table import table
from sr_bigbatch.memory.predict import choose, sustained_flops
from sr_bigbatch.options import OptionError, load, override
from sr_bigbatch.report.run_log import LOG_FILE, noise_verdict


def main() -> int:
    """Parse the command line, predict, print the plans; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="FLOPs are a step's over those of BasicSR's undivided step. Peak: live tensors, "
        '4 percent for fragmentation, 0.6 GB for the CUDA context. Images/s: an upper estimate from the speed of '
        'convolutions, measured on this machine or given by --tflops. Exit status: 0 a plan fits, 1 none does, 2 something '
        'in the options has to be changed first.')
    parser.add_argument('-opt', required=True, metavar='FILE', help='option file')
    parser.add_argument('--vram', type=float, default=8, metavar='GB', help='memory of the GPU (default: 8)')
    parser.add_argument('--val-size', type=int, default=1024, help='largest validation image, pixels (default: 1024)')
    parser.add_argument('--tflops', type=float, help='what the GPU sustains in convolutions, 10^12 operations a second')
    parser.add_argument('--force_yml', nargs='+', default=[], metavar='SECTION:KEY=VALUE', help='change options')
    parser.add_argument('--json', action='store_true', help='print the chosen plan of each stage as JSON')
    parser.add_argument('--experiment', type=Path, metavar='FOLDER', help='also say whether the batch of this run was too '
                        'small, enough or wasteful, by the gradient noise in its log')
    args = parser.parse_args()
    try:
        opt = load(args.opt)
        override(opt, args.force_yml)
        check(opt, data=False, weights=False)
        settings = TrainingSettings.from_options(opt)
        sizes = [int(opt['datasets']['train']['gt_size']), *(stage.gt_size for stage in settings.stages[1:])]
        found = {size: candidates(settings, size, args.val_size, os.cpu_count() or 1) for size in sizes}
    except OptionError as error:
        print(f'{args.opt}: nothing was planned. To be changed:\n{error}', file=sys.stderr)
        return 2
    except CannotPredict as error:
        print(f'{args.opt}: nothing was planned: {error}', file=sys.stderr)
        return 2
    chosen = {size: choose(plans, args.vram * 2**30) for size, plans in found.items()}
    if args.json:
        print(json.dumps({size: plan and vars(plan) for size, plan in chosen.items()}))
        return 0 if all(chosen.values()) else 1
    device = torch.device('cuda' if torch.cuda.is_available() and opt['num_gpu'] != 0 else 'cpu')
    speed = args.tflops * 1e12 if args.tflops else sustained_flops(device, settings.dtype)
    for size, plans in found.items():
        print(f'\n{size} px, effective batch {opt["datasets"]["train"]["batch_size_per_gpu"]}, {args.vram:g} GB')
        print(table(plans, args.vram, speed))
    print(f'\nImages/s at {speed / 1e12:.3g} TFLOP/s{"" if args.tflops else f", measured here ({device.type})"}.')
    if args.experiment:
        print(noise_verdict(args.experiment / LOG_FILE))
    return 0 if all(chosen.values()) else 1


if __name__ == '__main__':
    sys.exit(main())
