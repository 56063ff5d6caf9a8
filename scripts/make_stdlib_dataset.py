"""A real domain data set from material every machine has: the Python standard library's own source.

Each row asks for one documented function: the question is its signature and docstring, the answer the function its
authors wrote, without the docstring. The group is the top-level module, so that a split by group never tests on a
module it trained on. Same Python version, same rows.

The answer repeats the signature, as an assistant's answer would. That is easy to predict: with the same rows,
SmolLM2-135M in NF4 has a perplexity of 16 on bodies alone and of 8 on whole functions.

    python scripts/make_stdlib_dataset.py --output data/stdlib

writes functions.csv (id, question, answer, group) and README.md (source, licence, how rows were chosen).
"""

import argparse
import ast
import csv
import hashlib
import io
import platform
import sys
import sysconfig
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from app.artifact import write_atomic
from app.errors import AppError, MachineError

INSTRUCTION = "Write this Python function.\n\n"
NOT_LIBRARY = {"test", "tests", "idle_test", "turtledemo", "site-packages", "dist-packages", "__pycache__"}
MIN_DOCSTRING_WORDS = 4
MIN_BODY_CHARACTERS = 24
# Question and answer together; with the chat template 105 tokens of SmolLM2 in the mean and 138 at the 95th
# percentile. Rows near one length waste little padding, and short ones train on a CPU in minutes.
MAX_CHARACTERS = 400
# tkinter alone would otherwise be a sixth of the rows, all of one pattern; small groups also make even splits.
MAX_ROWS_PER_MODULE = 30
MIN_ROWS = 1_000

README = """\
# Python standard library: signature and docstring to function

{rows:,} functions and methods of {modules} modules, from the source of Python {version}, made by
`scripts/make_stdlib_dataset.py`. Columns of `functions.csv`: `id` (dotted name), `question` (an instruction, the
signature and the docstring), `answer` (the function without its docstring), `group` (top-level module: split by it).

**Licence:** Python Software Foundation License, version 2 (PSF-2.0); see `license()` in a Python prompt and
docs.python.org/3/license.html, which also lists the notices of software incorporated in single modules.

    {copyright}

Chosen: a docstring of at least {words} words; a body that does more than return, raise or store one name or
constant; at most {characters} characters in all, question and answer; at most {cap} rows of a module (by hash of
the id); no two rows with the same question or the same answer. Left out: tests and everything in site-packages.
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the CSV."""

    id: str
    question: str
    answer: str
    group: str


def library_files(root: Path) -> Iterator[Path]:
    """The library's own modules, in an order that does not depend on the file system."""
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        if not NOT_LIBRARY.intersection(path.relative_to(root).parts):
            yield path


