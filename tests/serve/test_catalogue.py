"""Which models are offered, under which names."""

import shutil
from pathlib import Path

import pytest

from app.errors import AppError
from app.serve.api_error import ApiError
from app.serve.catalogue import Catalogue, read_catalogue
from app.serve.settings import read_settings
from conftest import TinyCheckpoint


def catalogue(**settings: object) -> Catalogue:
    return read_catalogue(read_settings({}, settings), Path)


def test_names_come_from_folders_or_are_given(runs: dict[str, Path], tiny: TinyCheckpoint) -> None:
    base = tiny("smollm2").name
    made = catalogue(run=[str(runs["poet.v2"]), f"other={runs['helper']}"])
    assert made.names == ("poet.v2", "other", base) and made.base is None and made.weights == str(tiny("smollm2"))
    assert made.run_of(None) == made.run_of("poet.v2") == "poet.v2"
    assert made.run_of("other") == "other" and made.run_of(base) is None
    with pytest.raises(ApiError, match="no such model"):
        made.run_of("helper")
    assert catalogue(run=str(runs["helper"]), base_name="acme/base").names == ("helper", "acme/base")


def test_a_base_alone(tiny: TinyCheckpoint) -> None:
    made = catalogue(base=str(tiny("gemma")), family="gemma")
    assert made.names == (tiny("gemma").name,) and made.run_of(None) is None
    hub = catalogue(base="acme/gemma-7b", family="gemma")
    assert hub.names == ("acme/gemma-7b",)


def test_a_stored_run_may_bring_its_base_and_the_settings_name_another(runs: dict[str, Path], tmp_path: Path) -> None:
    stored = tmp_path / "stored"
    shutil.copytree(runs["helper"], stored)
    (stored / "base").mkdir()
    assert catalogue(model=f"helper={stored}").weights == str(stored / "base")
    assert catalogue(model=f"helper={stored}", base="/models/base").weights == "/models/base"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "no model is named"),
        ({"base": "acme/x"}, "APP_BASE without a run needs APP_FAMILY"),
        ({"base": "acme/x", "family": "mistrl"}, "no family 'mistrl'"),
        ({"run": "RUN", "family": "smollm2"}, "runs know their family"),
        ({"run": ["RUN", "RUN"]}, "same name"),
        ({"run": "RUN", "base_name": "helper"}, "same name"),
        ({"run": "/nowhere"}, "not a run directory"),
    ],
)
def test_what_does_not_fit_is_refused(runs: dict[str, Path], settings: dict[str, object], said: str) -> None:
    def filled(value: object) -> object:
        if isinstance(value, list):
            return [filled(part) for part in value]
        return str(runs["helper"]) if value == "RUN" else value

    with pytest.raises(AppError, match=said):
        catalogue(**{name: filled(value) for name, value in settings.items()})
