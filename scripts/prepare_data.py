"""The same as ``python -m app prepare``."""

import sys

from app.__main__ import main

if __name__ == "__main__":
    raise SystemExit(main(["prepare", *sys.argv[1:]]))
