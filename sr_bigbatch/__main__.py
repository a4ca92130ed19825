"""``python -m sr_bigbatch path/to/train.py -opt FILE ...``: run a script with our components registered."""
from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path
from typing import Any

import sr_bigbatch
from sr_bigbatch.memory.allocator import use_expandable_segments
from sr_bigbatch.options import OptionError, load, override, refuse_code


def main() -> int:
    """Check the option file if it is one of ours, then run the script as if it had been started by itself."""
    if len(sys.argv) < 2 or sys.argv[1] in ('-h', '--help'):
        print(f'{__doc__}\n\nThe script is not edited; all arguments after its name are its own.')
        return 0 if len(sys.argv) > 1 else 2
    script, arguments = Path(sys.argv[1]), sys.argv[1:]
    if not script.is_file():
        print(f'there is no script {script}', file=sys.stderr)
        return 2
    use_expandable_segments()  # before torch is imported, which the hosts do
    sr_bigbatch.install()
    try:
        _check(arguments)
    except OptionError as error:
        print(f'Training has not started. To be changed:\n{error}', file=sys.stderr)
        return 2
    sys.argv, sys.path[0] = arguments, str(script.resolve().parent)
    runpy.run_path(str(script), run_name='__main__')
    return 0


def _check(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('-opt')
    parser.add_argument('--force_yml', nargs='+', action='append', default=[])
    known, _ = parser.parse_known_args(arguments[1:])
    for entries in known.force_yml:
        refuse_code(entries)
    if known.opt is None:
        return
    from sr_bigbatch.hosts.basicsr.build import OUR_MODELS
    from sr_bigbatch.hosts.basicsr.options.check import check
    from sr_bigbatch.hosts.basicsr.options.notes import notes
    opt = load(known.opt)
    for entries in known.force_yml[-1:]:  # of an option that stands twice, BasicSR takes the last
        override(opt, entries)
    if opt.get('model_type') in OUR_MODELS:
        check(opt)
        _refuse_pairs_that_basicsr_does_not_make(opt)
        for note in notes(opt):
            print(f'{known.opt}: {note}', file=sys.stderr)


def _refuse_pairs_that_basicsr_does_not_make(opt: dict[str, Any]) -> None:
    from sr_bigbatch.hosts.basicsr.made_pairs import is_made
    findings = [f'datasets.{phase}.dataroot_lq is missing: give it, or set type: ProgressivePairedImageDataset, which makes '
                'low-resolution images' for phase, dataset in opt['datasets'].items()
                if is_made(dataset) and dataset['type'] == 'PairedImageDataset']
    if findings:
        raise OptionError(findings)


if __name__ == '__main__':
    sys.exit(main())
