"""To the hub: the adapter, or what an export has written, with its model card, in one commit."""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.artifact import Manifest, RunDirectory
from app.card import Kind, base_name, model_card
from app.errors import ConfigError, MachineError, RunError, first_line
from app.hub import is_local

REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def push(run: Path, repo: str, *, what: Kind, private: bool, message: str) -> str:
    """Uploads a folder of the run; returns the address of what was committed.

    Files that the repository holds already are not sent again. A base in a folder of this machine is named by that
    folder's name alone: its path is nobody's business.

    Args:
        run: the run directory.
        repo: organisation/name; made if there is none.
        what: which folder.
        private: of a repository that is made.
        message: of the commit.

    Raises:
        ConfigError: no repository's name, or no token.
        RunError: there is nothing of that kind to upload.
        MachineError: the hub cannot be reached or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token, is_offline_mode
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not REPOSITORY.fullmatch(repo):
        raise ConfigError(
            f"{repo!r} names no repository", where="--repo", remedy="write organisation/name, or your user name/name"
        )
    directory = RunDirectory(run)
    manifest = directory.read_manifest()
    folder = _folder(directory, what)
    if is_offline_mode():
        raise MachineError("the hub is switched off by HF_HUB_OFFLINE", remedy="unset it and run the command again")
    token = get_token()
    if token is None:
        raise ConfigError(
            f"there is no token to write to {constants.ENDPOINT} with",
            where="hf auth login, HF_TOKEN",
            remedy=f"make one with write access at {constants.ENDPOINT}/settings/tokens, then run `hf auth login`, or "
            "set HF_TOKEN to it for this command",
        )
    if not sys.stderr.isatty():
        disable_progress_bars()
    lora = json.loads((directory.require_adapter() / "adapter_config.json").read_text(encoding="utf-8"))
    contents: dict[str, Path | bytes] = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }
    if "adapter_config.json" in contents:
        contents["adapter_config.json"] = _without_path(lora, manifest)
    if what != "merged":
        # A merged folder's card says how it was merged; the others know by now what an evaluation found.
        contents["README.md"] = model_card(directory, manifest, lora, kind=what, place=repo).encode()
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=each) for name, each in contents.items()]
    api = HfApi(token=token)
    with _hub_faults(repo):
        api.create_repo(repo, private=private, exist_ok=True)
        return str(api.create_commit(repo, operations, commit_message=message).commit_url)


def _folder(run: RunDirectory, what: Kind) -> Path:
    if what == "adapter":
        return run.require_adapter()
    folder = run.path / "export" / what
    if not folder.is_dir():
        raise RunError(
            f"{run.path} holds no export of kind {what}",
            where="--what",
            remedy=f"run `python -m app export {what} --run {shlex.quote(str(run.path))}` first",
        )
    return folder


def _without_path(lora: dict[str, Any], manifest: Manifest) -> bytes:
    """The adapter's configuration; the base by its hub id, or by its folder's name."""
    if is_local(str(lora.get("base_model_name_or_path"))):
        lora = {**lora, "base_model_name_or_path": base_name(manifest)}
    return (json.dumps(lora, indent=2, sort_keys=True) + "\n").encode()


@contextmanager
def _hub_faults(repo: str) -> Iterator[None]:
    """Turns what the hub's client raises into a MachineError."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    again = "then run the same command again: what has arrived is not sent twice"
    try:
        yield
    except HfHubHTTPError as fault:
        status = fault.response.status_code
        remedies = {
            401: f"the token is not valid: make one at {constants.ENDPOINT}/settings/tokens and run `hf auth login`",
            403: f"the token may not write to {repo}: give it write access, or choose a --repo of your own",
        }
        raise MachineError(
            f"{constants.ENDPOINT} refused {repo} with status {status}: {first_line(fault)}",
            where="--repo",
            remedy=remedies.get(status, f"wait a little, {again}"),
        ) from fault
    except ValueError as fault:  # what the hub says of a card or of a repository's name
        raise ConfigError(
            f"the hub refused {repo}: {first_line(fault)}", where="--repo", remedy="correct it"
        ) from fault
    except Exception as fault:  # which HTTP library raises what depends on the client's version
        raise MachineError(
            f"{constants.ENDPOINT} could not be reached: {first_line(fault)}",
            remedy=f"check the connection and HF_ENDPOINT, {again}",
        ) from fault
