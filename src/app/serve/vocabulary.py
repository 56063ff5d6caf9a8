"""Text to token ids and back, as the API shows them."""

import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from app.data.records import Message
from app.data.tokenize import encode
from app.errors import DataError
from app.families import Family
from app.serve.api_error import ApiError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Vocabulary:
    """A model's tokenizer with its family's template.

    Not for several threads at once: callers encode in one thread of their own, for a long text takes a second.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", family: Family) -> None:
        self._tokenizer = tokenizer
        self._family = family

    def conversation(self, messages: Sequence[Message], *, field: str = "messages") -> list[int]:
        """Ids of a conversation that awaits an answer, by the template the model was trained with.

        Args:
            messages: the conversation.
            field: of the request that holds it, for the error.

        Raises:
            ApiError: the roles are out of order, or a message forges a turn.
        """
        try:
            return encode(messages, self._tokenizer, self._family, answer_next=True).input_ids
        except DataError as fault:
            raise ApiError(400, f"{fault.what}; {fault.remedy}", code="invalid_value", param=field) from fault

    def text(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of a text as it stands, without a template; ``special`` begins it as the model's texts begin."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        bos = self._family.chat.bos
        # Its id, not its text: behind the text, SentencePiece tokenizers would not see a beginning any more.
        return [self._tokenizer.convert_tokens_to_ids(bos), *ids] if special and bos else ids

    def token_bytes(self, token: int) -> bytes:
        """What the token adds to a text; several of them may make one character."""
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:  # ids that fill the embedding up to a round number
            return b""
        if token in self._tokenizer.added_tokens_decoder:
            return str(piece).encode()
        if self._family.gguf.tokenizer_model == "gpt2":
            known = _byte_characters()
            return b"".join(known.get(character, character.encode()) for character in piece)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):  # SentencePiece's byte fallback
            return bytes([int(piece[3:5], 16)])
        return str(piece).replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()

    def token_text(self, token: int) -> str:
        """The same as text; bytes of an unfinished character are shown as replacement characters."""
        return self.token_bytes(token).decode("utf-8", errors="replace")


@cache
def _byte_characters() -> dict[str, bytes]:
    """The printable character that stands for each byte in byte-level BPE (GPT-2, encoder.py's bytes_to_unicode).

    Printable bytes of Latin-1 stand for themselves; the others follow from U+0100 on, in order.
    """
    printable = [b for b in range(256) if not unicodedata.category(chr(b)).startswith(("C", "Z"))]
    others = [b for b in range(256) if b not in printable]
    known = {chr(b): bytes([b]) for b in printable}
    return known | {chr(0x100 + place): bytes([b]) for place, b in enumerate(others)}
