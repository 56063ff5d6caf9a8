"""``python scripts/inference.py …`` is ``python -m app chat …``."""

import sys

from app.__main__ import main

raise SystemExit(main(["chat", *sys.argv[1:]]))
