"""`python -m genre`: what a launcher of several processes starts."""

import sys

if __name__ == "__main__":
    try:
        from genre.cli import main
    except KeyboardInterrupt:  # before the handler of the command line is there
        print("genre: interrupted: nothing was changed; the same command starts over", file=sys.stderr)
        sys.exit(1)
    sys.exit(main())
