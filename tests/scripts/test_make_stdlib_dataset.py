"""The standard-library data set: the same rows every time, and every row good material."""

import ast
import csv
import hashlib
import os
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from app.errors import MachineError

STDLIB = Path(sysconfig.get_path("stdlib"))


@pytest.fixture(scope="module")
def dataset(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("make_stdlib_dataset")


@pytest.fixture(scope="module")
def made(dataset: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of the Python that runs the tests."""
    folder = tmp_path_factory.mktemp("stdlib")
    dataset.make(STDLIB, folder)
    return folder


@pytest.fixture(scope="module")
def rows(made: Path) -> list[dict[str, str]]:
    with (made / "functions.csv").open(encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text))


def test_another_process_with_another_hash_seed_writes_the_same_bytes(made: Path, dataset: ModuleType, tmp_path: Path):
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, dataset.__file__, "--output", tmp_path], check=True, env=environment)
    for name in ("functions.csv", "README.md"):
        assert (tmp_path / name).read_bytes() == (made / name).read_bytes()


def test_rows_are_many_and_none_comes_twice(rows: list[dict[str, str]], dataset: ModuleType):
    assert len(rows) > dataset.MIN_ROWS
    for column in ("id", "question", "answer"):
        assert len({row[column] for row in rows}) == len(rows)
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)


def test_no_module_outweighs_the_others(rows: list[dict[str, str]], dataset: ModuleType):
    sizes = Counter(row["group"] for row in rows)
    assert len(sizes) > 50
    assert max(sizes.values()) <= dataset.MAX_ROWS_PER_MODULE


def test_every_answer_is_the_question_s_function_without_its_docstring(rows: list[dict[str, str]], dataset: ModuleType):
    for row in rows:
        assert row["question"].startswith(dataset.INSTRUCTION)
        assert len(row["question"]) + len(row["answer"]) <= dataset.MAX_CHARACTERS
        (asked,) = ast.parse(row["question"].removeprefix(dataset.INSTRUCTION)).body
        (given,) = ast.parse(row["answer"]).body
        assert isinstance(asked, ast.FunctionDef | ast.AsyncFunctionDef)
        assert isinstance(given, ast.FunctionDef | ast.AsyncFunctionDef)
        assert len((ast.get_docstring(asked) or "").split()) >= dataset.MIN_DOCSTRING_WORDS
        assert (asked.name, ast.dump(asked.args)) == (given.name, ast.dump(given.args))
        assert list(map(ast.dump, asked.decorator_list)) == list(map(ast.dump, given.decorator_list))
        assert ast.get_docstring(given) is None
        assert not dataset.is_trivial(given.body)


def test_no_row_comes_from_tests_or_installed_packages(rows: list[dict[str, str]]):
    for row in rows:
        assert not {"test", "tests", "idle_test", "site-packages"}.intersection(row["id"].split("."))


def test_the_licence_and_the_source_are_stated(made: Path, rows: list[dict[str, str]]):
    text = (made / "README.md").read_text(encoding="utf-8")
    assert "PSF-2.0" in text
    assert "Python Software Foundation" in text
    assert f"{len(rows):,} functions" in text
    assert f"{sys.version_info.major}.{sys.version_info.minor}." in text


def library(folder: Path, **modules: str) -> Path:
    """A library of a few modules; ``__`` in a name makes a package."""
    for name, text in modules.items():
        path = folder / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


GOOD = '''
class Outer:
    class Inner:
        @staticmethod
        def joined(parts, sep=","):
            """Join the parts with a separator.

            Long explanation.
            """

            # a comment stays
            return sep.join(str(part) for part in parts)

async def waits(queue):
    """Wait for one item and return it."""
    item = await queue.get()
    return item
'''


def test_methods_decorators_and_comments_are_kept_whole(dataset: ModuleType, tmp_path: Path):
    found = {row.id: row for row in dataset.collect(library(tmp_path, pkg__mod=GOOD))}
    assert set(found) == {"pkg.mod.Outer.Inner.joined", "pkg.mod.waits"}
    row = found["pkg.mod.Outer.Inner.joined"]
    assert row.group == "pkg"
    assert row.answer == (
        '@staticmethod\ndef joined(parts, sep=","):\n    # a comment stays\n'
        "    return sep.join(str(part) for part in parts)"
    )
    assert row.question.endswith('parts with a separator.\n\n    Long explanation.\n    """')


@pytest.mark.parametrize(
    ("why", "text"),
    [
        ("no docstring", "def f(x):\n    return sorted(x, key=str.lower)\n"),
        ("docstring too short", 'def f(x):\n    """Sort it."""\n    return sorted(x, key=str.lower)\n'),
        ("nothing but a docstring", 'def f(x):\n    """Do nothing at all with it."""\n'),
        (
            "returns an attribute",
            'def f(x):\n    """Return the very long name."""\n    return x.a_very_long_attribute\n',
        ),
        (
            "only raises",
            'def f(x):\n    """Must be written by subclasses."""\n    raise NotImplementedError("write it")\n',
        ),
        ("body too short", 'def f(x):\n    """Add one to the number."""\n    return x + 1\n'),
        ("too long", 'def f(x):\n    """Call it very many times."""\n' + "    x.call_it_again()\n" * 30),
        ("in one line", 'def f(x): "Sort all of them well."; return sorted(x, key=str.lower)\n'),
        (
            "dedenting changes a string",
            'class A:\n  def f(self):\n    """Return a text of lines."""\n    return str("""one\n    two""").upper()\n',
        ),
        ("not UTF-8", None),
    ],
)
def test_poor_material_is_left_out(why: str, text: str | None, dataset: ModuleType, tmp_path: Path):
    library(tmp_path, mod=text or "", good=GOOD)
    if text is None:
        (tmp_path / "mod.py").write_bytes(
            b'def f(x):\n    """Sort \xff all of them well."""\n    return sorted(x, key=0)\n'
        )
    assert {row.group for row in dataset.collect(tmp_path)} == {"good"}, why


def test_same_question_or_answer_is_taken_once_and_twins_share_a_group(dataset: ModuleType, tmp_path: Path):
    one = 'def f(x):\n    """Sort all of them well."""\n    return sorted(x, key=str.lower)\n'
    library(tmp_path, a=one, b=one.replace("well", "again"), c=one.replace("sorted", "list"), _pyio=GOOD, io=GOOD)
    found = dataset.collect(tmp_path)
    assert {row.id for row in found} == {"_pyio.Outer.Inner.joined", "_pyio.waits", "a.f"}
    assert {row.group for row in found} == {"io", "a"}


def test_which_rows_of_a_large_module_stay_does_not_depend_on_their_order(dataset: ModuleType):
    rows = [dataset.Row(id=f"m.f{n}", question=str(n), answer=str(n), group="m") for n in range(50)]
    kept = dataset.limit_modules(rows, most=7)
    assert [row.id for row in dataset.limit_modules(rows[::-1], most=7)] == [row.id for row in kept][::-1]
    assert {row.id for row in kept} == set(
        sorted((row.id for row in rows), key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:7]
    )


def test_a_library_without_source_is_a_clear_fault(dataset: ModuleType, tmp_path: Path):
    with pytest.raises(MachineError, match="no Python source"):
        dataset.make(tmp_path, tmp_path / "out")
    with pytest.raises(MachineError, match="yields 2 rows"):
        dataset.make(library(tmp_path, mod=GOOD), tmp_path / "out")
    assert not (tmp_path / "out").exists()
