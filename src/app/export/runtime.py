"""llama.cpp in this process: run a GGUF file, or make a smaller one of it."""

import ctypes
import os
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from app.errors import MachineError, ModelError

QUANTS = (
    "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q4_1", "q4_0", "iq4_nl", "iq4_xs", "q3_k_l",
    "q3_k_m", "q3_k_s", "q2_k",
)  # fmt: skip
"""Types that llama.cpp makes from a 16-bit file without calibration data."""
ERRORS: deque[str] = deque(maxlen=5)
"""What llama.cpp logged as errors last."""


def llama_cpp() -> Any:
    """The llama-cpp-python module, with llama.cpp's own log silenced.

    Raises:
        MachineError: it is not installed.
    """
    try:
        import llama_cpp as library
    except (ImportError, OSError, RuntimeError) as fault:
        raise MachineError(
            f"this needs llama.cpp in Python, which cannot be imported: {fault}",
            where="export",
            remedy="pip install 'app[gguf]' (compiles llama.cpp, 5 to 15 minutes); or leave the check out with "
            "--verify false, and take only the types f32, f16, bf16 and q8_0",
        ) from fault
    _silence()
    return library


@cache
def _silence() -> Callable[..., None]:
    """Keeps llama.cpp's log from the terminal, its errors for messages; the cache keeps the callback alive."""
    import llama_cpp as library

    @library.llama_log_callback  # type: ignore[untyped-decorator]
    def listen(level: int, text: bytes, data: Any) -> None:
        if level == 4:  # GGML_LOG_LEVEL_ERROR
            ERRORS.append(text.decode("utf-8", errors="replace").strip())

    library.llama_log_set(listen, ctypes.c_void_p(0))
    return listen  # type: ignore[no-any-return]


def quantize(source: Path, target: Path, quant: str) -> None:
    """Makes a file of type ``quant`` (see QUANTS) from an f16, bf16 or f32 file.

    Raises:
        MachineError: llama.cpp is not installed, or refused (it says no more than that it did).
    """
    library = llama_cpp()
    parameters = library.llama_model_quantize_default_params()
    prefix = "LLAMA_FTYPE_MOSTLY_"
    parameters.ftype = getattr(library, prefix + quant.upper())
    parameters.nthread = os.cpu_count() or 1
    status = library.llama_model_quantize(os.fsencode(source), os.fsencode(target), parameters)
    if status != 0 or not target.is_file():
        target.unlink(missing_ok=True)
        raise MachineError(
            f"llama.cpp could not quantise {source.name} to {quant} (status {status})",
            where="--quant",
            remedy="check the free disk space; if there is enough, choose another type, such as q8_0",
        )


class LlamaCpp:
    """A GGUF file, open in llama.cpp on the CPU, with key-value cache in float32 so that only the weights round.

    Args:
        path: the model.
        context: tokens it must hold.
        adapter: a LoRA file to put on it.

    Raises:
        MachineError: llama.cpp is not installed.
        ModelError: it does not take the model or the adapter.
    """

    def __init__(self, path: Path, *, context: int, adapter: Path | None = None) -> None:
        library = llama_cpp()
        ERRORS.clear()
        try:
            self._llm = library.Llama(
                str(path),
                n_ctx=context,
                n_batch=context,
                n_ubatch=context,
                n_threads=torch.get_num_threads(),
                n_threads_batch=torch.get_num_threads(),
                n_gpu_layers=0,
                logits_all=True,
                type_k=0,  # GGML_TYPE_F32
                type_v=0,
                lora_path=str(adapter) if adapter else None,
                verbose=False,
            )
        except (ValueError, RuntimeError, AssertionError) as fault:
            raise ModelError(
                f"llama.cpp does not take {path.name}{f' with {adapter.name}' if adapter else ''}: "
                f"{' '.join(ERRORS) or fault}",
                where="export",
                remedy="export again; if it stays, the installed llama.cpp is older than the model's architecture",
            ) from fault
        # llama-cpp-python goes on without an adapter that it could not load.
        if adapter and not getattr(self._llm, "_lora_adapter", None):
            self.close()
            raise ModelError(
                f"llama.cpp did not load the adapter {adapter.name}", where="export lora-gguf", remedy="export it again"
            )

    def __enter__(self) -> "LlamaCpp":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Gives the memory back; llama.cpp's own finaliser comes too late at interpreter exit."""
        self._llm.close()

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Logits after each token, [len(ids), vocabulary], float32."""
        self._llm.reset()
        self._llm.eval(list(ids))
        return np.array(self._llm.scores[: len(ids)], dtype=np.float32)

    def greedy(self, ids: Sequence[int], *, tokens: int, stops: Sequence[int]) -> str:
        """The most probable continuation, at most ``tokens`` long, without the stop token."""
        self._llm.reset()
        self._llm.eval(list(ids))
        answer: list[int] = []
        while len(answer) < tokens:
            best = int(np.argmax(self._llm.scores[self._llm.n_tokens - 1]))
            if best in stops:
                break
            answer.append(best)
            self._llm.eval([best])
        return self.decode(answer)

    def encode(self, text: str) -> list[int]:
        """Ids of a text with control tokens written out, no BOS added."""
        ids: list[int] = self._llm.tokenize(text.encode("utf-8"), add_bos=False, special=True)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, control tokens written out."""
        raw: bytes = self._llm.detokenize(list(ids), special=True)
        return raw.decode("utf-8", errors="replace")
