"""llama.cpp's own converter, from the source distribution of llama-cpp-python (77 MB, MIT), as a test oracle only."""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ORACLE = Path(__file__).parents[2] / "models" / "oracle"
PACKAGE = "llama-cpp-python==0.3.36"
PARTS = ("conversion/", "gguf-py/gguf/", "convert_hf_to_gguf.py")

DRIVER = """
import json, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/gguf-py"]
import torch
from conversion import get_model_class
import gguf
for base, out in zip(sys.argv[2::2], sys.argv[3::2]):
    model = get_model_class(json.loads((Path(base) / "config.json").read_text())["architectures"][0])
    model.set_vocab = lambda self: None  # vocabularies need sentencepiece files, which transformers 5 no longer writes
    with torch.inference_mode():
        model(Path(base), gguf.LlamaFileType.MOSTLY_F16, Path(out)).write()
"""


def command(pairs: Sequence[tuple[Path, Path]]) -> list[str]:
    """What to run, so that llama.cpp's converter writes checkpoints in float16, without their vocabularies.

    Args:
        pairs: checkpoint folder and file to write; all in one process, since importing takes the time.
    """
    if not (ORACLE / "convert_hf_to_gguf.py").is_file():
        _fetch()
    return [sys.executable, "-c", DRIVER, str(ORACLE), *(str(path) for pair in pairs for path in pair)]


def convert(pairs: Sequence[tuple[Path, Path]]) -> None:
    """Writes what llama.cpp's converter makes of checkpoints; see `command`."""
    done = subprocess.run(command(pairs), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def _fetch() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=llama-cpp-python"]
        done = subprocess.run([*command, "--dest", folder, PACKAGE], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"pip could not download {PACKAGE}: {done.stderr.strip()[-200:]}")
        (archive,) = Path(folder).iterdir()
        prefix = f"{archive.name.removesuffix('.tar.gz')}/vendor/llama.cpp/"
        part = ORACLE.with_name(".oracle.partial")
        shutil.rmtree(part, ignore_errors=True)
        with tarfile.open(archive) as files:
            for member in files:
                name = member.name.removeprefix(prefix)
                if name != member.name and name.startswith(PARTS):
                    member.name = name
                    files.extract(member, part, filter="data")
        part.replace(ORACLE)
