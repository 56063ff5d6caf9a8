"""GGUF files: llama.cpp computes what transformers computes, and its own converter writes the same tensors."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from app.errors import ConfigError, ModelError
from app.export import tuned as module_tuned
from app.export.gguf_file import Direct, check_quants, file_name, is_current, packed, write_gguf
from app.export.layout import make_layout, permuted
from app.export.target import publish
from app.export.tuned import TunedModel, open_tuned
from app.export.vocabulary import chat_template
from app.families import Family, all_families, get_family
from conftest import TinyCheckpoint
from export.conftest import ADAPTERS, MakeRun, reference_logits
from support.oracle import convert
from support.tiny import tiny_checkpoint

GELU = 3e-3
"""llama.cpp looks Gemma's GELU up in a table of float16 values, whatever the weights are."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama 3.1 rotary scaling": (
        "llama3",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
            "max_position_embeddings": 256,
        },
    ),
    "linear rotary scaling": (
        "llama3",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 500000.0, "factor": 4.0}},
    ),
    "phi-3 128k: long factors beyond the original context": (
        "phi3",
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0 + 0.05 * i for i in range(8)],
                "long_factor": [1.0 + 0.5 * i for i in range(8)],
                "original_max_position_embeddings": 64,
            },
            "max_position_embeddings": 512,
            "original_max_position_embeddings": 64,
        },
    ),
    "tied head": ("mistral", {"tie_word_embeddings": True}),
    "untied head": ("smollm2", {"tie_word_embeddings": False}),
    "fewer tokens than rows": ("llama3", {"vocab_size": 1088}),
}


def nothing(amount: int) -> None:
    pass


def written(tuned: TunedModel, folder: Path, quant: Direct) -> Path:
    target = folder / file_name(tuned, quant)
    write_gguf(tuned, target, quant=quant, advance=nothing)
    publish(target)
    return target


def difference(tuned: TunedModel, file: Path) -> tuple[float, float]:
    """Largest difference of a logit from transformers, and top-1 agreement, over the golden conversation."""
    pytest.importorskip("llama_cpp")
    from app.export.runtime import LlamaCpp

    ids = list(tuned.manifest.golden.input_ids)
    expected = reference_logits(tuned, ids).numpy()
    with LlamaCpp(file, context=256) as model:
        got = model.logits(ids)
    return float(np.abs(got - expected).max()), float((got.argmax(1) == expected.argmax(1)).mean())


@pytest.mark.parametrize("quant", ["f32", "f16"])
def test_llama_cpp_computes_what_transformers_computes(
    quant: Direct, family: Family, make_run: MakeRun, tiny: TinyCheckpoint, tmp_path: Path
) -> None:
    tuned = open_tuned(make_run(tiny(family.name), family.name))
    largest, top1 = difference(tuned, written(tuned, tmp_path, quant))
    if quant == "f32":
        assert largest < (GELU if family.config["hidden_act"].startswith("gelu") else 1e-4)
        assert top1 == 1.0
    else:
        assert largest < 0.07
        assert top1 > 0.97


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_the_architectures_too(variant: str, make_run: MakeRun, tmp_path: Path) -> None:
    family_name, shape = VARIANTS[variant]
    tuned = open_tuned(make_run(tiny_checkpoint(family_name, tmp_path / "base", **shape), family_name))
    largest, top1 = difference(tuned, written(tuned, tmp_path, "f32"))
    assert largest < 1e-4
    assert top1 == 1.0


@pytest.mark.slow
def test_tensors_are_those_of_llama_cpps_converter(make_run: MakeRun, tiny: TinyCheckpoint, tmp_path: Path) -> None:
    runs = {name: open_tuned(make_run(tiny(name), name)) for name in all_families()}
    for name, tuned in runs.items():
        merged = tmp_path / name
        merged.mkdir()
        save_file({key: tuned.weight(key).float().contiguous() for key in tuned.places}, merged / "model.safetensors")
        tuned.config.save_pretrained(merged)
    convert([(tmp_path / name, tmp_path / f"{name}.gguf") for name in runs])
    for name, tuned in runs.items():
        assert_same_tensors(written(tuned, tmp_path, "f16"), tmp_path / f"{name}.gguf")


def assert_same_tensors(ours: Path, theirs: Path) -> None:
    """Names, types and bytes of all tensors, and the architecture's metadata."""
    mine, other = GGUFReader(ours), GGUFReader(theirs)
    tensors = {tensor.name: tensor for tensor in mine.tensors}
    expected = {tensor.name: tensor for tensor in other.tensors}
    assert set(tensors) == set(expected)
    for name, tensor in tensors.items():
        assert tensor.tensor_type == expected[name].tensor_type, name
        assert np.array_equal(tensor.data, expected[name].data), name
    architecture = mine.fields["general.architecture"].contents()
    for key, field in other.fields.items():
        if key.startswith(f"{architecture}."):
            assert mine.fields[key].contents() == pytest.approx(field.contents()), key


