"""The merged folder: opens anywhere, says the same, continues after a stop, needs little memory, refuses nonsense."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from app.errors import ConfigError, ModelError
from app.export import tuned as module_tuned
from app.export.merged import pick_type, write_merged
from app.export.output import replaceable
from app.export.target import publish_folder
from app.export.tuned import nf4_rounded, open_tuned
from app.export.weights import read_checkpoint
from app.families import Family
from app.model.load import load_base
from conftest import TinyCheckpoint
from export.conftest import MakeRun, reference_logits


def nothing(amount: int) -> None:
    pass


def merge(tuned: Any, target: Path, *, dtype: torch.dtype = torch.float32, shard_bytes: int = 1 << 30) -> Path:
    write_merged(tuned, target, dtype=dtype, shard_bytes=shard_bytes, advance=nothing)
    publish_folder(target)
    return target


def test_transformers_opens_it_and_it_says_what_the_adapter_says(
    family: Family, make_run: MakeRun, tiny: TinyCheckpoint, tmp_path: Path
) -> None:
    tuned = open_tuned(make_run(tiny(family.name), family.name))
    folder = merge(tuned, tmp_path / "merged", shard_bytes=100_000)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    ids = list(tuned.manifest.golden.input_ids)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        torch.testing.assert_close(
            model(torch.tensor([ids])).logits[0], reference_logits(tuned, ids), atol=1e-4, rtol=0
        )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [dict(message) for message in tuned.manifest.golden.messages]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
    stops = tokenizer.convert_tokens_to_ids(list(family.stop_tokens))
    assert GenerationConfig.from_pretrained(folder).eos_token_id == stops
    assert replaceable(folder, "merged", tuned) == folder
    card = (folder / "README.md").read_text()
    assert f"license: {family.licence}" in card and "sha256:" in card and "LoRA (rank 8" in card


def test_exact_stands_on_the_weights_that_a_freshly_loaded_4_bit_model_computes_with(
    make_run: MakeRun, tiny: TinyCheckpoint
) -> None:
    from bitsandbytes.functional import dequantize_4bit

    tuned = open_tuned(make_run(tiny("mistral"), "mistral"), exact=True)
    loaded = load_base(str(tuned.base), tuned.family, device=torch.device("cpu"), dtype=torch.bfloat16)
    quantized = {
        f"{name}.weight": dequantize_4bit(module.weight.data, module.weight.quant_state)
        for name, module in loaded.named_modules()
        if type(module).__name__ == "Linear4bit"
    }
    assert set(quantized) == {name for name in tuned.places if tuned.quantized(name)}
    for name, expected in quantized.items():
        assert torch.equal(nf4_rounded(tuned.places[name].read(), dtype=torch.bfloat16, double_quant=True), expected)
        update = tuned.adapter.updates[name]
        torch.testing.assert_close(tuned.weight(name), expected.float() + update.scale * update.b @ update.a)


def test_stretches_of_rows_make_the_same_files_as_whole_tensors(
    make_run: MakeRun, tiny: TinyCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = open_tuned(make_run(tiny("mistral"), "mistral", use_dora=True))
    whole = merge(tuned, tmp_path / "whole", dtype=torch.bfloat16) / "model.safetensors"
    monkeypatch.setattr(module_tuned, "BLOCK", 1500)
    pieces = merge(tuned, tmp_path / "pieces", dtype=torch.bfloat16) / "model.safetensors"
    assert pieces.read_bytes() == whole.read_bytes()


def test_stopped_merges_go_on_and_end_with_the_same_bytes(
    make_run: MakeRun, tiny: TinyCheckpoint, tmp_path: Path
) -> None:
    tuned = open_tuned(make_run(tiny("smollm2"), "smollm2"))
    whole = merge(tuned, tmp_path / "whole", shard_bytes=100_000)
    target = tmp_path / "stopped"
    calls = 0

    def stop(amount: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_merged(tuned, target, dtype=torch.float32, shard_bytes=100_000, advance=stop)
    assert not target.exists()
    finished = {file.name: file.stat().st_mtime_ns for file in (tmp_path / ".stopped.partial").glob("*.safetensors")}
    assert finished
    merge(tuned, target, shard_bytes=100_000)
    for file in whole.glob("*.safetensors*"):
        assert (target / file.name).read_bytes() == file.read_bytes()
    assert all((target / name).stat().st_mtime_ns == written for name, written in finished.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stopped", "whole"]


@pytest.mark.parametrize("dtype", ["nf4", "int4", "fp8", "4bit"])
def test_a_merge_that_stays_quantised_is_refused_with_the_reason(
    dtype: str, make_run: MakeRun, tiny: TinyCheckpoint
) -> None:
    tuned = open_tuned(make_run(tiny("smollm2"), "smollm2"))
    with pytest.raises(ConfigError, match="95 %"):
        pick_type(dtype, tuned)
    with pytest.raises(ConfigError, match="complex64"):
        pick_type("complex64", tuned)


def test_a_base_that_is_stored_quantised_is_refused(make_run: MakeRun, tiny: TinyCheckpoint, tmp_path: Path) -> None:
    base = shutil.copytree(tiny("smollm2"), tmp_path / "base")
    run = make_run(base, "smollm2")
    config = json.loads((base / "config.json").read_text())
    quantization = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    with pytest.raises(ModelError, match="stored quantised"):
        open_tuned(run)


def test_exact_is_refused_for_a_run_on_16_bit_weights(make_run: MakeRun, tiny: TinyCheckpoint) -> None:
    run = make_run(tiny("smollm2"), "smollm2", quantization="none")
    with pytest.raises(ConfigError, match="--exact"):
        open_tuned(run, exact=True)


@pytest.mark.parametrize("damage", ["cut", "missing", "header"])
def test_a_damaged_base_is_named(damage: str, tiny: TinyCheckpoint, tmp_path: Path) -> None:
    base = shutil.copytree(tiny("smollm2"), tmp_path / "base")
    file = base / "model.safetensors"
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:-10] if damage == "cut" else b"\xff" * 7 + content[7:])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        read_checkpoint(base)


PEAK = """
import resource, sys
from pathlib import Path
import torch
from app.export.merged import write_merged
from app.export.tuned import open_tuned
tuned = open_tuned(Path(sys.argv[1]))
open("/proc/self/clear_refs", "w").write("5")  # resets VmHWM
before = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
write_merged(tuned, Path(sys.argv[2]), dtype=torch.bfloat16, shard_bytes=1 << 40, advance=lambda n: None)
after = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
print(after - before, tuned.parameters * 2 // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_is_that_of_a_few_tensors_not_of_the_model(make_run: MakeRun, tmp_path: Path) -> None:
    from support.tiny import tiny_checkpoint

    base = tiny_checkpoint(
        "mistral",
        tmp_path / "base",
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=40,
        num_attention_heads=8,
    )
    command = [sys.executable, "-c", PEAK, str(make_run(base, "mistral")), str(tmp_path / "merged")]
    peak, model = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    # 103 MB were seen: what is made ahead of the writing (32 MB), a few float32 tensors of 3 MB, the buffers of direct
    # reads and writes, and what transformers imports to write the configuration.
    assert model > 230_000 and peak < 140_000, (peak, model)
