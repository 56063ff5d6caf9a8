"""Run directories with random adapters, made once per family and kind of adapter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from app.artifact import BaseModel, DataFingerprint, Manifest, RunDirectory
from app.data.tokenize import golden_encoding, load_tokenizer
from app.export.tuned import TunedModel
from app.families import get_family

MakeRun = Callable[..., Path]

ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {"alpha_pattern": {"o_proj": 4, "layers.1.mlp.down_proj": 40}, "rank_pattern": {"o_proj": 4}},
}


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """``make_run(base_folder, "gemma", use_rslora=True)``: a run directory. Do not write to its adapter."""
    made: dict[str, Path] = {}

    def run(base: Path, family_name: str, *, quantization: str = "nf4", strength: float = 0.1, **lora: Any) -> Path:
        key = repr((base, family_name, quantization, strength, sorted(lora.items(), key=str)))
        if key not in made:
            folder = tmp_path_factory.mktemp(f"run-{family_name}") / "tuned"
            write_run(folder, base, family_name, quantization=quantization, strength=strength, **lora)
            made[key] = folder
        return made[key]

    return run


def write_run(run: Path, base: Path, family_name: str, *, quantization: str, strength: float, **lora: Any) -> None:
    """An adapter on all linear layers whose B is random, so that the tuned model is clearly not its base."""
    family = get_family(family_name)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    options = {"r": 8, "lora_alpha": 16, "target_modules": list(family.lora_targets), "task_type": "CAUSAL_LM", **lora}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        tuned = get_peft_model(model, LoraConfig(**options))
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=strength)
            if "magnitude" in name:
                parameter.data *= 1 + 0.2 * torch.rand_like(parameter)
    directory = RunDirectory(run)
    directory.create()
    tuned.save_pretrained(directory.adapter)
    tokenizer = load_tokenizer(str(base), family)
    tokenizer.save_pretrained(directory.adapter)
    directory.write_manifest(
        Manifest(
            status="finished",
            base=BaseModel(
                id=str(base),
                revision=None,
                family=family_name,
                model_type=model.config.model_type,
                quantization="nf4" if quantization == "nf4" else "none",
                double_quant=True,
                dtype="bfloat16",
            ),
            golden=golden_encoding(tokenizer, family),
            data=DataFingerprint(source="data/none", sha256={"train": "ab"}, samples={"train": 3}),
            max_length=256,
            seed=42,
            config={},
            versions={},
            git_commit=None,
            created="2026-11-22T00:00:00Z",
            app_version="0",
        )
    )


def reference_logits(tuned: TunedModel, ids: list[int]) -> torch.Tensor:
    """[T, V] of the base in float32 with peft's adapter beside it: nothing of the exporter is in it."""
    base = AutoModelForCausalLM.from_pretrained(tuned.base, dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(base, tuned.run.adapter).eval()
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([ids])).logits[0]
    return logits
