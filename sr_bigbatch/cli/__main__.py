"""``python -m sr_bigbatch.cli COMMAND ...``: the command ``sr-bigbatch`` where scripts are not on the path."""
import sys

from sr_bigbatch.cli import main

if __name__ == '__main__':
    sys.exit(main())
