"""Where an export may go: into a folder, or in the place of an earlier export, never in that of anything else."""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from app.errors import ConfigError
from app.export.tuned import TunedModel

WRITTEN = {
    # The card tells a merged model from a base: what `fit` needs of one is otherwise the same files.
    "merged": (
        ("config.json", "model*.safetensors", "README.md"),
        ("model*.index.json", "generation_config.json", "tokenizer*.json", "special_tokens_map.json", "*.jinja"),
    ),
    "ollama": (("*.gguf", "Modelfile"), ()),
}
"""Kind -> names that every export of it holds, and names that it may hold besides."""


def require_folder(output: Path) -> None:
    """Refuses what no folder can be made of.

    Raises:
        ConfigError: it is a file, or would lie in one.
    """
    folder = output.resolve()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise _refused(output, f"{there} is a file")


def replaceable(output: Path, kind: Literal["merged", "ollama"], tuned: TunedModel) -> Path:
    """The folder whose place an export takes as a whole: ``output``, links followed. It need not exist.

    Raises:
        ConfigError: it is a file, holds what the export is made from, or anything but an earlier export of this kind.
    """
    require_folder(output)
    folder = output.resolve()
    kept = {"the run": tuned.run.path, "the base model": tuned.base, "the folder you are in": Path.cwd()}
    for what, path in kept.items():
        if path.resolve().is_relative_to(folder):
            raise _refused(output, f"it is or holds {what}, {path.resolve()}")
    files = sorted(folder.iterdir()) if folder.exists() else []
    always, sometimes = WRITTEN[kind]
    for file in files:
        if file.is_dir() or not any(fnmatchcase(file.name, name) for name in (*always, *sometimes)):
            raise _refused(output, f"it holds {file.name}, which no `export {kind}` wrote")
    for name in always:
        if files and not any(fnmatchcase(file.name, name) for file in files):
            raise _refused(output, f"it holds files that no `export {kind}` wrote: there is no {name}")
    return folder


def _refused(output: Path, reason: str) -> ConfigError:
    return ConfigError(
        f"the export cannot go to {output}: {reason}",
        where="--output",
        remedy="name a new folder, or an earlier export of this kind",
    )
