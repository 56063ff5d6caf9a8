"""Token by token to text: whole characters only, and an end at the first stop string."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# A character has at most four bytes (RFC 3629) and a token at least one: an end that is still broken after three more
# tokens will never be a character.
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
        # Decoding starts at _anchor and not at the newest token: whether a piece begins with a space depends on the
        # one before it. Up to _read the tokens make whole characters; _shown characters after _anchor are out.
        self._anchor = 0
        self._read = 0
        self._shown = 0
        self._waited = 0
        self._held = ""

    def push(self, token: int) -> str:
        """The text that becomes certain with this token, "" while there is none."""
        self._ids.append(token)
        return self._release(self._decode(final=False), final=False)

    def finish(self) -> str:
        """The rest, once no token follows. Bytes of an unfinished character are dropped."""
        return self._release(self._decode(final=True), final=True)

    def _decode(self, *, final: bool) -> str:
        text = self._text(self._anchor)
        whole = text.rstrip(_BROKEN)
        self._waited = self._waited + 1 if len(whole) < len(text) else 0
        if self._waited > _LONGEST_WAIT and not final:
            whole, self._waited = text, 0
        new = whole[self._shown :]
        self._shown = max(self._shown, len(whole))
        if new and len(whole) == len(text):
            self._anchor, self._read = self._read, len(self._ids)
            self._shown = len(self._text(self._anchor))
        return new

    def _text(self, start: int) -> str:
        text: str = self._tokenizer.decode(
            self._ids[start:], skip_special_tokens=True, clean_up_tokenization_spaces=False
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
