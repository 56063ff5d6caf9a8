"""`python -m app export push` against a hub on a loopback port: what arrives there, and what is refused."""

import base64
import hashlib
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from app.__main__ import main
from app.artifact import RunDirectory
from conftest import TinyCheckpoint
from export.conftest import write_run


@dataclass
class Hub:
    """What the hub was asked for, and the repository it holds now. Answers as huggingface_hub 2.4 wants them."""

    url: str = ""
    refuses: int = 0
    asked: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    created: dict[str, object] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    def answer(self, path: str, body: bytes) -> object:
        if path == "/api/repos/create":
            self.created = json.loads(body)
            return {"url": f"{self.url}/me/tuned", "name": "me/tuned", "id": "1"}
        if path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\nlicense: ")
            return {"errors": [], "warnings": []}
        if path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            return {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".gguf")) else "regular",
                        "shouldIgnore": False,
                        "oid": self.oid(file["path"]),
                    }
                    for file in files
                ]
            }
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            return {
                "transfer": "basic",
                "objects": [
                    {**each, "actions": {"upload": {"href": f"{self.url}/store/{each['oid']}"}}} for each in objects
                ],
            }
        assert path.endswith("/commit/main"), path
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.files[value["path"]] = self.large[value["oid"]]
        return {"commitUrl": f"{self.url}/me/tuned/commit/1", "commitOid": "1"}

    def oid(self, name: str) -> str | None:
        """Of a file it holds: git's for a small one, SHA-256 for a large one."""
        if name not in self.files:
            return None
        content = self.files[name]
        if name.endswith((".safetensors", ".gguf")):
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    state = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.partition("?")[0]
            state.asked.append(path)
            state.tokens.add(self.headers.get("Authorization", ""))
            status, value = 200, b"{}"
            if state.refuses:
                status, value = state.refuses, b'{"error": "no"}'
            elif self.command == "PUT":
                state.large[path.rpartition("/")[2]] = body
            elif self.command == "GET":
                value = json.dumps({"id": "me/tuned", "sha": "1", "siblings": []}).encode()
            else:
                value = json.dumps(state.answer(path, body)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(value)))
            self.end_headers()
            self.wfile.write(value)

        def do_GET(self) -> None:  # the names are the library's
            self.respond()

        def do_POST(self) -> None:
            self.respond()

        def do_PUT(self) -> None:
            self.respond()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def run(tiny: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "my run"
    write_run(folder, tiny("llama3"), "llama3", quantization="nf4", strength=0.1)
    return folder


def push(hub: Hub, run: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """As a user would: huggingface_hub reads its environment once, when it is imported."""
    command = [sys.executable, "-m", "app", "export", "push", "--run", str(run), "--repo", "me/tuned", *options]
    surroundings = {
        "PATH": "/usr/bin:/bin",
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(run.parent / "hub-home"),
        "HF_HUB_DISABLE_XET": "1",  # the older upload protocol: it needs no service of its own
        **environment,
    }
    return subprocess.run(command, capture_output=True, text=True, env=surroundings, timeout=120)


def test_an_adapter_arrives_whole_with_its_card_and_no_path_of_this_machine(hub: Hub, run: Path) -> None:
    done = push(hub, run, HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.url}/me/tuned/commit/1" and "secret" not in done.stdout + done.stderr
    assert "Bearer hf_secret" in hub.tokens
    assert hub.created["organization"] == "me" and hub.created["name"] == "tuned"
    assert hub.created.get("visibility", hub.created.get("private")) in ("private", True)
    weights = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    assert hub.files["adapter_model.safetensors"] == weights
    assert {"tokenizer.json", "chat_template.jinja", "README.md"} <= set(hub.files)
    card = hub.files["README.md"].decode()
    assert 'PeftModel.from_pretrained(base, "me/tuned")' in card and "library_name: peft" in card
    base = RunDirectory(run).read_manifest().base.id
    assert json.loads(hub.files["adapter_config.json"])["base_model_name_or_path"] == Path(base).name
    assert all(str(run.parent.parent).encode() not in content for content in hub.files.values())
    hub.asked.clear()
    again = push(hub, run, HF_TOKEN="hf_secret")
    assert again.returncode == 0 and not any(path.endswith("/commit/main") for path in hub.asked)


def test_an_export_that_was_not_made_is_refused_and_one_that_was_arrives(hub: Hub, run: Path) -> None:
    done = push(hub, run, "--what", "merged", HF_TOKEN="hf_secret")
    assert done.returncode == 2 and f"export merged --run '{run}'" in done.stderr and not hub.asked
    assert main(["export", "merged", "--run", str(run), "--verify", "false"]) == 0
    done = push(hub, run, "--what", "merged", "--private", "false", HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    assert hub.files["model.safetensors"] == (run / "export" / "merged" / "model.safetensors").read_bytes()
    assert "library_name: transformers" in hub.files["README.md"].decode()


def test_no_token_no_hub_and_a_refusal_are_one_message_with_a_remedy(hub: Hub, run: Path) -> None:
    done = push(hub, run)
    assert done.returncode == 2 and f"{hub.url}/settings/tokens" in done.stderr and not hub.asked
    hub.refuses = 403
    done = push(hub, run, HF_TOKEN="hf_secret")
    assert done.returncode == 2 and "write access" in done.stderr and "Traceback" not in done.stderr
    done = push(hub, run, HF_TOKEN="hf_secret", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 2 and "could not be reached" in done.stderr and "HF_ENDPOINT" in done.stderr


@pytest.mark.parametrize("repo", ["tuned", "a/b/c", "me/..", "me tuned/x"])
def test_a_repository_has_an_owner(repo: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "push", "--run", str(run), "--repo", repo]) == 2
    assert "organisation/name" in capsys.readouterr().err
