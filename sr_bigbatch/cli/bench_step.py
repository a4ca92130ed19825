"""Time our exact step beside BasicSR's step on the same undivided batch: images a second, side by side in one run."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sr_bigbatch.cli.options import option_files
from sr_bigbatch.options import positive_count


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, time, print a table; returns the exit status."""
    return _run(_parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter,
                                     epilog="VGG19 gets random weights: its time is real, its losses mean nothing.")
    parser.add_argument('-opt', default=str(option_files() / 'esrgan_128_bs128.yml'), metavar='FILE', help='option file')
    parser.add_argument('--gt-size', type=positive_count, default=128, help='width of the ground-truth crops, pixels')
    parser.add_argument('--batch', type=positive_count, default=8, help='effective batch')
    parser.add_argument('--micro', type=positive_count, default=4, help='micro-batch')
    parser.add_argument('--blocks', type=positive_count, default=23, help='RRDBs of the generator')
    parser.add_argument('--rounds', type=positive_count, default=4, help='timed steps of each candidate')
    parser.add_argument('--only', default='', metavar='TEXT', help='BasicSR and the candidates whose name holds this')
    return parser


def _run(args: argparse.Namespace) -> int:
    import torch

    import sr_bigbatch  # noqa: F401  (registers the components)
    from sr_bigbatch.hosts.basicsr.outside_training import random_vgg
    from sr_bigbatch.options import load
    from sr_bigbatch.tasks.bench import BASELINE, contenders, images_per_second, rows
    opt = load(args.opt)
    with random_vgg():
        candidates = contenders(opt, args.gt_size, args.batch, args.micro, args.blocks)
        chosen = {name: settings for name, settings in candidates.items() if name == BASELINE or args.only in name}
        table = rows(images_per_second(chosen, args.rounds))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f'CPU, {torch.get_num_threads()} threads'
    print(f'\n{device}, torch {torch.__version__}, float32, {args.blocks} blocks, batch {args.batch}, {args.gt_size} px, '
          f'median of {args.rounds} rounds')
    print(f'{"":52} {"images/s":>9} {"ratio":>7}')
    for name, speed, ratio in table:
        print(f'{name:52} {speed:9.2f} {ratio:7.3f}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
