"""Which model a command answers with: a run, or a base model by itself."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from app.errors import ConfigError

if TYPE_CHECKING:
    from app.generate.session import Session


def check_source(run: Path | None, base: str | None, family: str | None, *, command: str) -> None:
    """Refuses options that name no model, or two.

    Raises:
        ConfigError: saying which of --run, --base and --family is missing or too much.
    """
    if (run is None) == (base is None):
        raise ConfigError(
            "name either a run or a base model",
            where="--run, --base",
            remedy=f"{command} --run runs/NAME, or {command} --base models/SmolLM2-135M-Instruct --family smollm2",
        )
    if base is not None and family is None:
        raise ConfigError("--base needs --family", where="--family", remedy="add --family NAME, such as smollm2")
    if run is not None and family is not None:
        raise ConfigError("--family goes with --base: a run knows its own", where="--family", remedy="leave it out")


def open_source(
    run: Path | None, base: str | None, family: str | None, *, device: Literal["auto", "cpu", "cuda"]
) -> "Session":
    """Opens what `check_source` has let pass.

    Raises:
        RunError, ModelError, MachineError: see `app.generate.session.open_run` and `open_base`.
    """
    from app.generate.session import open_base, open_run

    if run is not None:
        return open_run(run, device=device)
    assert base is not None and family is not None, "check_source comes first"
    return open_base(base, family, device=device)
