"""The stored NF4 form: the same model to the bit, made anew when it is damaged or the checkpoint changed."""

import os
import sys
from pathlib import Path

import pytest
import torch

from app.families import Family, get_family
from app.model.load import load_base
from app.model.nf4_cache import is_intact
from conftest import TinyCheckpoint
from support.tiny import tiny_checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("APP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "nf4"


def test_second_load_reads_the_copy_and_is_equal_to_the_bit(family: Family, tiny: TinyCheckpoint, cache: Path) -> None:
    base = str(tiny(family.name))
    first, second = (load_base(base, family, device=CPU, dtype=torch.bfloat16, trainable=True) for _ in range(2))
    (folder,) = cache.iterdir()
    assert is_intact(folder)
    one, two = first.state_dict(), second.state_dict()
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    ids = torch.arange(5, 25)[None]
    assert torch.equal(first(ids).logits, second(ids).logits)
    assert second.name_or_path == second.config.name_or_path == first.name_or_path == base
    assert not any(parameter.requires_grad for parameter in second.parameters())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_mapped_weights_lie_in_the_stored_file(tiny: TinyCheckpoint, cache: Path) -> None:
    """So processes that cut a base into shards take no memory of their own for what is another's share."""
    base, family = str(tiny("mistral")), get_family("mistral")
    models = [load_base(base, family, device=CPU, dtype=torch.bfloat16, mapped=True) for _ in range(2)]
    files = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if str(cache) in line:
            files.append(range(*(int(end, 16) for end in line.split()[0].split("-"))))

    def is_mapped(model: torch.nn.Module) -> list[bool]:
        packed = [parameter.data_ptr() for parameter in model.parameters() if parameter.dtype == torch.uint8]
        return [any(address in file for file in files) for address in packed]

    made, read = map(is_mapped, models)
    assert len(read) == 14 and all(read) and not any(made)


def test_each_way_of_quantising_has_its_own(tiny: TinyCheckpoint, cache: Path) -> None:
    base, family = str(tiny("mistral")), get_family("mistral")
    load_base(base, family, device=CPU, dtype=torch.bfloat16)
    load_base(base, family, device=CPU, dtype=torch.float32)
    load_base(base, family, device=CPU, dtype=torch.float32, double_quant=False)
    load_base(base, family, device=CPU, dtype=torch.float32, quantization="none")
    assert len(list(cache.iterdir())) == 3


def test_damaged_copy_is_made_anew(tiny: TinyCheckpoint, cache: Path) -> None:
    base, family = str(tiny("mistral")), get_family("mistral")
    first = load_base(base, family, device=CPU, dtype=torch.bfloat16).state_dict()
    (folder,) = cache.iterdir()
    weights = folder / "model.safetensors"
    whole = bytearray(weights.read_bytes())
    whole[-7] ^= 1
    weights.write_bytes(whole)
    again = load_base(base, family, device=CPU, dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert list(cache.iterdir()) == [folder] and is_intact(folder)


def test_another_checkpoint_in_the_same_folder_is_not_the_same(tmp_path: Path, cache: Path) -> None:
    base, family = tiny_checkpoint("mistral", tmp_path / "base"), get_family("mistral")
    first = load_base(str(base), family, device=CPU, dtype=torch.float32).state_dict()
    tiny_checkpoint("mistral", base, seed=7)
    os.utime(base / "model.safetensors", ns=(1, 1))
    second = load_base(str(base), family, device=CPU, dtype=torch.float32).state_dict()
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_a_cache_that_cannot_be_written_costs_only_the_copy(
    tiny: TinyCheckpoint, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    load_base(str(tiny("mistral")), get_family("mistral"), device=CPU, dtype=torch.bfloat16)
    assert not list(cache.iterdir())