@pytest.mark.parametrize("quant", ["f16", "q8_0"])
def test_stretches_of_rows_make_the_same_file_as_whole_tensors(
    quant: Direct,
    family: Family,
    make_run: MakeRun,
    tiny: TinyCheckpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = open_tuned(make_run(tiny(family.name), family.name, **ADAPTERS["dora"]))
    for exact in (False, True):
        tuned = dataclasses.replace(run, exact=exact)
        whole = written(tuned, tmp_path / "whole", quant).read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(module_tuned, "BLOCK", 1500)
            pieces = [len(list(tuned.blocks(name))) for name in tuned.places]
            assert max(pieces) > 10
            assert written(tuned, tmp_path / "pieces", quant).read_bytes() == whole


def test_metadata_says_where_the_model_comes_from(
    family: Family, make_run: MakeRun, tiny: TinyCheckpoint, tmp_path: Path
) -> None:
    tuned = open_tuned(make_run(tiny(family.name), family.name))
    file = written(tuned, tmp_path, "q8_0")
    fields = {name: field.contents() for name, field in GGUFReader(file).fields.items()}
    assert fields["general.license"] == family.licence
    assert fields["general.base_model.0.name"] == tuned.title
    assert fields["general.dataset.0.name"].startswith("sha256:")
    assert fields["tokenizer.chat_template"] == chat_template(family)
    assert "generation %}" not in fields["tokenizer.chat_template"]
    assert fields["tokenizer.ggml.add_bos_token"] is family.gguf.add_bos
    tokens = fields["tokenizer.ggml.tokens"]
    assert tokens[fields["tokenizer.ggml.eot_token_id"]] == family.stop_tokens[0]
    assert tokens[fields["tokenizer.ggml.padding_token_id"]] == family.pad_token
    control = [tokens.index(token) for token in {*family.stop_tokens, *family.chat.tokens}]
    assert {fields["tokenizer.ggml.token_type"][index] for index in control} == {3}
    assert is_current(tuned, file) and not is_current(dataclasses.replace(tuned, exact=True), file)


def test_files_are_named_model_size_quant(make_run: MakeRun, tiny: TinyCheckpoint) -> None:
    tuned = open_tuned(make_run(tiny("mistral"), "mistral"))
    assert file_name(tuned, "q4_k_m") == "Mistral-v0.3-205K-Q4_K_M.gguf"
    assert file_name(tuned, "f16", name="My model") == "My-model-205K-F16.gguf"


@pytest.mark.parametrize("heads", [1, 3, 8])
def test_the_permutation_puts_a_heads_halves_side_by_side(heads: int) -> None:
    rows = torch.arange(heads * 6).unsqueeze(1)
    head = permuted(rows, 6).reshape(heads, 6)[0].tolist()
    assert head == [0, 3, 1, 4, 2, 5]


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    for value in (1e5, float("nan"), float("-inf")):
        with pytest.raises(ModelError, match="bf16"):
            packed(torch.tensor([[1.0, value]]), GGMLQuantizationType.F16, name="weight")


def test_a_tensor_without_a_place_is_refused_by_name(make_run: MakeRun, tiny: TinyCheckpoint, tmp_path: Path) -> None:
    tuned = open_tuned(make_run(tiny("smollm2"), "smollm2"))
    with pytest.raises(ModelError, match="vision_tower"):
        make_layout(tuned.family, tuned.config, [*tuned.places, "vision_tower.weight"])


def test_unknown_types_are_refused_all_at_once() -> None:
    with pytest.raises(ConfigError, match="q4_k_x, foo"):
        check_quants(["f16", "q4_k_x", "foo"], ["f16", "q8_0"])


def test_q8_0_is_bit_for_bit_llama_cpps_own(make_run: MakeRun, tiny: TinyCheckpoint, tmp_path: Path) -> None:
    library = pytest.importorskip("llama_cpp")
    from app.export.runtime import llama_cpp

    llama_cpp()
    tuned = open_tuned(make_run(tiny("smollm2"), "smollm2"))
    parameters = library.llama_model_quantize_default_params()
    parameters.ftype = library.LLAMA_FTYPE_MOSTLY_Q8_0
    source, theirs = written(tuned, tmp_path, "f32"), tmp_path / "theirs.gguf"
    assert library.llama_model_quantize(str(source).encode(), str(theirs).encode(), parameters) == 0
    assert_same_tensors(written(tuned, tmp_path, "q8_0"), theirs)


def test_replaced_layers_are_written(make_run: MakeRun, tiny: TinyCheckpoint, tmp_path: Path) -> None:
    tuned = open_tuned(make_run(tiny("llama3"), "llama3", modules_to_save=["lm_head"]))
    assert get_family("llama3") is tuned.family
    head = load_file(tuned.run.adapter / "adapter_model.safetensors")["base_model.model.lm_head.weight"]
    tensors = {tensor.name: tensor.data for tensor in GGUFReader(written(tuned, tmp_path, "f32")).tensors}
    assert np.array_equal(tensors["output.weight"], head.float().numpy())
    assert AutoModelForCausalLM.from_pretrained(tuned.base).lm_head.weight.shape == head.shape
