"""The merged weights are peft's, and what cannot be merged is refused with all its reasons."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from app.errors import RunError
from app.export.adapter import read_adapter
from app.export.tuned import open_tuned
from conftest import TinyCheckpoint
from export.conftest import ADAPTERS, MakeRun


@pytest.mark.parametrize("kind", ADAPTERS)
def test_weights_are_those_of_pefts_own_merge(kind: str, make_run: MakeRun, tiny: TinyCheckpoint) -> None:
    tuned = open_tuned(make_run(tiny("smollm2"), "smollm2", **ADAPTERS[kind]))
    base = AutoModelForCausalLM.from_pretrained(tuned.base, dtype=torch.float32)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    merged = PeftModel.from_pretrained(base, tuned.run.adapter).merge_and_unload().state_dict()
    for name in tuned.places:
        torch.testing.assert_close(tuned.weight(name).float(), merged[name], atol=2e-6, rtol=1e-5)
    assert {name for name in tuned.places if not torch.equal(before[name], merged[name])} == set(tuned.adapter.updates)


def test_whole_layers_trained_beside_the_adapter_replace_the_bases(make_run: MakeRun, tiny: TinyCheckpoint) -> None:
    tuned = open_tuned(make_run(tiny("llama3"), "llama3", modules_to_save=["lm_head"]))
    assert list(tuned.adapter.replaced) == ["lm_head.weight"]
    assert torch.equal(tuned.weight("lm_head.weight"), tuned.adapter.replaced["lm_head.weight"].read())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bias": "all"}, "trains biases"),
        ({"init_lora_weights": "pissa_niter_16"}, "changed the base weights"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication is set"),
        ({"use_dora": True}, "magnitudes say otherwise"),
    ],
)
def test_what_its_numbers_do_not_define_is_refused(
    change: dict[str, Any], reason: str, make_run: MakeRun, tiny: TinyCheckpoint, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(make_run(tiny("smollm2"), "smollm2") / "adapter", folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(RunError, match=reason):
        read_adapter(folder)


def test_an_adapter_of_another_shape_is_refused_with_all_names(make_run: MakeRun, tiny: TinyCheckpoint) -> None:
    tuned = open_tuned(make_run(tiny("smollm2"), "smollm2"))
    other = open_tuned(make_run(tiny("gemma"), "gemma"))
    with pytest.raises(RunError) as caught:
        other.adapter.check(tuned.places, tied=True)
    assert "layers.0.self_attn.q_proj.weight" in str(caught.value)
    assert "layers.1.self_attn.o_proj.weight" in str(caught.value)


def test_a_cut_off_adapter_file_is_a_clear_error(make_run: MakeRun, tiny: TinyCheckpoint, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(make_run(tiny("smollm2"), "smollm2") / "adapter", folder)
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(RunError, match="cannot be read"):
        read_adapter(folder)
