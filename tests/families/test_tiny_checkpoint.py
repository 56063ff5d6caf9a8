"""The checkpoints other tests train, export and serve are of the families' real classes and load in NF4."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedTokenizerFast

from app.data.records import prompt
from app.data.tokenize import encode
from app.families import Family


@pytest.fixture(scope="module")
def model(family: Family, tiny):
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="bfloat16"
    )
    return AutoModelForCausalLM.from_pretrained(tiny(family.name), quantization_config=nf4, dtype=torch.bfloat16)


def test_it_is_of_the_real_architecture(model: torch.nn.Module, family: Family) -> None:
    assert type(model) is AutoModelForCausalLM._model_mapping[type(model.config)]
    assert model.config.model_type == family.config["model_type"]
    assert model.config.tie_word_embeddings == family.config["tie_word_embeddings"]
    linear = {name.rsplit(".", 1)[-1] for name, part in model.named_modules() if type(part).__name__ == "Linear4bit"}
    assert linear == set(family.lora_targets)


def test_it_stops_at_the_familys_tokens(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, family: Family
) -> None:
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids(list(family.stop_tokens))


def test_it_computes(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, family: Family) -> None:
    ids = torch.tensor([encode(prompt("Hello?"), tokenizer, family, answer_next=True).input_ids])
    logits = model(ids).logits
    assert logits.shape == (1, ids.shape[1], len(tokenizer))
    assert torch.isfinite(logits).all()
    assert logits.std() > 0.1  # Not all tokens alike: a wrong export would otherwise go unseen.
