#!/usr/bin/env python3
"""Is a bigger batch better? Trains the same at several effective batches and seeds, and reports what the data support."""
import sys
from pathlib import Path

from sr_bigbatch.cli.batch_size_study import main

if __name__ == '__main__':
    sys.exit(main(root=Path(__file__).resolve().parent.parent))
