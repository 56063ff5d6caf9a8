"""What was measured survives an interruption, and belongs to one evaluation only."""

from pathlib import Path

import pytest

from app.errors import MachineError
from app.evaluate.journal import Journal


def filled(path: Path) -> None:
    with Journal(path, "key") as journal:
        journal.add("base", "score:heldout", "1", {"loss": 1.5, "text": "größer\n\u2028 \udc80"})
        journal.add("tuned", "score:heldout", "1", None)


def test_results_come_back(tmp_path: Path) -> None:
    path = tmp_path / "reports" / "samples.jsonl"
    filled(path)
    with Journal(path, "key") as journal:
        assert journal.get("base", "score:heldout", "1") == {"loss": 1.5, "text": "größer\n\u2028 \udc80"}
        assert journal.has("tuned", "score:heldout", "1")
        assert not journal.has("tuned", "score:heldout", "2")


def test_a_torn_file_keeps_what_is_whole_at_every_cut(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    filled(path)
    whole = path.read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        with Journal(path, "key") as journal:
            assert journal.has("base", "score:heldout", "1") == (cut >= ends[1])
            journal.add("base", "answer:heldout", "9", "after")
        with Journal(path, "key") as journal:
            assert journal.get("base", "answer:heldout", "9") == "after"
            assert journal.has("tuned", "score:heldout", "1") == (cut >= ends[2])


def test_another_key_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    filled(path)
    with Journal(path, "other") as journal:
        assert not journal.has("base", "score:heldout", "1")
    with Journal(path, "key") as journal:
        assert not journal.has("base", "score:heldout", "1")


def test_a_folder_in_the_way_is_a_fault_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").mkdir()
    with pytest.raises(MachineError, match="cannot be written"):
        Journal(tmp_path / "samples.jsonl", "key")
