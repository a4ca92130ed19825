"""Is a bigger batch better? Trains the same at several effective batches and seeds, and reports what the data support."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sr_bigbatch.options import positive_count


def main(arguments: Sequence[str] | None = None, root: Path | None = None) -> int:
    """Parse the command line, train, report; returns the exit status.

    Args:
        arguments: of the command line.
        root: where experiments are written; the working directory if it is not given.
    """
    return _run(_parser().parse_args(arguments), root or Path.cwd())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, epilog='A study that was stopped goes '
        'on. Exit status: 0 reported, 1 a training failed, 2 something in the options has to be changed first.')
    parser.add_argument('-opt', required=True, metavar='FILE', help='the training; each gets its images, or iterations')
    parser.add_argument('--batches', type=positive_count, nargs='+', default=[16, 32, 64, 128], help='effective batches')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1], help='a training for each, at each batch')
    parser.add_argument('--axis', choices=('images', 'iterations'), default='images',
                        help='what each training has the same number of')
    parser.add_argument('--lr', choices=('same', 'sqrt', 'linear'), default='same',
                        help='how learning rates grow with the batch')
    parser.add_argument('--jobs', type=positive_count, default=1,
                        help='trainings at a time, each on a GPU of its own if there are enough')
    parser.add_argument('--out', type=Path, default=Path('experiments/batch_size_study'), help='folder of the study')
    parser.add_argument('--force_yml', nargs='+', default=[], metavar='SECTION:KEY=VALUE', help='change options')
    return parser


def _run(args: argparse.Namespace, root: Path) -> int:
    import sr_bigbatch  # noqa: F401  (registers the components)
    from sr_bigbatch.hosts.basicsr.options.check import check
    from sr_bigbatch.options import OptionError, load, override
    from sr_bigbatch.report.study_report import write_report
    from sr_bigbatch.tasks.study import options_of, run_all
    try:
        opt = load(args.opt)
        override(opt, args.force_yml)
        for batch in args.batches:
            check(options_of(opt, batch, 0, args.axis, args.lr, args.out))
        trials = run_all(opt, args.batches, args.seeds, args.axis, args.lr, args.out, Path(__file__).with_name('train.py'),
                         args.jobs)
    except OptionError as error:
        print(f'{args.opt}: the study has not started. To be changed:\n{error}', file=sys.stderr)
        return 2
    except (RuntimeError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('stopped; the same command goes on where the trainings were saved', file=sys.stderr)
        return 130
    each = options_of(opt, args.batches[0], args.seeds[0], args.axis, args.lr, args.out)
    number = each['train']['total_iter'] * (args.batches[0] if args.axis == 'images' else 1)
    title = (f'{opt["name"]}: {number} {args.axis} for each training, learning-rate rule {args.lr}, seeds '
             f'{", ".join(map(str, args.seeds))}')
    print(write_report(trials, title, each, args.out / 'report.html'))
    return 0


if __name__ == '__main__':
    sys.exit(main())
