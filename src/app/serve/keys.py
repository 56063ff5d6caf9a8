"""API keys: who may ask, and how often."""

import hashlib
import hmac
import math
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from app.errors import ConfigError, several
from app.serve.api_error import ApiError

_CALLERS = 10_000
"""Callers whose rate is remembered; beyond it the one not seen for longest is forgotten."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key, of which only the hash is kept.

    Attributes:
        name: for the log.
        digest: SHA-256 of the key.
        rate: requests a minute; 0 is no limit.
    """

    name: str
    digest: bytes
    rate: int


class Keys:
    """Checks keys and counts requests.

    Args:
        keys: one of them must come with each request; none opens the API to everybody.
        rate: requests a minute for each address while there are no keys; 0 is no limit.
    """

    def __init__(self, keys: list[Key], *, rate: int) -> None:
        self.required = bool(keys)
        self._keys = keys
        self._rate = rate
        # Caller -> (requests left, when that was): a bucket that fills at its rate up to one minute's worth.
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def caller(self, authorization: str | None, address: str) -> str:
        """The name of whoever asks, once the key and the rate are right.

        Raises:
            ApiError: 401 without a right key; 429 above the rate, with Retry-After.
        """
        if not self.required:
            self._count(address, self._rate)
            return "-"
        scheme, _, secret = (authorization or "").partition(" ")
        # Servers decode headers as Latin-1, whatever a client wrote: these are its bytes again. They are stripped as
        # bytes, for to text the last one of "à" in UTF-8 is a space.
        digest = hashlib.sha256(secret.encode("latin-1").strip()).digest()
        # All keys are compared, and hashes, in constant time: how long it takes tells nothing.
        right = [key for key in self._keys if hmac.compare_digest(key.digest, digest)]
        if scheme.lower() != "bearer" or not right:
            raise ApiError(
                401,
                "a right API key is needed: Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        self._count(right[0].digest.hex(), right[0].rate)
        return right[0].name

    def _count(self, caller: str, rate: int) -> None:
        if rate == 0:
            return
        now = time.monotonic()
        left, before = self._buckets.pop(caller, (float(rate), now))
        left = min(left + (now - before) * rate / 60, float(rate))
        self._buckets[caller] = (max(left - 1, 0.0) if left >= 1 else left, now)
        if len(self._buckets) > _CALLERS:
            self._buckets.popitem(last=False)
        if left < 1:
            wait = math.ceil((1 - left) * 60 / rate)
            raise ApiError(
                429,
                f"more than {rate} requests a minute; ask again in {wait} s",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(wait)},
            )


def read_keys(given: tuple[str, ...], file: str | None, *, rate: int) -> list[Key]:
    """The keys of the environment and of the file.

    Raises:
        ConfigError: the file cannot be read, or lines of it are wrong (they are named by number, not quoted).
    """
    found = [_key(f"key{number}", secret, rate) for number, secret in enumerate(given, start=1)]
    if file is None:
        return found
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(
            "the file of API keys cannot be read", where=f"APP_API_KEYS_FILE={file}", remedy="correct the path"
        ) from fault
    faults = []
    for number, line in enumerate(lines, start=1):
        parts = line.split()
        if not parts or parts[0].startswith("#"):
            continue
        if len(parts) > 3 or (len(parts) == 3 and not parts[2].isdecimal()):
            faults.append(f"line {number} is not KEY, NAME KEY or NAME KEY REQUESTS_PER_MINUTE")
            continue
        name, secret = (f"line{number}", parts[0]) if len(parts) == 1 else parts[:2]
        found.append(_key(name, secret, int(parts[2]) if len(parts) == 3 else rate))
    if faults or not found:
        raise ConfigError(
            several("the file of API keys is wrong", faults or ["it holds no key"]),
            where=f"APP_API_KEYS_FILE={file}",
            remedy="write a key a line",
        )
    return found


def _key(name: str, secret: str, rate: int) -> Key:
    return Key(name=name, digest=hashlib.sha256(secret.encode()).digest(), rate=rate)
