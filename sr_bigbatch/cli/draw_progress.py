"""Draw progressive runs beside one another: losses, logit gap, effective batch, PSNR and images across the borders."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, draw; returns the exit status."""
    return _run(_parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, epilog='Exit status: 0 drawn, 2 a folder is not an experiment.')
    parser.add_argument('folders', nargs='+', type=Path, metavar='FOLDER', help='experiments/NAME')
    parser.add_argument('--out', type=Path, default=Path('progressive.png'), help='the PNG to write')
    return parser


def _run(args: argparse.Namespace) -> int:
    import sr_bigbatch  # noqa: F401  (mends what `import basicsr` needs)
    from sr_bigbatch.report.progress import draw_progress
    from sr_bigbatch.report.run_log import LOG_FILE
    missing = [str(folder) for folder in args.folders if not (folder / LOG_FILE).is_file()]
    if missing:
        print(f'no {LOG_FILE} in {", ".join(missing)}: give folders that tools/train.py has made', file=sys.stderr)
        return 2
    print(draw_progress(args.folders, args.out))
    return 0


if __name__ == '__main__':
    sys.exit(main())
