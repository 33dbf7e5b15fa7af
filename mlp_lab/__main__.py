"""`python -m mlp_lab`."""

import sys

from mlp_lab.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
