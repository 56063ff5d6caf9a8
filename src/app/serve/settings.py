"""What can be set about the server: environment variables ``APP_…``, or ``bentoml serve --arg name=value``.

One dataclass is the parser, the validation and the documentation; the table in README.md beside this file is made from
it, and a test compares them.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from app.errors import ConfigError, several

PREFIX = "APP_"
_FOREIGN = frozenset({"APP_CACHE"})
"""Variables of that prefix that other parts of the application read."""


def _option(
    default: Any, text: str, *, least: float | None = None, most: float | None = None, secret: bool = False
) -> Any:
    """A field: its default, what the table says of it, its range, and whether it must stay off command lines."""
    return dataclasses.field(default=default, metadata={"text": text, "least": least, "most": most, "secret": secret})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every option of the server. Each field's text is its documentation."""

    run: tuple[str, ...] = _option((), "run directories to serve, by commas; `NAME=FOLDER` names one in the API")
    model: tuple[str, ...] = _option(
        (), "runs in BentoML's model store, by commas, as `export bento` put them there: `TAG` or `NAME=TAG`"
    )
    base: str | None = _option(
        None, "hub id or folder of a base model to serve without a run; with a run, where its base's weights are now"
    )
    family: str | None = _option(None, "the base model's family, where there is no run to tell")
    quantization: Literal["nf4", "none"] = _option("nf4", "of a base model served without a run")
    base_name: str | None = _option(None, "what the API calls the base; its id, or its folder's name, by default")
    device: Literal["auto", "cpu", "cuda"] = _option("auto", "where the model runs")
    engine: Literal["local", "vllm"] = _option("local", "who generates: this application's engine, or vLLM")
    slots: int = _option(8, "requests that run at once", least=1, most=1024)
    context: int | None = _option(
        None, "tokens of prompt and answer together; what model and memory allow by default", least=16, most=1 << 20
    )
    cache_bits: Literal[16, 8] = _option(16, "8 keeps keys and values in int8: twice the context in the same memory")
    speculate: bool = _option(True, "draft by prompt lookup; changes the speed only")
    queue: int = _option(64, "requests that may wait; one more is refused with 429", least=0, most=100_000)
    choices: int = _option(
        8, "the most answers one request may ask for, and never more than slots and queue hold", least=1, most=128
    )
    timeout: float = _option(
        300.0, "seconds a request may take from its arrival to its last byte", least=0.1, most=86400
    )
    grace: float = _option(30.0, "seconds that running requests get after SIGTERM", least=0, most=3600)
    body_limit: int = _option(1 << 20, "the most bytes of a request's body", least=1024, most=1 << 28)
    api_keys: tuple[str, ...] = _option(
        (), "keys of which a request must bring one, by commas; none: open to all who reach the port", secret=True
    )
    api_keys_file: str | None = _option(
        None, "file with a key a line: `KEY`, `NAME KEY` or `NAME KEY REQUESTS_PER_MINUTE`"
    )
    rate_limit: int = _option(
        0, "requests a minute for each key (each address where there are none); 0: no limit", least=0
    )
    cors_origins: tuple[str, ...] = _option((), "web origins whose pages may call the API, by commas")
    log_level: Literal["debug", "info", "warning", "error"] = _option("info", "least level that is logged")
    log_prompts: bool = _option(False, "log the text of prompts and answers too")
    vllm_memory: float = _option(0.9, "share of the GPU's memory that vLLM may take", least=0.05, most=1)
    vllm_gpus: int = _option(1, "GPUs over which vLLM splits the model", least=1, most=64)
    vllm_args: str = _option("", "more of vLLM's own options, as on its command line")
    vllm_python: str | None = _option(
        None, "Python of the environment that has vLLM, whose pins differ from ours; this one's by default"
    )
    vllm_url: str | None = _option(None, "a running vLLM to use instead of starting one")


