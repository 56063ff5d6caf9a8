import random

from app.generate.speculate import PromptLookup


def test_a_draft_is_what_followed_the_latest_same_three_tokens() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 5, 1, 2, 3, 9, 8, 7, 0, 1, 2])
    assert lookup.draft(8) == []
    lookup.extend([3])
    assert lookup.draft(8) == [9, 8]
    assert lookup.draft(1) == [9]
    assert lookup.draft(0) == []


def test_drafts_grow_while_they_are_right() -> None:
    lookup = PromptLookup([*range(100), 0, 1, 2])
    lengths = []
    for _ in range(4):
        lengths.append(len(lookup.draft(64)))
        lookup.learn(lengths[-1], lengths[-1])
    assert lengths == [2, 4, 8, 16]


def test_drafting_dies_out_where_it_is_always_wrong() -> None:
    rng = random.Random(0)
    lookup = PromptLookup([0, 0, 0, 0])
    drafted = []
    for _ in range(1000):
        drafted.append(len(lookup.draft(8)))
        lookup.extend([0] if rng.random() < 0.9 else [rng.randrange(3)])
        lookup.learn(drafted[-1], 0)
    used = [length for length in drafted[:128] if length]
    assert 1 <= len(used) <= 6
    assert sum(1 for length in drafted[128:] if length) <= 1000 / 64


def test_one_right_draft_ends_the_pause() -> None:
    lookup = PromptLookup([5, 5, 5, 5])
    for _ in range(3):
        while not (draft := lookup.draft(8)):
            lookup.extend([5])
        lookup.learn(len(draft), 0)
    while not (draft := lookup.draft(8)):
        lookup.extend([5])
    lookup.learn(len(draft), len(draft))
    assert lookup.draft(8)
