"""Base-model families, one file each, found by discovery: a new family is a new file and nothing else."""

import difflib
import importlib
import pkgutil
from functools import cache

from app.errors import ConfigError, ModelError
from app.families.base import ChatFormat, Family, GgufFacts

__all__ = ["ChatFormat", "Family", "GgufFacts", "all_families", "check_model_type", "get_family"]


@cache
def all_families() -> dict[str, Family]:
    """Every family by name: each module beside this one that defines ``FAMILY``."""
    modules = (importlib.import_module(f"{__name__}.{entry.name}") for entry in pkgutil.iter_modules(__path__))
    families = (module.FAMILY for module in modules if hasattr(module, "FAMILY"))
    return {family.name: family for family in sorted(families, key=lambda family: family.name)}


def get_family(name: str) -> Family:
    """The family called ``name``.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    families = all_families()
    if name not in families:
        close = difflib.get_close_matches(name, families, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(
            f"there is no family {name!r}", where="model.family", remedy=f"{hint}use one of: {', '.join(families)}"
        )
    return families[name]


def check_model_type(family: Family, model_type: str, *, checkpoint: str) -> None:
    """Refuses a checkpoint of another family: a wrong template trains and serves gibberish without an error.

    Raises:
        ModelError: the checkpoint's ``model_type`` is not one of the family's.
    """
    if model_type in family.model_types:
        return
    fitting = [other.name for other in all_families().values() if model_type in other.model_types]
    remedy = f"set model.family to {' or '.join(fitting)}" if fitting else "choose a checkpoint of a supported family"
    raise ModelError(
        f"the checkpoint {checkpoint} has model_type {model_type!r}, which is not of family {family.name!r} "
        f"({', '.join(family.model_types)})",
        where="model.family",
        remedy=remedy,
    )
