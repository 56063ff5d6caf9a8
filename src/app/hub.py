"""Checkpoints by hub id or local folder, and one clear error for each way of not getting one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.errors import ModelError, first_line


def is_local(checkpoint: str) -> bool:
    """Whether the name means a folder on this disk rather than a hub id (``organisation/name``)."""
    return Path(checkpoint).expanduser().is_dir()


@contextmanager
def checkpoint_faults(checkpoint: str, *, where: str = "model.base") -> Iterator[None]:
    """Turns what transformers and huggingface_hub raise while loading ``checkpoint`` into a ModelError.

    Raises:
        ModelError: not found, gated, unreachable, interrupted, or damaged on disk.
    """
    # Imported here: huggingface_hub costs 0.4 s, which `--help` must not pay.
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
    from safetensors import SafetensorError

    again = "run the same command again: finished files are kept and the download goes on where it stopped"
    try:
        if not is_local(checkpoint):
            _require_hub_or_cache(checkpoint)
        yield
    except GatedRepoError as fault:
        raise ModelError(
            f"{checkpoint} is gated on the hub",
            where=where,
            remedy=f"accept its licence at huggingface.co/{checkpoint}, then run `hf auth login`",
        ) from fault
    except (RepositoryNotFoundError, HFValidationError) as fault:
        raise ModelError(
            f"no checkpoint {checkpoint!r}: it is neither a local folder nor a model on the hub",
            where=where,
            remedy="correct the name, or give the path of a folder with config.json and *.safetensors",
        ) from fault
    except HfHubHTTPError as fault:
        raise ModelError(f"the hub refused {checkpoint}: {fault}", where=where, remedy=again) from fault
    except SafetensorError as fault:
        raise ModelError(
            f"a weight file of {checkpoint} is damaged or incomplete: {fault}",
            where=where,
            remedy="delete the damaged file (or the model's folder in the hub cache) and run the command again",
        ) from fault
    except (OSError, ValueError) as fault:
        if is_local(checkpoint):
            raise ModelError(
                f"{checkpoint} cannot be loaded: {first_line(fault)}",
                where=where,
                remedy="the folder must hold config.json, *.safetensors and a tokenizer, as save_pretrained writes",
            ) from fault
        raise ModelError(
            f"{checkpoint} is not in the local cache and the hub could not deliver it: {first_line(fault)}",
            where=where,
            remedy=f"check the connection (HF_ENDPOINT, HF_HUB_OFFLINE), or give a local folder; then {again}",
        ) from fault


def _require_hub_or_cache(checkpoint: str) -> None:
    """Finds out in seconds that the hub is out of reach: its own client retries for 47 s first (hub 2.4, 2026-11)."""
    from huggingface_hub import constants, get_session, is_offline_mode, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(checkpoint, "config.json"), str) or is_offline_mode():
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception as fault:  # which HTTP library raises what depends on the hub client's version
        raise ConnectionError(str(fault)) from fault
