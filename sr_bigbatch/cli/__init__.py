"""The command ``sr-bigbatch``: one subcommand for each thing that a person starts.

Modules here import what takes time only after the command line has been read.
"""
from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Sequence

COMMANDS = {
    'prepare': ('prepare_data', 'photographs become training data'),
    'train': ('train', 'train from an option file of BasicSR'),
    'train-mmengine': ('train_mmengine', "train with mmengine's Runner"),
    'plan': ('plan', 'which plan makes the batch fit'),
    'check': ('check', 'what is wrong with an option file'),
    'verify': ('verify', 'is the update that of the undivided batch?'),
    'recipe': ('recipe', 'an option file for another batch'),
    'upscale': ('upscale', 'upscale photographs'),
    'convert': ('convert', 'weights in another format'),
    'study': ('batch_size_study', 'is a bigger batch better?'),
    'progress': ('draw_progress', 'draw progressive runs beside one another'),
    'bench': ('bench_step', 'how fast is a step? (bench-memory, bench-overflow, bench-peers: other questions)'),
    'bench-memory': ('bench_memory', 'what a generator keeps for its backward pass'),
    'bench-overflow': ('bench_overflow', 'a training through a storm of overflows'),
    'bench-peers': ('bench_peers', 'how far updates of other trainers are from the undivided one'),
    'options': ('options', 'list or copy the option files of this package'),
}
"""Module and purpose of each subcommand."""

_HOSTS = {'basicsr': 'pip install --no-build-isolation basicsr', 'mmengine': 'pip install mmengine'}
_WITHOUT_HOST = ('options',)

# What is mended in the hosts is no concern of who types a command; in scripts the warning stays.
warnings.filterwarnings('ignore', 'sr_bigbatch: ', UserWarning)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns its exit status, 2 for an unknown one, 130 after Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ('-h', '--help'):
        print(_help())
        return 0 if given else 2
    name, rest = given[0], given[1:]
    if name not in COMMANDS:
        print(f'sr-bigbatch {name}: there is no such command\n\n{_help()}', file=sys.stderr)
        return 2
    module = importlib.import_module(f'sr_bigbatch.cli.{COMMANDS[name][0]}')
    sys.argv[0] = f'sr-bigbatch {name}'  # what help and errors call it
    missing = [host for host in _HOSTS if importlib.util.find_spec(host) is None]
    if missing and name not in _WITHOUT_HOST and not {'-h', '--help'} & set(rest):
        print(f'sr-bigbatch {name} needs {" and ".join(missing)}: {" && ".join(_HOSTS[host] for host in missing)}',
              file=sys.stderr)
        return 2
    try:
        status: int = module.main(rest)
    except KeyboardInterrupt:
        print(f'sr-bigbatch {name} was stopped', file=sys.stderr)
        return 130
    return status


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f'  {name:{width}}  {purpose}' for name, (_, purpose) in COMMANDS.items()]
    return '\n'.join(['usage: sr-bigbatch COMMAND ...', '', *lines, '', 'sr-bigbatch COMMAND --help tells more.'])
