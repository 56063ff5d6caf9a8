"""The models that an export is compared with, opened so that they fit into this machine's memory."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from app.export.tuned import TunedModel, nf4_rounded
from app.generate.engine import Engine
from app.generate.sampling import Sampling
from app.generate.session import Session, open_run
from app.hub import checkpoint_faults

ACTIVATIONS = 2 << 30
"""Bytes left free beside weights that are loaded to be compared."""


class TransformersScorer:
    """A model in transformers; see `equivalence.Scorer`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._model = session.model.eval()
        self._tokenizer = session.tokenizer

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Logits after each token, [len(ids), vocabulary], float32."""
        batch = torch.tensor([list(ids)], device=self._model.device)
        result: np.ndarray = self._model(input_ids=batch, use_cache=False).logits[0].float().cpu().numpy()
        return result

    def greedy(self, ids: Sequence[int], *, tokens: int, stops: Sequence[int]) -> str:
        """The most probable continuation, by the engine that chat and serving use (its stops are the family's)."""
        engine = Engine(self._session, slots=1, context=len(ids) + tokens)
        return engine.generate([list(ids)], Sampling(max_tokens=tokens))[0].text

    def encode(self, text: str) -> list[int]:
        """Ids of a text with control tokens written out, nothing added."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


@contextmanager
def run_scorer(tuned: TunedModel) -> Iterator[TransformersScorer]:
    """The run as it was trained: quantised base with the adapter beside it."""
    yield TransformersScorer(open_run(tuned.run.path))


def twin_dtype(tuned: TunedModel) -> torch.dtype | None:
    """The type in which base and adapter fit into memory side by side: float32, else the stored one, else None."""
    room = psutil.virtual_memory().available - ACTIVATIONS
    for dtype in (torch.float32, tuned.dtype):
        if tuned.parameters * dtype.itemsize < room:
            return dtype
    return None


@contextmanager
def twin_scorer(tuned: TunedModel, dtype: torch.dtype) -> Iterator[TransformersScorer]:
    """What the export claims to be, put together by other means: base weights and, apart from them, peft's adapter.

    With ``exact`` the base weights are rounded to NF4 and back first.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with checkpoint_faults(str(tuned.base)):
        model = AutoModelForCausalLM.from_pretrained(
            tuned.base, dtype=dtype, trust_remote_code=False, use_safetensors=True, attn_implementation="eager"
        )
    if tuned.exact:
        stored = getattr(torch, tuned.manifest.base.dtype)
        double = tuned.manifest.base.double_quant
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in tuned.places and tuned.quantized(name):
                    parameter.copy_(nf4_rounded(parameter, dtype=stored, double_quant=double))
    adapted = PeftModel.from_pretrained(model, tuned.run.adapter)
    yield TransformersScorer(Session(model=adapted, tokenizer=tuned.tokenizer, family=tuned.family, manifest=None))


@contextmanager
def merged_scorer(folder: Path, tuned: TunedModel) -> Iterator[TransformersScorer]:
    """A merged folder as anybody would open it; parts that do not fit into memory are read from disk as needed."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = twin_dtype(tuned)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".offload.") as offload:
        fitting: dict[str, Any] = {"dtype": dtype} if dtype else {"device_map": "auto", "offload_folder": offload}
        model = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=False, use_safetensors=True, attn_implementation="eager", **fitting
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        yield TransformersScorer(Session(model=model, tokenizer=tokenizer, family=tuned.family, manifest=None))
