"""``python scripts/evaluate.py …`` is ``python -m app evaluate …``."""

import sys

from app.__main__ import main

raise SystemExit(main(["evaluate", *sys.argv[1:]]))
