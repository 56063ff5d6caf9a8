"""The adapter alone: llama.cpp with base and adapter computes what transformers with base and adapter computes."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from app.errors import ModelError, RunError
from app.export.adapter import Adapter
from app.export.gguf_file import write_gguf
from app.export.lora_gguf import lora_tensors, write_lora_gguf
from app.export.target import publish
from app.export.tuned import TunedModel, open_tuned
from conftest import TinyCheckpoint
from export.conftest import ADAPTERS, MakeRun, reference_logits

CASES = {
    "smollm2 lora": ("smollm2", ADAPTERS["lora"]),
    "smollm2 patterns": ("smollm2", ADAPTERS["patterns"]),
    "mistral rslora": ("mistral", ADAPTERS["rslora"]),
    "gemma lora": ("gemma", ADAPTERS["lora"]),
    "phi3 rslora with patterns": ("phi3", {**ADAPTERS["patterns"], "use_rslora": True}),
}


def nothing(amount: int) -> None:
    pass


def bare_base(tuned: TunedModel, folder: Path) -> Path:
    base = folder / "base.gguf"
    bare = dataclasses.replace(tuned, adapter=Adapter(updates={}, replaced={}, config={}))
    write_gguf(bare, base, quant="f32", advance=nothing)
    publish(base)
    return base


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_applies_it_as_peft_does(case: str, make_run: MakeRun, tiny: TinyCheckpoint, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from app.export.runtime import LlamaCpp

    family_name, options = CASES[case]
    tuned = open_tuned(make_run(tiny(family_name), family_name, **options))
    target = tmp_path / "adapter.gguf"
    write_lora_gguf(tuned, target, advance=nothing)
    publish(target)
    ids = list(tuned.manifest.golden.input_ids)
    expected = reference_logits(tuned, ids).numpy()
    base = bare_base(tuned, tmp_path)
    with LlamaCpp(base, context=256, adapter=target) as model:
        got = model.logits(ids)
    with LlamaCpp(base, context=256) as model:
        without = model.logits(ids)
    assert np.abs(got - expected).max() < 3e-3
    assert (got.argmax(1) == expected.argmax(1)).all()
    assert np.abs(without - expected).max() > 0.3, "the adapter changes nothing, so that this test proves nothing"


def test_rslora_is_one_alpha_and_patterns_are_folded_into_b(make_run: MakeRun, tiny: TinyCheckpoint) -> None:
    rslora = lora_tensors(open_tuned(make_run(tiny("mistral"), "mistral", use_rslora=True)))
    assert rslora.alpha == pytest.approx(16 * 8**0.5)
    tuned = open_tuned(make_run(tiny("smollm2"), "smollm2", **ADAPTERS["patterns"]))
    folded = lora_tensors(tuned)
    assert folded.alpha == 16
    update = tuned.adapter.updates["model.layers.1.mlp.down_proj.weight"]
    product = folded.tensors["blk.1.ffn_down.weight.lora_b"] @ folded.tensors["blk.1.ffn_down.weight.lora_a"]
    np.testing.assert_allclose(product * folded.alpha / 8, update.b @ update.a * 40 / 8, rtol=1e-4, atol=1e-6)


def test_the_file_says_what_it_is(make_run: MakeRun, tiny: TinyCheckpoint, tmp_path: Path) -> None:
    tuned = open_tuned(make_run(tiny("gemma"), "gemma"))
    target = tmp_path / "adapter.gguf"
    write_lora_gguf(tuned, target, advance=nothing)
    publish(target)
    fields = {name: field.contents() for name, field in GGUFReader(target).fields.items()}
    assert fields["general.type"] == "adapter" and fields["adapter.type"] == "lora"
    assert fields["general.architecture"] == "gemma" and fields["adapter.lora.alpha"] == 16


@pytest.mark.parametrize(
    ("options", "reason"), [({"use_dora": True}, "DoRA"), ({"modules_to_save": ["lm_head"]}, "lm_head.* as a whole")]
)
def test_what_the_format_cannot_say_is_refused(
    options: dict[str, Any], reason: str, make_run: MakeRun, tiny: TinyCheckpoint
) -> None:
    with pytest.raises(RunError, match=reason):
        lora_tensors(open_tuned(make_run(tiny("llama3"), "llama3", **options)))


def test_an_adapter_that_llama_cpp_does_not_take_is_an_error(
    make_run: MakeRun, tiny: TinyCheckpoint, tmp_path: Path
) -> None:
    pytest.importorskip("llama_cpp")
    from app.export.runtime import LlamaCpp

    base = bare_base(open_tuned(make_run(tiny("smollm2"), "smollm2")), tmp_path)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF nonsense")
    with pytest.raises(ModelError, match=r"bad\.gguf"):
        LlamaCpp(base, context=64, adapter=tmp_path / "bad.gguf")
