"""Upscale photographs with the weights of any RRDBNet: files, folders, patterns; tile by tile, without seams."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, upscale; returns the exit status."""
    args = _parser().parse_args(arguments)
    from sr_bigbatch.hosts.signals import run_task
    return run_task(lambda: _run(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter,
                                     epilog='Exit status: 0 all written, 1 some images could not be read or written, 2 the '
                                     'weights or the arguments are wrong. Alpha and 16 bits are kept.')
    parser.add_argument('images', nargs='+', help='files, folders or patterns')
    parser.add_argument('--weights', type=Path, required=True, help='.pth or .safetensors of BasicSR, Real-ESRGAN or mmagic')
    parser.add_argument('--out', type=Path, default=Path('results'), help='folder to write into')
    parser.add_argument('--suffix', default='', help='added to the names')
    parser.add_argument('--overwrite', action='store_true', help='write over results of an earlier call; never over images')
    parser.add_argument('--tile', type=int, default=0,
                        help='pixels of the input at a time, more than two overlaps; 0: as --memory allows')
    parser.add_argument('--overlap', type=int, default=144, help='pixels that tiles share; fewer are faster and may show')
    parser.add_argument('--memory', type=float, default=2.0, help='GB that a process may use, where --tile is 0')
    parser.add_argument('--dtype', choices=['float32', 'bfloat16', 'float16'], default='float32', help='of the network')
    parser.add_argument('--processes', type=int, default=1, help='images at a time, on CPUs')
    return parser


def _run(args: argparse.Namespace) -> int:
    import sr_bigbatch  # noqa: F401  (mends what `import basicsr` needs)
    from sr_bigbatch.files.storage import BadFile
    from sr_bigbatch.nets.tiling import Tiling
    from sr_bigbatch.tasks.upscale import BadPicture, find, jobs, upscale_all
    try:
        files = find(args.images)
        tiling = Tiling(args.tile, args.overlap) if args.tile else None
        work = jobs(files, args.weights, args.out, args.suffix, overwrite=args.overwrite)
        failed = upscale_all(work, args.weights, tiling, args.overlap, args.memory, args.dtype, args.processes)
    except (BadFile, BadPicture, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    for line in failed:
        print(line, file=sys.stderr)
    print(f'{len(files) - len(failed)} of {len(files)} images are in {args.out}')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
