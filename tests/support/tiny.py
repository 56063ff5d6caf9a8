"""Whole checkpoints of each family's real architecture, so small that CPU tests train, save and export them."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from app.families import get_family
from support.tiny_tokenizer import tiny_tokenizer

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""Every weight's input width is a multiple of 64, the block of NF4."""


def tiny_checkpoint(family_name: str, folder: Path, *, seed: int = 42, **shape: Any) -> Path:
    """Writes config.json, generation_config.json, model.safetensors (bf16) and a tokenizer; returns ``folder``.

    The configuration is the family's own with the dimensions of ``SHAPE``; ``shape`` changes more of it. A family
    that states ``head_dim`` gets one that is not hidden size / heads, as Gemma 7B's. Norm weights are random too, so
    that a stage which forgets one of them (or Gemma's +1) fails its test.
    """
    family = get_family(family_name)
    tokenizer = tiny_tokenizer(family)
    head_dim = {"head_dim": 32} if "head_dim" in family.config else {}
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = AutoConfig.for_model(**{**family.config, **SHAPE, **head_dim, **ids, "initializer_range": 0.1, **shape})
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(list(family.stop_tokens))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
