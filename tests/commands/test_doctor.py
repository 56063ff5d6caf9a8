"""`python -m app doctor` on this machine, and where something is wrong with it."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch

from app.__main__ import main
from app.plan import doctor
from app.plan.checks import Finding


def test_looks_at_everything(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["doctor"]) == 0, "the machine that runs the tests can train"
    shown = capsys.readouterr().out
    for check in doctor.CHECKS:
        assert check in shown or (check == "GPU memory" and not torch.cuda.is_available())
    assert "4-bit product" in shown and " 0 failed" in shown
    assert "\x1b[" not in shown


def test_a_failure_is_the_exit_status_and_quiet_shows_nothing_else(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> list[Finding]:
        raise OSError("libcudart.so.13: [cannot] open shared object file")

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(doctor, "CHECKS", {"Python": doctor.python, "bitsandbytes": broken})
    assert main(["doctor", "--quiet"]) == 1
    shown = capsys.readouterr().out
    assert "fail" in shown and "libcudart.so.13: [cannot] open" in " ".join(shown.split())
    assert "Python" not in shown
    monkeypatch.setattr(doctor, "CHECKS", {"Python": doctor.python})
    assert main(["doctor", "--quiet"]) == 0
    assert capsys.readouterr().out == ""


class _Answer(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def mirror() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Answer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_hub_is_the_one_of_hf_endpoint(mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # huggingface_hub reads the environment when it is imported.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", mirror)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (finding,) = doctor.hub()
    assert finding.state == "ok" and mirror in finding.found
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    (finding,) = doctor.hub()
    assert finding.state == "warn" and "does not answer" in finding.found


def test_a_login_at_wandb_is_found_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    assert doctor.wandb()[0].state == "warn"
    (tmp_path / "netrc").write_text("machine wandb.example login user password 0123\n")
    (finding,) = doctor.wandb()
    assert finding.state == "ok" and "wandb.example" in finding.found and "0123" not in finding.found
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "0123")
    assert doctor.wandb()[0].state == "ok"


def test_each_disk_is_judged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("APP_CACHE", str(tmp_path / "cache" / "deeper"))
    assert len(doctor.disk()) == 1
