"""Token by token to text: whole characters only, and an end at the first stop string."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# A character has at most four bytes (RFC 3629) and a token at least one: more than three tokens that still do not
# make a character never will.
_LONGEST_WAIT = 3
_BROKEN = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Text of a growing answer.

    `push` returns what can be shown: text that no later token changes, and that cannot turn out to be the beginning
    of a stop string. Special tokens are left out.

    Attributes:
        text: all that has been returned so far.
        stopped: whether a stop string was met; the text ends before it.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", stop: Sequence[str] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        # Decoding starts at _anchor, a little before the first token not yet turned into text (_read): whether a
        # piece begins with a space depends on the one before it.
        self._anchor = 0
        self._read = 0
        self._held = ""

    def push(self, token: int) -> str:
        """The text that becomes certain with this token, "" while there is none."""
        self._ids.append(token)
        return self._release(self._decode(final=False), final=False)

    def finish(self) -> str:
        """The rest, once no token follows. Bytes of an unfinished character are dropped."""
        return self._release(self._decode(final=True), final=True)

    def _decode(self, *, final: bool) -> str:
        known = self._text(self._anchor, self._read)
        now = self._text(self._anchor, len(self._ids))
        if final:
            now = now.rstrip(_BROKEN)
        elif now.endswith(_BROKEN) and len(self._ids) - self._read <= _LONGEST_WAIT:
            return ""
        if len(now) <= len(known):
            return ""
        self._anchor, self._read = self._read, len(self._ids)
        return now[len(known) :]

    def _text(self, start: int, end: int) -> str:
        text: str = self._tokenizer.decode(
            self._ids[start:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _release(self, new: str, *, final: bool) -> str:
        if self.stopped:
            return ""
        pending = self._held + new
        found = [at for at in map(pending.find, self._stop) if at >= 0]
        if found:
            self.stopped = True
            pending, self._held = pending[: min(found)], ""
        elif not final:
            keep = max((_overlap(pending, stop) for stop in self._stop), default=0)
            pending, self._held = pending[: len(pending) - keep], pending[len(pending) - keep :]
        else:
            self._held = ""
        self.text += pending
        return pending


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of ``text`` that ``stop`` begins with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
