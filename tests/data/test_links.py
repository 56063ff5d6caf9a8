"""Near-duplicates against exact Jaccard similarity, components against a search, and the split rule by itself."""

import random
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.data import links
from app.data.links import Similar, contradictions, merge, near_duplicates, same
from app.data.sketch import bands, sketch
from app.data.split import assign, position
from app.data.workers import Workers


def jaccard(one: str, other: str) -> float:
    def parts(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {(w,) for w in words} | set(zip(words, [*words[1:], ""], strict=True))

    a, b = parts(one), parts(other)
    return len(a & b) / len(a | b)


def find(texts: list[str], folder: Path, threshold: float = 0.8) -> tuple[list[int], list[int]]:
    """(component of each text, partner of each text)."""
    last = similar(texts, folder, threshold, Workers(1))
    return last.labels.tolist(), last.partner.tolist()


def similar(texts: list[str], folder: Path, threshold: float, workers: Workers) -> Similar:
    sketches = sketch(texts)
    (folder / "sketches").write_bytes(sketches.tobytes())
    (folder / "bands").mkdir(exist_ok=True)
    for number, hashes in enumerate(bands(sketches)):
        (folder / "bands" / str(number)).write_bytes(hashes.tobytes())
    among = np.ones(len(texts), dtype=bool)
    *_, last = near_duplicates(
        folder / "sketches", folder / "bands", len(texts), threshold=threshold, among=among, workers=workers
    )
    return last


def test_pairs_above_the_threshold_are_found_and_those_below_are_not(tmp_path: Path) -> None:
    chance = random.Random(5)
    words = [f"w{n}" for n in range(400)]
    texts: list[str] = []
    for _ in range(300):
        base = [chance.choice(words) for _ in range(chance.randrange(15, 60))]
        changed = list(base)
        for _ in range(chance.randrange(0, 12)):
            changed[chance.randrange(len(changed))] = chance.choice(words)
        texts += [" ".join(base), " ".join(changed)]
    labels, _ = find(texts, tmp_path)
    found = {n for n in range(0, 600, 2) if labels[n] == labels[n + 1]}
    true = {n: jaccard(texts[n], texts[n + 1]) for n in range(0, 600, 2)}
    # Three standard deviations of the estimate (0.034 and less) around the threshold may fall either way.
    sure = {n for n, value in true.items() if value > 0.9}
    assert len(sure) > 40 and sure <= found
    assert all(true[n] > 0.68 for n in found) and sum(value < 0.68 for value in true.values()) > 80
    assert all(labels[n] in (n, n - 1) for n in range(600)), "texts of different pairs are not alike"


def test_several_processes_find_what_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(6)
    words = [f"w{n}" for n in range(60)]
    originals = [[chance.choice(words) for _ in range(25)] for _ in range(40)]
    texts = []
    for _ in range(400):
        changed = list(chance.choice(originals))
        for _ in range(chance.randrange(0, 5)):
            changed[chance.randrange(25)] = chance.choice(words)
        texts.append(" ".join(changed))
    monkeypatch.setattr(links, "_CHUNK", 37)
    alone = similar(texts, tmp_path, 0.7, Workers(1))
    with closing(Workers(2)) as two:
        together = similar(texts, tmp_path, 0.7, two)
    assert 10 < len(set(alone.labels.tolist())) < 300 and (alone.partner >= 0).sum() > 100
    for name in ("labels", "partner", "similarity"):
        assert np.array_equal(getattr(alone, name), getattr(together, name)), name


def test_case_and_punctuation_do_not_matter_but_words_do(tmp_path: Path) -> None:
    text = "the quick brown fox jumps over the lazy dog while the cat sleeps on the warm mat"
    labels, partner = find([text, text.upper() + "!", " ".join(reversed(text.split())), "another thing"], tmp_path)
    assert labels == [0, 0, 2, 3] and partner == [-1, 0, -1, -1]


def test_scripts_without_blanks_are_compared_too(tmp_path: Path) -> None:
    text = "机器学习是人工智能的一个分支，它使计算机能够从数据中学习，而无需明确编程，应用非常广泛。"
    other = "今天的天气非常好，我们去公园散步，看到了许多花，孩子们在草地上玩耍，大家都很开心。"
    assert find([text, text.replace("广泛", "广泛多"), other], tmp_path)[0] == [0, 0, 2]


def test_chains_of_copies_become_one_component(tmp_path: Path) -> None:
    words = [f"word{n}" for n in range(60)]
    texts = []
    for step in range(12):
        words[step * 5] = f"changed{step}"
        texts.append(" ".join(words))
    assert set(find(texts, tmp_path)[0]) == {0}
    assert jaccard(texts[0], texts[-1]) < 0.8


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_merge_finds_components(pairs: list[tuple[int, int]]) -> None:
    labels = np.arange(20)
    merge(labels, *(np.array([pair[side] for pair in pairs], dtype=np.int64) for side in (0, 1)))
    expected = list(range(20))
    for _ in range(20):
        for one, other in pairs:
            expected[one] = expected[other] = min(expected[one], expected[other])
    assert labels.tolist() == expected


def test_same_and_contradictions() -> None:
    values = np.array([5, 7, 5, 9, 7, 5], dtype=np.uint64)
    first, other = same(values)
    assert sorted(zip(first.tolist(), other.tolist(), strict=True)) == [(0, 2), (0, 5), (1, 4)]
    among = np.array([False, True, True, True, True, True])
    assert sorted(zip(*(part.tolist() for part in same(values, among)), strict=True)) == [(1, 4), (2, 5)]
    answers = np.array([1, 1, 2, 1, 1, 1], dtype=np.uint64)
    assert contradictions(values, answers, np.ones(6, dtype=bool)).tolist() == [-1, -1, 0, -1, -1, -1]


def split(positions: list[float], linked: list[int] | None = None, **options: float) -> list[int]:
    count = len(positions)
    result = assign(
        np.array(positions), np.arange(count), np.array(linked or range(count)), np.ones(count, dtype=bool),
        val_fraction=options.get("val", 0.1), test_fraction=options.get("test", 0.1),
    )  # fmt: skip
    return result.split.tolist()


def test_positions_are_uniform_seeded_and_the_same_everywhere() -> None:
    at = np.array([position(f"row {n}", seed=42) for n in range(20_000)])
    assert at.min() >= 0 and at.max() < 1
    assert np.abs(np.histogram(at, bins=10, range=(0, 1))[0] - 2000).max() < 200
    # Old splits must stay what they are: this value never changes.
    assert position("row 1", seed=42) == 0.7454901719385266 == at[1] != position("row 1", seed=43)


def test_values_decide_and_a_later_component_follows_its_first_row() -> None:
    assert split([0.05, 0.15, 0.5, 0.99]) == [2, 1, 0, 0]
    # Rows 1 and 3 are linked: 3 follows 1 into val.
    assert split([0.05, 0.15, *[0.5] * 20, 0.99], linked=[0, 1, *range(2, 22), 1])[-1] == 1


def test_an_empty_split_gets_the_nearest_component_while_train_keeps_one() -> None:
    assert split([0.5, 0.4, 0.9]) == [1, 2, 0]
    assert split([0.5]) == [0]
    assert split([0.5, 0.6], val=0.0, test=0.0) == [0, 0]
