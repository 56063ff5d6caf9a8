from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from peft import LoraConfig, get_peft_model

from app.families import get_family
from app.generate.adapter import LeanAdapter
from app.model.load import load_base
from support.opening import open_float32

if TYPE_CHECKING:
    from collections.abc import Callable

IDS = torch.arange(300, 340)[None]


def test_the_direct_forward_is_pefts_and_leaves_no_trace(tiny: "Callable[[str], Path]") -> None:
    model = open_float32(tiny("llama3"), "llama3", alpha=16).model
    lean = LeanAdapter(model)
    with torch.inference_mode():
        expected = model(input_ids=IDS).logits
        with model.disable_adapter():
            base = model(input_ids=IDS).logits
            assert lean.names == ()
            with lean.active():
                assert torch.equal(model(input_ids=IDS).logits, base)
        assert lean.names == ("default",)
        with pytest.raises(ZeroDivisionError), lean.active():
            layers = [m for m in model.modules() if "forward" in m.__dict__ and hasattr(m, "lora_A")]
            assert len(layers) == 14, "the direct forward is not in use"
            torch.testing.assert_close(model(input_ids=IDS).logits, expected, atol=1e-5, rtol=1e-5)
            _ = 1 / 0
        assert not any("forward" in m.__dict__ and hasattr(m, "lora_A") for m in model.modules())
    assert not torch.allclose(expected, base, atol=1e-2)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}, {"use_rslora": True}])
def test_other_kinds_of_lora_give_what_peft_gives(tiny: "Callable[[str], Path]", options: dict[str, bool]) -> None:
    family = get_family("smollm2")
    base = load_base(str(tiny("smollm2")), family, device=torch.device("cpu"), dtype=torch.float32, quantization="none")
    lora = LoraConfig(r=4, target_modules=list(family.lora_targets), init_lora_weights=False, **options)
    torch.manual_seed(0)
    model = get_peft_model(base, lora).eval()
    lean = LeanAdapter(model)
    with torch.inference_mode():
        expected = model(input_ids=IDS).logits
        with lean.active():
            torch.testing.assert_close(model(input_ids=IDS).logits, expected, atol=1e-5, rtol=1e-5)


def test_an_input_that_changes_between_passes_is_seen(tiny: "Callable[[str], Path]") -> None:
    """Within a pass layers that take the same tensor share its conversion."""
    model = open_float32(tiny("llama3"), "llama3", alpha=16).model
    lean = LeanAdapter(model)
    layer = model.get_base_model().get_decoder().layers[0].mlp.gate_proj
    x = torch.randn(1, 3, layer.in_features)
    with torch.inference_mode():
        for _ in range(2):
            expected = layer(x)
            with lean.active():
                torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)
            x.mul_(-2)
