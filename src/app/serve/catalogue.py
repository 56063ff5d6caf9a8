"""Which models the API offers, by names that never touch the file system: they are looked up here and nowhere else."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from app.artifact import Manifest, RunDirectory
from app.errors import ConfigError, RunError, several
from app.export.bento import STORED_BASE
from app.families import get_family
from app.hub import is_local
from app.serve.api_error import ApiError
from app.serve.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """The base and the runs over it.

    Attributes:
        base_name: what the API calls the base.
        runs: what the API calls each run -> its directory; the first is the default.
        manifest: of the first run; None without runs.
        base: hub id or folder of the base's weights; None: where the manifest says.
        family: of the base.
    """

    base_name: str
    runs: Mapping[str, Path]
    manifest: Manifest | None
    base: str | None
    family: str

    @property
    def names(self) -> tuple[str, ...]:
        """All names, the default first."""
        return (*self.runs, self.base_name)

    @property
    def weights(self) -> str:
        """Hub id or folder of the base's weights."""
        if self.base is not None:
            return self.base
        assert self.manifest is not None
        return self.manifest.base.id

    def run_of(self, model: str | None) -> str | None:
        """The run that a request's ``model`` field names; None is the base.

        Raises:
            ApiError: 404, no such model.
        """
        name = self.names[0] if model is None else model
        if name not in self.names:
            raise ApiError(
                404, f"there is no such model; there are {', '.join(self.names)}", code="model_not_found", param="model"
            )
        return name if name in self.runs else None


def read_catalogue(settings: Settings, stored: Callable[[str], Path]) -> Catalogue:
    """What the settings name, its manifests read; no weights yet.

    Args:
        settings: with ``run``, ``model`` or ``base``.
        stored: the folder of a tag in BentoML's model store.

    Raises:
        ConfigError: nothing is named, names occur twice, or the base's family is missing.
        RunError: a run directory is none, or has no adapter.
    """
    pairs = [_named(entry, Path(_value(entry)).resolve().name, Path(_value(entry))) for entry in settings.run]
    for entry in settings.model:
        tag = _value(entry)
        pairs.append(_named(entry, tag.partition(":")[0], stored(tag)))
    if not pairs and settings.base is None:
        raise ConfigError(
            "no model is named",
            where="APP_RUN",
            remedy="set APP_RUN to a run directory (APP_MODEL to a stored one, or APP_BASE and APP_FAMILY to a base "
            "model), or say it on the command line: bentoml serve --arg run=runs/NAME",
        )
    if pairs and settings.family is not None:
        raise ConfigError("runs know their family", where="APP_FAMILY", remedy="leave it out, or serve the base alone")
    if not pairs:
        assert settings.base is not None
        if settings.family is None:
            raise ConfigError(
                "APP_BASE without a run needs APP_FAMILY", where="APP_FAMILY", remedy="such as APP_FAMILY=mistral"
            )
        family = get_family(settings.family).name
        name = settings.base_name or _public(settings.base)
        return Catalogue(base_name=name, runs={}, manifest=None, base=settings.base, family=family)
    runs = dict(pairs)
    manifest = _read_manifests(runs)
    first = next(iter(runs.values()))
    stored_base = first / STORED_BASE
    base = settings.base or (str(stored_base) if stored_base.is_dir() else None)
    base_name = settings.base_name or _public(manifest.base.id)
    taken = [name for name, _ in pairs] + [base_name]
    twice = sorted({name for name in taken if taken.count(name) > 1})
    if twice:
        raise ConfigError(
            several("models have the same name", twice),
            where="APP_RUN, APP_MODEL, APP_BASE_NAME",
            remedy="give each a name of its own: NAME=FOLDER",
        )
    return Catalogue(base_name=base_name, runs=runs, manifest=manifest, base=base, family=manifest.base.family)


def _read_manifests(runs: Mapping[str, Path]) -> Manifest:
    """The first run's manifest; all of them are looked at."""
    try:
        manifests = [RunDirectory(run).read_manifest() for run in runs.values()]
        for run in runs.values():
            RunDirectory(run).require_adapter()
    except RunError as fault:
        raise RunError(fault.what, where="APP_RUN, APP_MODEL", remedy=fault.remedy) from fault
    return manifests[0]


def _value(entry: str) -> str:
    return entry.partition("=")[2] if "=" in entry else entry


def _named(entry: str, default: str, folder: Path) -> tuple[str, Path]:
    return (entry.partition("=")[0] if "=" in entry else default), folder


def _public(base: str) -> str:
    """A hub id as it is, and of a folder its name alone: answers hold no paths."""
    return Path(base).expanduser().resolve().name if is_local(base) or Path(base).is_absolute() else base
