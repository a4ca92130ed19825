"""What a generator keeps per sample for its backward pass, and how long a step takes, beside BasicSR's RRDBNet."""
from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sr_bigbatch.options import positive_count


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, print a table, draw a picture; returns the exit status."""
    return _run(_parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--gt-size', type=positive_count, default=256, help='width of the ground-truth crops, pixels')
    parser.add_argument('--blocks', type=positive_count, default=23, help='RRDBs')
    parser.add_argument('--samples', type=positive_count, default=2, help='samples of a timed pass')
    parser.add_argument('--rounds', type=positive_count, default=5, help='timed passes of each candidate; they take turns')
    parser.add_argument('--picture', type=Path, help='draw the bytes into this PNG')
    parser.add_argument('--only', default='', metavar='POLICY', help='BasicSR and this memory policy')
    return parser


def _run(args: argparse.Namespace) -> int:
    import torch
    from tqdm import tqdm

    import sr_bigbatch  # noqa: F401  (mends what `import basicsr` needs)
    from sr_bigbatch.memory.device import saved_bytes
    from sr_bigbatch.step.precision import autocast
    from sr_bigbatch.tasks.bench import as_in_training, draw_bytes, generators
    with as_in_training():
        device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        nets = {name: net for name, net in generators(args.blocks, device).items() if name == 'BasicSR' or args.only in name}
        low, kept = args.gt_size // 4, {}
        print(f'{device.type}, torch {torch.__version__}, {args.blocks} blocks, {args.gt_size} px, forward and backward of '
              f'{args.samples} samples, best of {args.rounds} rounds')
        print(f'{"":26} {"MB/sample":>10} {"bytes":>7} {"time":>7} {"median":>7}')
        for label, dtype in (('float32', torch.float32), ('bfloat16', torch.bfloat16)):
            def run(net: torch.nn.Module, count: int, dtype: torch.dtype = dtype) -> torch.Tensor:
                with autocast(device, dtype):
                    output: torch.Tensor = net(torch.rand(count, 3, low, low, device=device))
                return output

            seconds: dict[str, list[float]] = {name: [] for name in nets}
            for number in tqdm(range(args.rounds + 1), unit='round', desc=label):
                for name, net in nets.items():
                    started = time.perf_counter()
                    run(net, args.samples).float().square().mean().backward()
                    if device.type == 'cuda':
                        torch.cuda.synchronize()
                    if number > 0:
                        seconds[name].append(time.perf_counter() - started)
            base = next(iter(nets))
            for name, net in nets.items():
                kept[label, name] = saved_bytes(partial(run, net, 2), net) - saved_bytes(partial(run, net, 1), net)
                ratios = [mine / theirs for mine, theirs in zip(seconds[name], seconds[base], strict=True)]
                print(f'{label:9} {name:16} {kept[label, name] / 1e6:10.1f} {kept[label, name] / kept[label, base]:7.1%} '
                      f'{min(seconds[name]) / min(seconds[base]):7.3f} {statistics.median(ratios):7.3f}')
        if args.picture:
            print(draw_bytes(kept, args.picture))
        return 0


if __name__ == '__main__':
    sys.exit(main())
