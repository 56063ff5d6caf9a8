"""Opened models for the generation tests."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from app.data.tokenize import load_tokenizer
from app.families import get_family
from app.generate.session import Session
from app.model.load import load_base


def open_plain(folder: Path, family_name: str) -> Session:
    """A checkpoint in float32 as it is: the fastest to run."""
    family = get_family(family_name)
    model = load_base(str(folder), family, device=torch.device("cpu"), dtype=torch.float32, quantization="none")
    return Session(model=model.eval(), tokenizer=load_tokenizer(str(folder), family), family=family, manifest=None)


def open_float32(folder: Path, family_name: str, *, alpha: int, **config: object) -> Session:
    """`open_tuned` computing in float32: in bfloat16 the shape of transformers' batch decides between near ties."""
    return open_tuned(folder, family_name, alpha=alpha, dtype=torch.float32, **config)


def open_tuned(folder: Path, family_name: str, *, alpha: int, dtype: torch.dtype, **config: object) -> Session:
    """A checkpoint in NF4 with a random LoRA adapter of that strength; ``config`` changes its configuration.

    In float32, ``trainable`` keeps bitsandbytes from repacking the weights, which would put bfloat16 products back in.
    """
    family = get_family(family_name)
    exact = dtype == torch.float32
    model = load_base(str(folder), family, device=torch.device("cpu"), dtype=dtype, trainable=exact)
    for name, value in config.items():
        setattr(model.config, name, value)
    lora = LoraConfig(r=8, lora_alpha=alpha, target_modules=list(family.lora_targets), init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        tuned = get_peft_model(model, lora)
    return Session(model=tuned.eval(), tokenizer=load_tokenizer(str(folder), family), family=family, manifest=None)
