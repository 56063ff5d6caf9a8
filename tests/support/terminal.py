"""Runs the application as on a terminal: its output goes to a pseudo terminal, and so does what it asks."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

MOVED = re.compile(r"\x1b\[\d*A|\x1b\[2K")
"""How a bar is drawn again: the cursor goes up, the line is cleared."""
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m")
"""Codes that set a foreground or background colour (ECMA-48, SGR)."""


def on_terminal(*arguments: str, cwd: Path, **environment: str) -> tuple[int, str]:
    """`python -m app …` on a terminal of 120 columns.

    Returns:
        The exit status and all that was written, control codes included.
    """
    leader, follower = pty.openpty()
    kept = {
        name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "TQDM_DISABLE")
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "app", *arguments],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        cwd=cwd,
        env={**kept, "TERM": "xterm-256color", "COLUMNS": "120", **environment},
    )
    os.close(follower)
    written = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # Linux says so where the last writer has closed it
            break
        if not part:
            break
        written += part
    os.close(leader)
    return process.wait(60), written.decode()
