"""API keys and rates."""

from pathlib import Path

import pytest
from starlette.datastructures import Headers

from app.errors import ConfigError
from app.serve import keys as keys_module
from app.serve.api_error import ApiError
from app.serve.exposure import exposure
from app.serve.keys import Keys, read_keys
from app.serve.settings import Settings


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(keys_module, "time", clock)
    return clock


def test_a_file_names_keys_and_their_rates(tmp_path: Path, clock: Clock) -> None:
    file = tmp_path / "keys"
    file.write_text("# who: what for\n\nalpha\nshop beta\nbatch gamma 2\n")
    keys = Keys(read_keys(("delta",), str(file), rate=0), rate=0)
    assert [keys.caller(f"Bearer {key}", "-") for key in ("alpha", "beta", "gamma", "delta")] == [
        "line3",
        "shop",
        "batch",
        "key1",
    ]
    assert keys.caller("bearer  beta", "-") == "shop"
    for wrong in (
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer alph",
        "Basic alpha",
        "alpha",
        "Bearer alpha beta",
        "Bearer ü",
    ):
        with pytest.raises(ApiError) as refused:
            keys.caller(wrong, "-")
        assert refused.value.status == 401 and refused.value.headers == {"WWW-Authenticate": "Bearer"}


@pytest.mark.parametrize("secret", ["schlüssel", "clé-à", "鍵"])
def test_keys_need_not_be_ascii(secret: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"shop {secret}\n", encoding="utf-8")
    header = Headers(raw=[(b"authorization", f"Bearer {secret} ".encode())])["authorization"]
    for found in (read_keys((), str(file), rate=0), read_keys((secret,), None, rate=0)):
        assert Keys(found, rate=0).caller(header, "-") == found[0].name


def test_keys_are_kept_as_hashes(tmp_path: Path) -> None:
    (key,) = read_keys(("open-sesame",), None, rate=5)
    assert "open-sesame" not in repr(key) and key.rate == 5


def test_each_key_has_its_own_rate(tmp_path: Path, clock: Clock) -> None:
    file = tmp_path / "keys"
    file.write_text("slow one 2\nfast two 60\nfree three 0\n")
    keys = Keys(read_keys((), str(file), rate=9), rate=9)
    for _ in range(2):
        keys.caller("Bearer one", "-")
    with pytest.raises(ApiError) as refused:
        keys.caller("Bearer one", "-")
    assert refused.value.status == 429 and refused.value.headers["Retry-After"] == "30"
    for _ in range(60):
        keys.caller("Bearer two", "-")
        keys.caller("Bearer three", "-")
    clock.now += 29
    with pytest.raises(ApiError):
        keys.caller("Bearer one", "-")  # and a refused request costs nothing
    clock.now += 1
    assert keys.caller("Bearer one", "-") == "slow"


def test_without_keys_addresses_are_counted(clock: Clock) -> None:
    keys = Keys([], rate=1)
    assert keys.caller(None, "10.0.0.1") == keys.caller(None, "10.0.0.2") == "-"
    with pytest.raises(ApiError):
        keys.caller(None, "10.0.0.1")


def test_callers_are_forgotten_in_the_end(clock: Clock) -> None:
    keys = Keys([], rate=1)
    for number in range(keys_module._CALLERS + 5):
        keys.caller(None, f"address-{number}")
    assert len(keys._buckets) == keys_module._CALLERS


def test_files_that_are_wrong_are_named_and_not_quoted(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("good one\nbad secret often\none two three four\n")
    with pytest.raises(ConfigError, match=r"(?s)line 2 .*line 3 ") as fault:
        read_keys((), str(file), rate=0)
    assert "secret" not in str(fault.value)
    file.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="holds no key"):
        read_keys((), str(file), rate=0)
    with pytest.raises(ConfigError, match="APP_API_KEYS_FILE"):
        read_keys((), str(tmp_path / "none"), rate=0)


@pytest.mark.parametrize(
    ("host", "keys", "warned"),
    [
        ("127.0.0.1", (), False),
        ("localhost", (), False),
        ("::1", (), False),
        ("0.0.0.0", (), True),
        ("192.168.1.5", (), True),
        ("0.0.0.0", ("key",), False),
    ],
)
def test_an_open_door_is_warned_of(host: str, keys: tuple[str, ...], warned: bool) -> None:
    assert (exposure(host, Settings(api_keys=keys)) is not None) == warned
