"""llama.cpp's own converter, from the source distribution of llama-cpp-python (77 MB, MIT), as a test oracle only."""

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
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
base, out, architecture = Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
model = get_model_class(architecture)
model.set_vocab = lambda self: None  # vocabularies need sentencepiece files, which transformers 5 no longer writes
with torch.inference_mode():
    model(base, gguf.LlamaFileType.MOSTLY_F16, out).write()
"""


def convert(base: Path, target: Path) -> None:
    """Writes what llama.cpp's converter makes of a checkpoint in float16, without its vocabulary."""
    if not (ORACLE / "convert_hf_to_gguf.py").is_file():
        _fetch()
    architecture = json.loads((base / "config.json").read_text())["architectures"][0]
    command = [sys.executable, "-c", DRIVER, str(ORACLE), str(base), str(target), architecture]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
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
