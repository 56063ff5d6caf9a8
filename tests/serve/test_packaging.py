"""`bentoml build` and what comes of it: the wheel, the Dockerfile, and a bento that serves from a clean folder."""

import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from app import __version__
from support.serving import ROOT, bento_server, bentoml_home

pytestmark = pytest.mark.slow

SECRET = "sk-never-in-an-image"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return bentoml_home(tmp_path_factory.mktemp("bentoml"))


@pytest.fixture(scope="module")
def bento(home: dict[str, str], runs: dict[str, Path]) -> Iterator[Path]:
    """A bento of one run, built by the command line, with a secret in the environment."""
    command = [Path(sys.executable).with_name("bentoml"), "build", "--arg", f"run=named={runs['helper']}", "-o", "tag"]
    environment = {**os.environ, **home, "APP_API_KEYS": SECRET}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    tag = done.stdout.strip().rpartition("__tag__:")[2]
    name, _, version = tag.partition(":")
    yield Path(home["BENTOML_HOME"]) / "bentos" / name / version


def test_the_wheel_is_this_project(bento: Path) -> None:
    (wheel,) = (bento / "env" / "python" / "wheels").iterdir()
    assert wheel.name == f"app-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.endswith(".py")}
    assert packed == {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "app").rglob("*.py")}


def test_requirements_are_the_pins(bento: Path) -> None:
    def pins(text: str) -> set[str]:
        return set(re.findall(r"^[\w.-]+==[\w.+-]+", text, flags=re.MULTILINE))

    packed = pins((bento / "env" / "python" / "requirements.txt").read_text())
    assert packed == pins((ROOT / "requirements.txt").read_text())


def test_the_dockerfile(bento: Path) -> None:
    lines = (bento / "env" / "docker" / "Dockerfile").read_text().splitlines()
    first = {}
    for number, line in enumerate(lines):
        first.setdefault(line.split(" ")[0], number)
    assert lines[first["FROM"]].startswith("FROM nvidia/cuda:")
    users = [line for line in lines if line.startswith("USER ")]
    assert users[-1] == "USER bentoml"
    after = lines[lines.index("USER bentoml") :]
    assert not any(line.startswith(("RUN", "COPY", "ADD")) for line in after), "nothing is done as another user later"
    check = " ".join(lines[first["HEALTHCHECK"] : first["HEALTHCHECK"] + 2])
    assert "/readyz" in check and "CMD curl --fail" in check
    assert "RUN bash -euxo pipefail /home/bentoml/bento/env/python/install.sh" in lines  # pins, then the wheel
    assert any(line.startswith("ENV BENTOML_HOST=") for line in lines)
    environment = {line.split()[1].partition("=")[0] for line in lines if line.startswith(("ENV", "ARG"))}
    assert not {name for name in environment if "KEY" in name or "TOKEN" in name or "SECRET" in name}


def test_no_secret_is_anywhere_in_it(bento: Path) -> None:
    for path in bento.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


def test_the_bento_pins_its_model(bento: Path) -> None:
    info = yaml.safe_load((bento / "bento.yaml").read_text())
    (model,) = info["services"][0]["models"]
    assert model["tag"].startswith("named:")


def test_it_serves_from_a_clean_folder_and_from_the_wheel(
    bento: Path, home: dict[str, str], runs: dict[str, Path], tmp_path: Path
) -> None:
    with zipfile.ZipFile(next((bento / "env" / "python" / "wheels").iterdir())) as wheel:
        wheel.extractall(tmp_path / "site")
    (tmp_path / "site" / "app" / "__init__.py").write_text('__version__ = "of the wheel"\n')
    clean = tmp_path / "clean"
    clean.mkdir()
    environment = {**home, "PYTHONPATH": str(tmp_path / "site"), "APP_CONTEXT": "300", "APP_API_KEYS": SECRET}
    tag = f"{bento.parent.name}:{bento.name}"
    with bento_server(tag, environment, folder=clean) as (url, _, _):
        assert httpx.get(f"{url}/health").json()["version"] == "of the wheel"
        key = {"authorization": f"Bearer {SECRET}"}
        assert httpx.get(f"{url}/v1/models", headers=key).json()["data"][0]["id"] == "named"
        answer = httpx.post(f"{url}/generate", json={"prompt": "Hi", "max_tokens": 4}, headers=key, timeout=60)
        assert answer.status_code == 200 and answer.json()["completion_tokens"] == 4
        assert httpx.post(f"{url}/generate", json={"prompt": "Hi", "max_tokens": 299}, headers=key).status_code == 400
    assert list(clean.iterdir()) == []


def test_building_again_stores_no_second_copy(bento: Path, home: dict[str, str], runs: dict[str, Path]) -> None:
    program = (
        "import json, bentoml\nfrom pathlib import Path\nfrom app.export.bento import find_stored, store_run\n"
        f"run = Path({str(runs['helper'])!r})\n"
        "print(json.dumps([find_stored(run, name='named'), find_stored(run, name='other'),"
        " store_run(run, name='other', base=Path(json.loads((run / 'manifest.json').read_text())['base']['id'])),"
        " [str(m.tag) for m in bentoml.models.list('named')]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **home}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found, missing, with_base, named = json.loads(done.stdout.splitlines()[-1])
    assert named == [found] and missing is None
    stored = Path(home["BENTOML_HOME"]) / "models" / "other" / with_base.partition(":")[2]
    assert (stored / "base" / "model.safetensors").is_file() and (stored / "adapter").is_dir()


def test_containerize_says_what_it_needs(bento: Path, home: dict[str, str]) -> None:
    """Without a container engine it cannot be run; what it would build is the Dockerfile above."""
    tag = f"{bento.parent.name}:{bento.name}"
    command = shlex.split(f"{Path(sys.executable).with_name('bentoml')} containerize {tag}")
    environment = {**os.environ, **home, "PATH": str(Path(sys.executable).parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "docker" in (done.stdout + done.stderr).lower()
