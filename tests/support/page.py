"""An HTML page, read as a browser would: do its tags close, what does it fetch, what does it say?"""

from collections import Counter
from html.parser import HTMLParser

VOID = frozenset({"meta", "link", "br", "img", "input"})
"""Elements of HTML that have no end."""
FETCHING = frozenset({"script", "iframe", "img", "object"})


class Page(HTMLParser):
    """Fails where a tag is closed that is not open, or is left open.

    Attributes:
        tags: how often each comes.
        fetches: elements and addresses that a browser would ask for; an icon of nothing ("data:,") is none.
        links: where its links lead.
        text: all of it.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.fetches: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(source)
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        places = [str(value) for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag == "a":
            self.links += places
            return
        self.fetches += [tag] if tag in FETCHING else []
        self.fetches += [place for place in places if place != "data:,"]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> does not close"

    def handle_data(self, data: str) -> None:
        self.text += data
