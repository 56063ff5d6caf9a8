"""``python scripts/train.py …`` is ``python -m app fit …``."""

import sys

from app.__main__ import main

raise SystemExit(main(["fit", *sys.argv[1:]]))
