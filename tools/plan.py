#!/usr/bin/env python3
"""Which plan makes your effective batch fit on your GPU? Predicts memory and work without a GPU and without training."""
from __future__ import annotations

import argparse
import json
import sys

import sr_bigbatch  # noqa: F401  (registers the components)
from sr_bigbatch.core.planner import Plan, choose
from sr_bigbatch.hosts.basicsr_options import check
from sr_bigbatch.hosts.basicsr_predict import candidates, stages
from sr_bigbatch.options import OptionError, load, override

CARDS = (4, 6, 8, 11, 12, 16, 24, 32, 40, 48, 80)


def main() -> int:
    """Parse the command line, predict, print the plans; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="FLOPs are a step's over those of BasicSR's undivided step. Peak: live tensors, 4 "
        'percent for fragmentation, 0.6 GB for the CUDA context. Exit status: 0 a plan fits, 1 none does, 2 something in '
        'the options has to be changed first.')
    parser.add_argument('-opt', required=True, metavar='FILE', help='option file')
    parser.add_argument('--vram', type=float, default=8, metavar='GB', help='memory of the GPU (default: 8)')
    parser.add_argument('--val-size', type=int, default=1024, help='largest validation image, pixels (default: 1024)')
    parser.add_argument('--force_yml', nargs='+', default=[], metavar='SECTION:KEY=VALUE', help='change options')
    parser.add_argument('--json', action='store_true', help='print the chosen plan of each stage as JSON')
    args = parser.parse_args()
    try:
        opt = load(args.opt)
        override(opt, args.force_yml)
        check(opt, data=False, weights=False)
    except OptionError as error:
        print(f'{args.opt}: nothing was planned. To be changed:\n{error}', file=sys.stderr)
        return 2
    found = {size: candidates(opt, size, args.val_size) for size in stages(opt)}
    chosen = {size: choose(plans, args.vram * 2**30) for size, plans in found.items()}
    if args.json:
        print(json.dumps({size: plan and vars(plan) for size, plan in chosen.items()}))
    for size, plans in found.items() if not args.json else ():
        show(opt, size, plans, chosen[size], args.vram)
    return 0 if all(chosen.values()) else 1


def show(opt: dict, size: int, plans: list[Plan], chosen: Plan | None, vram: float) -> None:
    """Print the best cut of each policy for a stage, the chosen plan and what the next card would bring."""
    print(f'\n{size} px, effective batch {opt["datasets"]["train"]["batch_size_per_gpu"]}, {vram:g} GB')
    print(f'{"activation_memory":18} {"graphs":9} {"micro-batch":>11} {"peak GB":>8} {"FLOPs":>6}')
    for memory, kept in dict.fromkeys((plan.memory, plan.kept) for plan in plans):
        mine = [plan for plan in plans if (plan.memory, plan.kept) == (memory, kept)]
        best = choose(mine, vram * 2**30) or mine[0]
        mark = '<- chosen' if best == chosen else '' if best.total_bytes <= vram * 2**30 else 'does not fit'
        print(f'{memory:18} {"kept" if kept else "replayed":9} {best.micro:11} {best.total_bytes / 2**30:8.2f} '
              f'{best.flops:6.3f}  {mark}')
    if chosen:
        print('--force_yml ' + ' '.join(chosen.options))
    for card in (card for card in CARDS if card > vram):
        plan = choose(plans, card * 2**30)
        if plan and (chosen is None or plan.flops < chosen.flops - 0.005):
            print(f'With {card} GB: {plan.memory}, graphs {"kept" if plan.kept else "replayed"}, FLOPs {plan.flops:.3f}.')
            return


if __name__ == '__main__':
    sys.exit(main())
