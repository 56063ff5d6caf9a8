"""Opened models for the generation tests, in float32: in bfloat16 the batch's shape decides between near ties."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from app.families import get_family
from app.generate.session import Session

OpenTiny = Callable[[str], Session]


def open_float32(folder: Path, family_name: str, *, adapter: bool, **config: object) -> Session:
    """A checkpoint in NF4 with float32 arithmetic, with a random LoRA adapter if asked for.

    ``trainable`` keeps bitsandbytes from repacking the weights, which would put bfloat16 products back in.
    """
    from peft import LoraConfig, get_peft_model

    from app.data.tokenize import load_tokenizer
    from app.model.load import load_base

    family = get_family(family_name)
    model = load_base(str(folder), family, device=torch.device("cpu"), dtype=torch.float32, trainable=True)
    for name, value in config.items():
        setattr(model.config, name, value)
    if adapter:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = get_peft_model(
                model,
                LoraConfig(r=8, lora_alpha=16, target_modules=list(family.lora_targets), init_lora_weights=False),
            )
    return Session(model=model.eval(), tokenizer=load_tokenizer(str(folder), family), family=family, manifest=None)


@pytest.fixture(scope="session")
def open_tiny(tiny: Callable[[str], Path]) -> OpenTiny:
    """``open_tiny("phi3")``: a tiny model of the family's architecture, NF4 + adapter; sliding windows of 24."""

    @cache
    def opened(family_name: str) -> Session:
        window = {"sliding_window": 24} if family_name in ("mistral", "phi3") else {}
        return open_float32(tiny(family_name), family_name, adapter=True, **window)

    return opened
