"""Turn a folder of photographs into training data: sub-images, bicubic low resolution, LMDB."""
from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and prepare the data; returns the exit status."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.bundled == (args.photos is not None):
        parser.error('give a folder of photographs, or --bundled')
    return _run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog='Writes OUT/train_gt and OUT/train_lq, with --val also OUT/val_gt and OUT/val_lq. An interrupted call can be '
               'repeated: what is done stays. Exit status: 0 done, 1 not written, 2 nothing usable, 128 + N: signal')
    parser.add_argument('photos', nargs='?', type=Path, help='folder of photographs for training')
    parser.add_argument('--val', type=Path, help='folder of photographs for validation; they are kept whole')
    parser.add_argument('--bundled', action='store_true', help='take the photographs inside scikit-image: no download')
    parser.add_argument('--out', type=Path, default=Path('datasets/photos'), help='where to write')
    parser.add_argument('--scale', type=int, default=4, help='ground truth over low resolution')
    parser.add_argument('--size', type=int, default=288, help='width and height of sub-images, at least gt_size')
    parser.add_argument('--step', type=int, default=144, help='distance of neighbouring sub-images')
    parser.add_argument('--lmdb', action='store_true', help='also pack each folder into an LMDB beside it')
    parser.add_argument('--processes', type=int, default=os.cpu_count(), help='worker processes')
    parser.add_argument('--recursive', action='store_true', help='also take photographs in subfolders and linked folders')
    return parser


def _run(args: argparse.Namespace) -> int:
    from sr_bigbatch.hosts.signals import run_task
    return run_task(lambda: _prepared(args), '; the same command goes on after the photographs that are done')


def _prepared(args: argparse.Namespace) -> int:
    try:
        return _prepare(args)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1 if isinstance(error, OSError) and not isinstance(error, FileNotFoundError) else 2


def _prepare(args: argparse.Namespace) -> int:
    from sr_bigbatch.hosts.basicsr.images import make_lmdb
    from sr_bigbatch.tasks.photographs import Found, look
    from sr_bigbatch.tasks.prepare import BUNDLED_TRAIN, BUNDLED_VAL, Cut, bundled, cut_all, refuse_folders_of
    cut = Cut(args.size, args.step, args.scale)
    parts = {'train': Found(bundled(BUNDLED_TRAIN)) if args.bundled else look(args.photos, args.recursive)}
    if args.bundled or args.val:
        parts['val'] = Found(bundled(BUNDLED_VAL)) if args.bundled else look(args.val, args.recursive)
    written = [args.out / f'{part}_{kind}{end}' for part in parts for kind in ('gt', 'lq') for end in ('', '.lmdb')]
    for found in parts.values():
        refuse_folders_of(found.photographs, written)
    for part, found in parts.items():
        for note in found.notes:
            print(f'{part}: left out: {note}')
        folders, files = (args.out / f'{part}_gt', args.out / f'{part}_lq'), found.photographs
        root = {'train': args.photos, 'val': args.val}[part] if args.recursive and not args.bundled else None
        refused = cut_all(files, *folders, cut if part == 'train' else None, args.scale, args.processes, part, root)
        count = len(list(folders[0].glob('*.png')))
        print(f'{part}: {count} image pairs from {len(files) - len(refused)} photographs in {folders[0]} and {folders[1]}'
              + (f'; {len(refused)} left out' if refused else ''))
        if len(refused) == len(files):
            print(f'{part}: no photograph could be used', file=sys.stderr)
            return 2
        for folder in folders if args.lmdb else []:
            print(make_lmdb(folder))
    return 0


if __name__ == '__main__':
    sys.exit(main())
