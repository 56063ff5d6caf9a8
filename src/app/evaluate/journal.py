"""Results on disk as they come, so that an interrupted evaluation goes on where it stopped."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from app.errors import MachineError


class Journal:
    """A file of JSON lines: first a key, then one line for each sample's result.

    A file of another key belongs to another evaluation and is begun anew. A torn last line, from a crash, is dropped.

    Args:
        path: of the file.
        key: of all that the results depend on: run, data, options.

    Raises:
        MachineError: the file cannot be written.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._results: dict[tuple[str, str, str], Any] = {}
        whole = self._read(path, key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("r+b" if whole else "wb")
        except OSError as fault:
            raise MachineError(
                f"{path} cannot be written: {fault.strerror}", remedy="make its folder writable, or free disk space"
            ) from fault
        self._file.seek(whole)
        self._file.truncate()
        if not whole:
            self._write({"key": key})

    def _read(self, path: Path, key: str) -> int:
        """Takes over what is there; returns up to which byte the file is whole and ours."""
        if not path.is_file():
            return 0
        whole = 0
        with path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                try:
                    value = json.loads(line)
                    if whole == 0 and value["key"] != key:
                        return 0
                    if whole > 0:
                        self._results[value["model"], value["task"], value["id"]] = value["result"]
                except (ValueError, KeyError, TypeError):
                    break
                whole += len(line)
        return whole

    def has(self, model: str, task: str, identity: str) -> bool:
        return (model, task, identity) in self._results

    def get(self, model: str, task: str, identity: str) -> Any:
        """A sample's result, as JSON gives it."""
        return self._results[model, task, identity]

    def add(self, model: str, task: str, identity: str, result: Any) -> None:
        """Keeps a sample's result; once this returns, a crash of the process does not lose it."""
        self._results[model, task, identity] = result
        self._write({"model": model, "task": task, "id": identity, "result": result})

    def _write(self, value: Any) -> None:
        self._file.write(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
