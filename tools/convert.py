#!/usr/bin/env python3
"""Convert a generator between BasicSR, mmagic, AccumulatingESRGAN and safetensors without loss, or write it as ONNX."""
import sys

from sr_bigbatch.cli.convert import main

if __name__ == '__main__':
    sys.exit(main())
