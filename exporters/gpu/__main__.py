"""`python -m exporters.gpu`."""

import sys

from exporters.gpu.command import main

if __name__ == "__main__":
    sys.exit(main())
