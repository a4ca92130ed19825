"""Print how far an update in parts is from the undivided one, as other trainers make it and as we make it."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, print a table in Markdown; returns the exit status."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.part < 1 or args.batch % (2 * args.part):
        parser.error(f'--batch {args.batch} is not an even number of parts of {args.part}')
    return _run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--batch', type=int, default=8, help='samples of the effective batch')
    parser.add_argument('--part', type=int, default=2, help='samples of a part')
    return parser


def _run(args: argparse.Namespace) -> int:
    from sr_bigbatch.tasks.bench_peers import GAMES, PEERS, distances
    columns = [distances(game, batch=args.batch, size=args.part) for game in GAMES]
    print('Distance from the undivided update, generator / discriminator; '
          f'batch {args.batch} in parts of {args.part}, float64')
    print()
    print('| trainer | version read | ' + ' | '.join(map(str, GAMES)) + ' |')
    print('|---' * (2 + len(GAMES)) + '|')
    for peer in PEERS:
        cells = [column[peer.name] for column in columns]
        print(f'| {peer.name} | {peer.read} | ' + ' | '.join(f'{c[0]:.1e} / {c[1]:.1e}' if c else '-' for c in cells) + ' |')
    return 0


if __name__ == '__main__':
    sys.exit(main())
