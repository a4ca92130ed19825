"""Copy the option files that come with this package, to be changed."""
from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, list or copy; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, epilog='Exit status: 0 done, 2 a file is in the way.')
    parser.add_argument('--copy', type=Path, metavar='DIR', help='folder to copy them into; without it, they are listed')
    args = parser.parse_args(arguments)
    source = option_files()
    names = sorted(file.relative_to(source) for kind in ('*.yml', 'mmengine/*.py') for file in source.glob(kind)
                   if file.name != '__init__.py')
    if args.copy is None:
        print('\n'.join(str(source / name) for name in names))
        return 0
    in_the_way = [str(args.copy / name) for name in names if (args.copy / name).exists()]
    if in_the_way:
        print(f'nothing was copied, because these are there: {", ".join(in_the_way)}', file=sys.stderr)
        return 2
    for name in names:
        (args.copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, args.copy / name)
    print(f'{len(names)} option files are in {args.copy}')
    return 0


def option_files() -> Path:
    """The folder of the option files: inside the installed package, or in the repository."""
    package = Path(__file__).resolve().parent.parent
    installed = package / 'shipped_options'
    return installed if installed.is_dir() else package.parent / 'options'


if __name__ == '__main__':
    sys.exit(main())