def read_settings(environment: Mapping[str, str], arguments: Mapping[str, Any]) -> Settings:
    """The settings; a variable of the environment wins over an argument, so that a container can be reconfigured.

    Args:
        environment: such as ``os.environ``.
        arguments: of ``--arg`` or ``--arg-file``; values are text, or what YAML makes of it.

    Raises:
        ConfigError: all wrong values and unknown names, each by its name.
    """
    fields = {field.name: field for field in dataclasses.fields(Settings)}
    faults = [f"--arg {name} is no option{_meant(name, fields)}" for name in arguments if name not in fields]
    variables = {PREFIX + name.upper(): name for name in fields}
    faults += [
        f"{variable} is not known{_meant(variable, variables)}"
        for variable in environment
        if variable.startswith(PREFIX) and variable not in variables and variable not in _FOREIGN
        if _meant(variable, variables)
    ]
    given: dict[str, tuple[str, Any]] = {
        name: (f"--arg {name}", value) for name, value in arguments.items() if name in fields
    }
    faults += [
        f"--arg {name} would show the secret in the list of processes: set {PREFIX}{name.upper()} instead"
        for name in given
        if fields[name].metadata["secret"]
    ]
    # An empty variable is one that a compose file passes on without a value.
    given |= {
        name: (variable, environment[variable]) for variable, name in variables.items() if environment.get(variable)
    }
    hints = get_type_hints(Settings)
    values = {}
    for name, (source, raw) in given.items():
        try:
            values[name] = _parse(raw, hints[name], **fields[name].metadata)
        except ValueError as fault:
            shown = "set to something" if fields[name].metadata["secret"] else repr(raw)
            faults.append(f"{source} is {shown}; it must be {fault}")
    if faults:
        raise ConfigError(
            several("the server's settings are wrong", faults),
            remedy="correct them; src/app/serve/README.md has the table",
        )
    return Settings(**values)


def settings_table() -> str:
    """The documentation of all settings, as a Markdown table."""
    hints = get_type_hints(Settings)
    lines = ["| variable | `--arg` | values | default | meaning |", "|---|---|---|---|---|"]
    for field in dataclasses.fields(Settings):
        default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        shown = "" if default in (None, "") else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        argument = "–" if field.metadata["secret"] else f"`{field.name}`"
        lines.append(
            f"| `{PREFIX}{field.name.upper()}` | {argument} | {_values(hints[field.name], **field.metadata)} | {shown} "
            f"| {field.metadata['text']} |"
        )
    return "\n".join(lines) + "\n"


def _meant(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    return f"; did you mean {close[0]}?" if close else ""


def _plain(hint: Any) -> Any:
    """The type itself, without None."""
    return next((part for part in get_args(hint) if part is not type(None)), hint) if _optional(hint) else hint


def _optional(hint: Any) -> bool:
    return type(None) in get_args(hint)


def _values(hint: Any, *, least: float | None, most: float | None, **_: Any) -> str:
    """What a value may be, in words."""
    hint = _plain(hint)
    if get_origin(hint) is Literal:
        return ", ".join(map(str, get_args(hint)))
    if hint is bool:
        return "true, false"
    if hint in (int, float):
        kind = "whole number" if hint is int else "number"
        upper = f"from {least:g} to {most:,}" if most is not None else f"from {least:g}"
        return f"a {kind} {upper}"
    return "texts by commas" if get_origin(hint) is tuple else "a text"


def _parse(raw: Any, hint: Any, *, least: float | None, most: float | None, **_: Any) -> Any:
    """The value; ValueError says what it must be."""
    wanted = _values(hint, least=least, most=most)
    hint = _plain(hint)
    if get_origin(hint) is tuple:
        parts = raw if isinstance(raw, list) else str(raw).split(",")
        return tuple(text for part in parts if (text := str(part).strip()))
    text = str(raw).strip()
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(wanted)
        return text.lower() == "true"
    if get_origin(hint) is Literal:
        choices = {str(choice): choice for choice in get_args(hint)}
        if text not in choices:
            raise ValueError(f"one of {wanted}")
        return choices[text]
    if hint is str:
        return text
    try:
        value = hint(text)
    except ValueError:
        raise ValueError(wanted) from None
    if not (least is None or least <= value) or not (most is None or value <= most):
        raise ValueError(wanted)
    return value
