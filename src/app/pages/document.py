"""What all pages are: one HTML file with its style inside, to open from disk, print, or send to a colleague."""

from html import escape


def document(title: str, body: str, *, style: str, refresh: int | None = None) -> str:
    """The whole page.

    Args:
        title: as plain text.
        body: as HTML.
        style: the style sheet.
        refresh: seconds until a reader's browser loads it again; None is never.
    """
    again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh is not None else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{again}'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><link rel="icon" href="data:,"><title>{escape(title)}</title><style>{style}</style>'
        f"</head><body><main>{body}</main></body></html>\n"
    )


def section(title: str, content: str) -> str:
    """A part of the body; ``content`` is HTML."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>"