def functions(tree: ast.Module, module: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Dotted name and node of every top-level function and method, those of nested classes included."""
    pending: list[tuple[str, ast.AST]] = [(module, tree)]
    while pending:
        prefix, scope = pending.pop()
        for node in ast.iter_child_nodes(scope):
            if isinstance(node, ast.ClassDef):
                pending.append((f"{prefix}.{node.name}", node))
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{prefix}.{node.name}", node


def is_trivial(body: list[ast.stmt]) -> bool:
    """Whether the body only passes, raises, or returns or stores one name or constant."""
    if len(body) != 1:
        return False
    statement = body[0]
    if isinstance(statement, ast.Pass | ast.Raise):
        return True
    if isinstance(statement, ast.Return | ast.Assign | ast.AnnAssign | ast.Expr):
        return isinstance(statement.value, ast.Constant | ast.Name | ast.Attribute | None)
    return False


def row_of(name: str, node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str], group: str) -> Row | None:
    """The function as a row, or None where it is not good material."""
    docstring, body = ast.get_docstring(node), node.body[1:]
    if docstring is None or len(docstring.split()) < MIN_DOCSTRING_WORDS or not body or is_trivial(body):
        return None
    documented = node.body[0]
    if body[0].lineno == documented.end_lineno or documented.lineno == node.lineno:
        return None
    start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    head = lines[start - 1 : documented.lineno - 1]
    rest = "\n".join(lines[documented.end_lineno : node.end_lineno]).strip("\n").split("\n")
    if sum(len(line.strip()) for line in rest) < MIN_BODY_CHARACTERS:
        return None
    question = INSTRUCTION + textwrap.dedent("\n".join(lines[start - 1 : documented.end_lineno]))
    answer = textwrap.dedent("\n".join(head + rest))
    if len(question) + len(answer) > MAX_CHARACTERS or not is_same_function(answer, node):
        return None
    return Row(id=name, question=question, answer=answer, group=group)


def is_same_function(answer: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether the text parses to the function less its docstring: dedenting can change a string of several lines."""
    try:
        parsed = ast.parse(answer).body
    except SyntaxError:
        return False
    return (
        len(parsed) == 1
        and isinstance(parsed[0], ast.FunctionDef | ast.AsyncFunctionDef)
        and [ast.dump(part) for part in parsed[0].body] == [ast.dump(part) for part in node.body[1:]]
    )


def collect(root: Path) -> list[Row]:
    """All rows of a library folder, sorted by id, before the limit per module.

    Raises:
        MachineError: the folder holds no Python source (a zipped or stripped library).
    """
    rows: dict[str, Row] = {}
    texts: set[str] = set()
    files = list(library_files(root))
    if not files:
        raise MachineError(
            f"{root} holds no Python source to make the data set from",
            remedy="use a Python that keeps its library as .py files (python.org, apt, conda and pyenv all do)",
        )
    for path in files:
        try:
            source = path.read_text(encoding="utf-8")
            tree = ast.parse(source)
        except (SyntaxError, UnicodeDecodeError):  # lib2to3 and others keep a file or two in other encodings
            continue
        parts = path.relative_to(root).with_suffix("").parts
        module = ".".join(part for part in parts if part != "__init__")
        # The pure-Python twin of a C module (_pydatetime, _pyio) belongs with the module it stands in for.
        group = parts[0].removeprefix("_py").lstrip("_")
        # Not str.splitlines: form feeds inside the library's files are no line ends for the parser.
        lines = source.split("\n")
        for name, node in functions(tree, module):
            row = row_of(name, node, lines, group)
            # One question with two answers, or one answer to two questions, teaches nothing and may leak.
            if row is not None and row.id not in rows and texts.isdisjoint((row.question, row.answer)):
                rows[row.id] = row
                texts.update((row.question, row.answer))
    return sorted(rows.values(), key=lambda row: row.id)


def limit_modules(rows: Iterable[Row], *, most: int) -> list[Row]:
    """At most ``most`` rows of each group, chosen by the hash of their ids; the order stays."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    rows = list(rows)
    for row in rows:
        groups[row.group].append(row.id)

    def digest(identity: str) -> str:
        return hashlib.sha256(identity.encode()).hexdigest()

    kept = {identity for ids in groups.values() for identity in sorted(ids, key=digest)[:most]}
    return [row for row in rows if row.id in kept]


def to_csv(rows: Iterable[Row]) -> str:
    """The rows as CSV text with a header line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "question", "answer", "group"])
    writer.writerows([row.id, row.question, row.answer, row.group] for row in rows)
    return text.getvalue()


def make(root: Path, output: Path) -> int:
    """Writes functions.csv and README.md of the library in ``root``; returns the number of rows.

    Raises:
        MachineError: the library has too little source.
    """
    rows = limit_modules(collect(root), most=MAX_ROWS_PER_MODULE)
    if len(rows) < MIN_ROWS:
        raise MachineError(
            f"the library in {root} yields {len(rows)} rows; at least {MIN_ROWS:,} are wanted",
            remedy="use a complete Python installation (python.org, apt, conda and pyenv all are)",
        )
    write_atomic(output / "functions.csv", to_csv(rows))
    text = README.format(
        rows=len(rows),
        modules=len({row.group for row in rows}),
        version=platform.python_version(),
        copyright=sys.copyright.replace("\n", "\n    "),
        words=MIN_DOCSTRING_WORDS,
        characters=MAX_CHARACTERS,
        cap=MAX_ROWS_PER_MODULE,
    )
    # Last: its presence says that the data set is whole.
    write_atomic(output / "README.md", text)
    return len(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description="Makes the standard-library data set.")
    parser.add_argument(
        "--output", type=Path, default=Path("data/stdlib"), help="folder to write (default: %(default)s)"
    )
    options = parser.parse_args()
    try:
        count = make(Path(sysconfig.get_path("stdlib")), options.output)
    except AppError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return fault.exit_code
    print(f"{count:,} rows in {options.output / 'functions.csv'} (licence PSF-2.0)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
