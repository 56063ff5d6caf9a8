"""Which split a sample belongs to: a seeded hash of its group, so that adding rows moves none of the old ones."""

import hashlib

SPLITS = ("train", "val", "test")


def position(key: str, *, seed: int) -> float:
    """Where a key lies in [0, 1): uniform over keys, the same on every machine (first 8 bytes of BLAKE2b)."""
    digest = hashlib.blake2b(f"{seed}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def assign(at: float, *, val_fraction: float, test_fraction: float) -> str:
    """The split of a position: the lowest ``test_fraction`` are test, the next ``val_fraction`` val, the rest train.

    Samples leave the test split only if ``test_fraction`` shrinks: a longer validation split never reaches into it.
    """
    if at < test_fraction:
        return "test"
    return "val" if at < test_fraction + val_fraction else "train"
