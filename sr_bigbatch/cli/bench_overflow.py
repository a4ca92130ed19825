"""Train in float16 through a storm of overflows, with torch's GradScaler and with ours; measure what our checks cost."""
from __future__ import annotations

import argparse
import copy
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from sr_bigbatch.cli.options import option_files
from sr_bigbatch.options import positive_count


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, train, measure, print, draw; returns the exit status."""
    return _run(_parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('-opt', default=str(option_files() / 'quickstart.yml'), metavar='FILE',
                        help='option file; its photographs are needed')
    parser.add_argument('--iterations', type=positive_count, default=400, help='of each run')
    parser.add_argument('--storm', type=int, nargs=2, default=(120, 300), metavar=('FROM', 'TO'), help='iterations')
    parser.add_argument('--steps', type=positive_count, default=20, help='profiled steps of the full size')
    parser.add_argument('--picture', type=Path, help='draw curves and scales into this PNG')
    return parser


def _run(args: argparse.Namespace) -> int:
    import torch

    import sr_bigbatch  # noqa: F401  (registers the components)
    from sr_bigbatch.options import load
    from sr_bigbatch.tasks.bench_overflow import draw_storm, share_of_checks, through_a_storm
    opt = load(args.opt)
    print(f'{"cuda" if torch.cuda.is_available() else "CPU"}, torch {torch.__version__}')
    for dtype in ('float32', 'bfloat16', 'float16'):
        opt['train']['optim_wrapper'] = {'type': 'OverflowSafeOptimWrapper', 'dtype': dtype}
        seconds, share = share_of_checks(opt, args.steps)
        told = 'told on a CPU only' if share is None else f'{share:.2%}'
        print(f'{dtype:9} a step takes {seconds:.3f} s, of which checks for overflow: {told}')
    small = copy.deepcopy(opt)
    small['datasets']['train'].update(gt_size=32, batch_size_per_gpu=8)
    small['network_g'].update(num_feat=16, num_grow_ch=8)
    small['network_d'].update(input_size=32)
    small['train'].update(micro_batch_size=4)
    logs = through_a_storm(small, args.iterations, range(*args.storm))
    for name, rows in logs.items():
        last = rows[-1]
        state = 'NaN' if math.isnan(last['l_g_pix']) else f'{sum(row["l_g_pix"] for row in rows[-20:]) / 20:.4f}'
        print(f'{name:26} pixel loss at the end {state}, loss scale {last["scale_g"]:g}')
    if args.picture:
        print(draw_storm(logs, range(*args.storm), args.picture))
    return 0


if __name__ == '__main__':
    sys.exit(main())
