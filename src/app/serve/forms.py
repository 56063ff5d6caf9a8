"""Answers in OpenAI's shapes, and in this application's own."""

import codecs
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from app.generate.sampling import TokenLogprob
from app.serve.job import Piece
from app.serve.vocabulary import Vocabulary
from app.serve.work import Work


class OpenAIForm:
    """What chat and text completions share.

    Args:
        name: of the request; unique.
        fingerprint: of the server.
        logprobs: whether they were asked for.
        usage: whether a stream ends with a chunk that counts tokens.
    """

    kind: str
    chunk_kind: str

    def __init__(self, name: str, vocabulary: Vocabulary, *, fingerprint: str, logprobs: bool, usage: bool) -> None:
        self._name = name
        self._vocabulary = vocabulary
        self._fingerprint = fingerprint
        self._logprobs = logprobs
        self._usage = usage
        self._created = int(time.time())

    def closing(self, work: Work) -> Sequence[dict[str, Any] | str]:
        """Token counts if they were asked for, and the mark of the end."""
        counts = [self._frame(work, self.chunk_kind, []) | {"usage": _usage(work)}] if self._usage else []
        return [*counts, "[DONE]"]

    def _chunk(self, work: Work, choice: dict[str, Any]) -> dict[str, Any]:
        frame = self._frame(work, self.chunk_kind, [choice])
        return frame | {"usage": None} if self._usage else frame

    def _frame(self, work: Work, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._name,
            "object": kind,
            "created": self._created,
            "model": work.model,
            "system_fingerprint": self._fingerprint,
            "choices": choices,
        }


class ChatForm(OpenAIForm):
    """`/v1/chat/completions`."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def whole(self, work: Work) -> dict[str, Any]:
        """A chat.completion."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": "".join(result.text)},
                "logprobs": self._chances(result.logprobs),
                "finish_reason": result.end.reason if result.end else None,
            }
            for index, result in enumerate(work.results)
        ]
        return self._frame(work, self.kind, choices) | {"usage": _usage(work)}

    def opening(self, work: Work) -> Sequence[dict[str, Any]]:
        """Whose turn it is, for each answer."""
        return [
            self._chunk(work, self._delta(index, {"role": "assistant", "content": ""}, ()))
            for index in range(len(work.results))
        ]

    def piece(self, work: Work, index: int, piece: Piece) -> Sequence[dict[str, Any]]:
        """New text, and how the answer ended."""
        chunks = []
        if piece.text or piece.logprobs:
            chunks.append(self._chunk(work, self._delta(index, {"content": piece.text}, piece.logprobs)))
        if piece.end is not None:
            chunks.append(self._chunk(work, self._delta(index, {}, (), reason=piece.end.reason)))
        return chunks

    def _delta(
        self, index: int, delta: dict[str, Any], logprobs: Sequence[TokenLogprob], *, reason: str | None = None
    ) -> dict[str, Any]:
        chances = self._chances(logprobs) if logprobs else None
        return {"index": index, "delta": delta, "logprobs": chances, "finish_reason": reason}

    def _chances(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        return {
            "content": [
                self._chance(entry.token_id, entry.logprob)
                | {"top_logprobs": [self._chance(token, logprob) for token, logprob in entry.top]}
                for entry in logprobs
            ]
        }

    def _chance(self, token: int, logprob: float) -> dict[str, Any]:
        raw = self._vocabulary.token_bytes(token)
        return {"token": raw.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(raw)}


class CompletionForm(OpenAIForm):
    """`/v1/completions`."""

    kind = chunk_kind = "text_completion"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # Whole characters of each answer so far, where the next token begins; its decoder has bytes of one that is not.
        self._shown: dict[int, int] = {}
        self._decoders: defaultdict[int, codecs.IncrementalDecoder] = defaultdict(
            lambda: codecs.getincrementaldecoder("utf-8")("replace")
        )

    def whole(self, work: Work) -> dict[str, Any]:
        """A text_completion."""
        choices = [
            self._choice(index, "".join(result.text), result.logprobs, result.end.reason if result.end else None)
            for index, result in enumerate(work.results)
        ]
        return self._frame(work, self.kind, choices) | {"usage": _usage(work)}

    def opening(self, work: Work) -> Sequence[dict[str, Any]]:
        """Nothing: the first chunk is text."""
        return []

    def piece(self, work: Work, index: int, piece: Piece) -> Sequence[dict[str, Any]]:
        """New text, with how the answer ended."""
        reason = piece.end.reason if piece.end is not None else None
        if not (piece.text or piece.logprobs or reason):
            return []
        return [self._chunk(work, self._choice(index, piece.text, piece.logprobs, reason))]

    def _choice(self, index: int, text: str, logprobs: Sequence[TokenLogprob], reason: str | None) -> dict[str, Any]:
        chances = self._chances(index, logprobs) if self._logprobs else None
        return {"index": index, "text": text, "logprobs": chances, "finish_reason": reason}

    def _chances(self, index: int, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        offset = self._shown.get(index, 0)
        offsets = []
        for entry in logprobs:
            offsets.append(offset)
            offset += len(self._decoders[index].decode(self._vocabulary.token_bytes(entry.token_id)))
        self._shown[index] = offset
        return {
            "tokens": [self._name_of(entry.token_id) for entry in logprobs],
            "token_logprobs": [entry.logprob for entry in logprobs],
            # The chosen token is among the alternatives, as in OpenAI's answers.
            "top_logprobs": [
                {self._name_of(token): logprob for token, logprob in (*entry.top, (entry.token_id, entry.logprob))}
                for entry in logprobs
            ],
            "text_offset": offsets,
        }

    def _name_of(self, token: int) -> str:
        r"""Its text; parts of characters as OpenAI's ``bytes:\xf0\x9f``, for "�" would be one key for all of them."""
        raw = self._vocabulary.token_bytes(token)
        text = raw.decode("utf-8", "backslashreplace")
        return text if text.encode() == raw else f"bytes:{text}"


class GenerateForm:
    """`/generate`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def whole(self, work: Work) -> dict[str, Any]:
        """Text, why it ended, token counts and timings."""
        (result,) = work.results
        return {"id": self._name, "model": work.model, "text": "".join(result.text), **self._facts(work)}

    def opening(self, work: Work) -> Sequence[dict[str, Any]]:
        """Nothing."""
        return []

    def piece(self, work: Work, index: int, piece: Piece) -> Sequence[dict[str, Any]]:
        """New text."""
        return [{"text": piece.text}] if piece.text else []

    def closing(self, work: Work) -> Sequence[dict[str, Any] | str]:
        """All but the text, which has been sent."""
        return [{"id": self._name, "model": work.model, **self._facts(work)}]

    def _facts(self, work: Work) -> dict[str, Any]:
        (result,) = work.results
        assert result.end is not None
        return {
            "finish_reason": result.end.reason,
            "prompt_tokens": work.prompt_tokens,
            "completion_tokens": result.end.tokens,
            "seed": result.end.seed,
            "timings": {
                "first_token_s": round(work.first_s or 0.0, 6),
                "total_s": round(work.total_s, 6),
                "tokens_per_second": round(work.tokens_per_second, 3),
            },
        }


def _usage(work: Work) -> dict[str, int]:
    prompt, answer = work.prompt_tokens, work.answer_tokens
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
