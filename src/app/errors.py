"""Faults a user can mend. Each says what is wrong, where, and what to do about it.

Library code raises these and never prints or exits; ``app.commands.run_command`` (and the LightningCLI in
``app.cli``) turn one into a single message on stderr and exit code 2. A broken invariant is an ``assert``.
"""

from collections.abc import Iterable, Mapping


class AppError(Exception):
    """A fault of input, configuration or machine.

    Args:
        what: the fault, with the value that was received.
        where: file and line, or option name, or empty when ``what`` already names it.
        remedy: what the user can do about it.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", remedy: str) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where:  {self.where}")
        lines.append(f"  remedy: {self.remedy}")
        return "\n".join(lines)


class ConfigError(AppError):
    """An option or a YAML key is unknown, missing, or out of range."""


class DataError(AppError):
    """A data file cannot be read, or its rows cannot be trained on."""


class ModelError(AppError):
    """A checkpoint, tokenizer or adapter is missing, of another family, or damaged."""


class MachineError(AppError):
    """This machine lacks something: a GPU, a library, disk space, a writable folder."""


class RunError(AppError):
    """A run directory is missing, incomplete, in use, or does not match what is loaded."""


def several(title: str, faults: Iterable[str], *, limit: int = 20) -> str:
    """One text for many faults, so that all are reported at once: a title and a line each, cut at ``limit``."""
    lines = list(faults)
    shown = [title, *(f"  - {line}" for line in lines[:limit])]
    if len(lines) > limit:
        shown.append(f"  … and {len(lines) - limit} more")
    return "\n".join(shown)


def changes(now: Mapping[str, object], before: Mapping[str, object]) -> list[str]:
    """Options that were something else before, a line each; those that ``before`` does not know are left out."""
    return [
        f"{name} is {value}; it was {before[name]}"
        for name, value in now.items()
        if name in before and value != before[name]
    ]


def first_line(fault: BaseException) -> str:
    """What a library's exception says first; its kind where it says nothing."""
    lines = str(fault).strip().splitlines()
    return lines[0] if lines else type(fault).__name__


def range_faults(section: str, ranges: Mapping[str, tuple[float, float, float]]) -> list[str]:
    """A line for each option that is out of range; arguments as of `require_ranges`."""
    prefix = f"{section}." if section else "--"
    return [
        f"{prefix}{name} is {value:g}; it must be from {least:g} to {most:g}"
        for name, (value, least, most) in ranges.items()
        if not least <= value <= most
    ]


def require_ranges(section: str, ranges: Mapping[str, tuple[float, float, float]]) -> None:
    """Refuses options out of range, all of them at once.

    Args:
        section: of the YAML, such as "model"; "" for options of a command's own.
        ranges: option -> (value, least, most).

    Raises:
        ConfigError: a line per option.
    """
    if faults := range_faults(section, ranges):
        raise ConfigError(
            several("options out of range", faults), remedy="correct them in the YAML or on the command line"
        )
