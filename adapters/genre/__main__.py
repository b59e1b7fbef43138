"""`python -m genre`: what a launcher of several processes starts."""

import sys

from genre.cli import main

if __name__ == "__main__":
    sys.exit(main())
