"""Convert a generator between BasicSR, mmagic, AccumulatingESRGAN and safetensors without loss, or write it as ONNX."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, convert; returns the exit status."""
    args = _parser().parse_args(arguments)
    from sr_bigbatch.hosts.signals import run_task
    return run_task(lambda: _run(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__,
                                     epilog='Exit status: 0 written, 2 the file is not such a checkpoint.')
    parser.add_argument('source', type=Path, help='checkpoint with a generator')
    parser.add_argument('target', type=Path, help='the file to write')
    parser.add_argument('--to', choices=('basicsr', 'mmagic', 'mmengine', 'safetensors', 'onnx'), required=True,
                        help='safetensors and onnx hold one network: the averaged generator, where there is one')
    parser.add_argument('--overwrite', action='store_true', help='write over a file that is there; never over the source')
    return parser


def _run(args: argparse.Namespace) -> int:
    from safetensors.torch import save

    import sr_bigbatch  # noqa: F401  (so that this script sees the same package as the training)
    from sr_bigbatch.files.formats import converted
    from sr_bigbatch.files.outputs import refuse_outputs
    from sr_bigbatch.files.storage import load_tensors, save_atomically, write_atomically
    from sr_bigbatch.hosts.mmengine.runner import admit_histories
    from sr_bigbatch.nets.restore import restore
    from sr_bigbatch.tasks.export import export_onnx
    admit_histories()
    try:
        refuse_outputs([args.source], [args.target], overwrite=args.overwrite)
        checkpoint = load_tensors(args.source)
        if args.to == 'onnx':
            export_onnx(restore(args.source), args.target)
        elif args.to == 'safetensors':
            networks = converted(checkpoint, 'basicsr')
            weights = networks.get('params_ema', networks.get('params', {}))
            write_atomically(lambda file: file.write(save({name: value.contiguous() for name, value in weights.items()})),
                             args.target)
        else:
            save_atomically(converted(checkpoint, args.to), args.target)
    except (OSError, ValueError, ImportError) as error:
        print(f'{args.source} was not converted: {str(error).splitlines()[0]}', file=sys.stderr)
        return 2
    print(args.target)
    return 0


if __name__ == '__main__':
    sys.exit(main())
