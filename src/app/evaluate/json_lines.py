"""Which line of a JSON file a value stands on, so that errors can name it."""

import json
import re
from typing import Any

Path = tuple[str | int, ...]

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')


def value_lines(text: str) -> dict[Path, int]:
    """Keys and indices that lead to a value -> the line it begins on, from 1; () is the whole document.

    Args:
        text: valid JSON.
    """
    lines: dict[Path, int] = {}
    # For each container around: key or index of the value that comes next, None where a key comes next.
    open_parts: list[Any] = []
    line, read = 1, 0
    for match in _TOKEN.finditer(text):
        line += text.count("\n", read, match.start())
        read = match.start()
        token = match.group()
        if token in "{[":
            lines[tuple(open_parts)] = line
            open_parts.append(None if token == "{" else 0)
        elif token in "}]":
            open_parts.pop()
        elif token == ",":
            open_parts[-1] = open_parts[-1] + 1 if isinstance(open_parts[-1], int) else None
        elif token != ":":
            if open_parts and open_parts[-1] is None:
                open_parts[-1] = json.loads(token)
            else:
                lines[tuple(open_parts)] = line
    return lines
