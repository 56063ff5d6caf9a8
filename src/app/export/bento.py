"""A run in BentoML's model store, where the service finds it by name and a build pins it by tag."""

import dataclasses
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from app.artifact import RunDirectory
from app.cache import cache_key, content_hash
from app.errors import ConfigError
from app.hub import is_local

if TYPE_CHECKING:
    from app.export.exporter import Bars, CheckOptions, Outcome

STORED_BASE = "base"
"""Folder of a stored run with its base's weights, where they were stored with it."""

_NOT_NEEDED = ("*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "original", ".*")
"""Files of a checkpoint that are never loaded: other formats of the same weights, pickles among them."""


def export_bento(
    run: Path,
    *,
    name: str | None,
    include_base: bool,
    check_at: "CheckOptions | None",
    bars: "Bars",
) -> tuple["Outcome", str]:
    """The run in BentoML's model store, compared with the original; returns the tag too.

    A copy whose check fails or is stopped is taken out of the store again.
    """
    import bentoml

    from app.export.exporter import checking, outcome_of
    from app.export.scorers import TransformersScorer
    from app.export.tuned import open_tuned
    from app.generate.session import open_run

    tuned = open_tuned(run)
    verdicts = []
    with checking(tuned, check_at, bars=bars, twin=False) as check:
        tag = store_run(run, name=name, base=tuned.base if include_base else None)
        try:
            stored = Path(bentoml.models.get(tag).path)
            if check:
                base = stored / STORED_BASE
                session = open_run(stored, base=str(base) if include_base else None)
                verdicts.append(check.judge(TransformersScorer(session), tag, "copy"))
        except BaseException:  # ctrl-C too: it is the newest of its name already, which the service takes
            bentoml.models.delete(tag)
            raise
    if not all(verdict.passed for verdict in verdicts):
        bentoml.models.delete(tag)
    return outcome_of("bento", [stored], verdicts, check), tag


def store_run(run: Path, *, name: str | None, base: Path | None = None) -> str:
    """Puts a run's adapter, manifest and configuration into BentoML's model store; returns the new tag.

    Without ``base`` the service gets the base model by the id in the manifest; a base in a folder of this machine is
    noted by its full path, so that it is found from any other folder.

    Args:
        run: the run directory.
        name: in the store; the run's own by default.
        base: folder of the base's weights, to be stored too (linked where the file system can).

    Raises:
        RunError: not a run directory, or without an adapter.
        ConfigError: BentoML does not take the name.
    """
    import bentoml

    source = RunDirectory(run)
    manifest = source.read_manifest()
    adapter = source.require_adapter()
    if is_local(manifest.base.id):
        place = str(Path(manifest.base.id).expanduser().resolve())
        manifest = dataclasses.replace(manifest, base=dataclasses.replace(manifest.base, id=place))
    labels = {"family": manifest.base.family, "run": _fingerprint(source), "with-base": str(base is not None).lower()}
    stored_name = _stored_name(run, name)
    try:
        with bentoml.models.create(stored_name, labels=labels) as model:
            copy = RunDirectory(model.path)
            shutil.copytree(adapter, copy.adapter)
            copy.write_manifest(manifest)
            if source.config_path.is_file():
                shutil.copy2(source.config_path, copy.config_path)
            if base is not None:
                ignored = shutil.ignore_patterns(*_NOT_NEEDED)
                shutil.copytree(base, copy.path / STORED_BASE, ignore=ignored, copy_function=_link_or_copy)
    except ValueError as fault:
        raise ConfigError(
            f"BentoML's store takes no model called {stored_name!r}: {fault}",
            where="--name",
            remedy="use letters, digits, '-', '_' and '.'",
        ) from fault
    return str(model.tag)


def find_stored(run: Path, *, name: str | None) -> str | None:
    """The tag under which this very run is in the store already, or None.

    Raises:
        RunError: not a run directory, or without an adapter.
    """
    import bentoml

    fingerprint = _fingerprint(RunDirectory(run))
    found = [
        model
        for model in bentoml.models.list()
        if model.tag.name == _stored_name(run, name) and model.info.labels.get("run") == fingerprint
    ]
    return str(max(found, key=lambda model: model.creation_time).tag) if found else None


def _stored_name(run: Path, name: str | None) -> str:
    return (name or run.resolve().name).lower()


def _fingerprint(run: RunDirectory) -> str:
    """Of all that is stored: the adapter's files and the manifest."""
    return cache_key(adapter=content_hash(run.require_adapter()), manifest=content_hash(run.manifest_path))


def _link_or_copy(source: str, target: str) -> None:
    """The same file twice takes no disk; other file systems get a copy. Hub caches hold links, which are followed."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)
