"""The pinned requirements: complete, exact, and what `make lock` makes of pyproject.toml."""

import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def requirements(name: str) -> dict[str, Requirement]:
    """Package -> requirement of a requirements file."""
    lines = (line.split("  #")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    parsed = [Requirement(line) for line in lines if line and not line.startswith(("#", "-r "))]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_every_line_is_one_exact_version(name: str):
    for requirement in requirements(name).values():
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", requirement
        assert not specifier.version.endswith("*"), requirement
        assert "+" not in specifier.version, f"{requirement}: a local build that others cannot install"


@pytest.mark.parametrize(("extra", "name"), [(None, "requirements.txt"), ("dev", "requirements-dev.txt")])
def test_all_that_pyproject_asks_for_is_pinned(extra: str | None, name: str):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = requirements(name)
    for text in project["dependencies"] if extra is None else project["optional-dependencies"][extra]:
        asked = Requirement(text)
        pin = pins.get(canonicalize_name(asked.name))
        assert pin is not None, f"{text} is in no line of {name}: run `make lock`"
        (exact,) = pin.specifier
        assert asked.specifier.contains(exact.version), f"{pin} does not fit {text}: run `make lock`"


def test_the_two_files_do_not_overlap():
    assert not requirements("requirements.txt").keys() & requirements("requirements-dev.txt").keys()


def test_the_pins_are_what_is_tested():
    for requirement in [*requirements("requirements.txt").values(), *requirements("requirements-dev.txt").values()]:
        if requirement.marker is None or requirement.marker.evaluate():
            (exact,) = requirement.specifier
            installed = version(requirement.name).split("+")[0]
            assert installed == exact.version, f"{requirement.name} {installed} is installed; {exact.version} is pinned"


def test_what_a_resolution_says_becomes_lines_by_who_asked(script: Callable[[str], ModuleType]):
    lock = script("lock")
    pins = [
        lock.Pin(name="torch", line="torch==2.13.0", via=("app", "accelerate")),
        lock.Pin(name="colorama", line="colorama==0.4.6 ; sys_platform == 'win32'", via=("a", "b", "c", "d")),
    ]
    assert lock.section("Title", pins) == (
        "\n# Title\ntorch==2.13.0\ncolorama==0.4.6 ; sys_platform == 'win32'  # a, b, c …\n"
    )


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("torch==2.13.0", True),
        ("nvidia-ml-py==13.615.71", True),
        ("nvidia-cublas==13.1.1.3 ; sys_platform == 'linux'", False),
        ("cuda-toolkit==13.0.3.0 ; sys_platform == 'linux'", False),
        ("triton==3.7.1 ; sys_platform == 'linux'", False),
        ("httpcore2==2.16.2 ; sys_platform != 'emscripten'", True),
        ("cffi==2.1.1 ; implementation_name == 'pypy'", False),
    ],
)
def test_what_torch_pins_itself_and_other_interpreters_are_left_out(
    line: str, kept: bool, script: Callable[[str], ModuleType]
):
    lock = script("lock")
    assert lock.wanted(lock.Pin(name=line.split("==")[0], line=line, via=())) is kept
