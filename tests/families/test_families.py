"""What every family file must state, checked against the model classes and against llama.cpp's own names."""

from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import app.families
from app.errors import ConfigError, ModelError
from app.families import Family, all_families, check_model_type, get_family


def skeleton(family: Family) -> torch.nn.Module:
    """The first base model without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**family.config))


def test_a_family_is_found_by_the_name_of_its_file() -> None:
    files = {path.stem for path in Path(app.families.__file__).parent.glob("*.py")} - {"__init__", "base"}
    assert files == set(all_families())


def test_the_configuration_gives_the_published_number_of_parameters(family: Family) -> None:
    assert sum(parameter.numel() for parameter in skeleton(family).parameters()) == family.parameters


def test_lora_targets_are_all_linear_layers_of_a_block(family: Family) -> None:
    block = skeleton(family).get_decoder().layers[0]
    linear = {name.rsplit(".", 1)[-1] for name, part in block.named_modules() if isinstance(part, torch.nn.Linear)}
    assert set(family.lora_targets) == linear


def test_the_configuration_is_of_the_family(family: Family) -> None:
    assert family.config["model_type"] in family.model_types
    check_model_type(family, family.config["model_type"], checkpoint=family.base_models[0])


def test_every_turn_has_one_place_for_its_text(family: Family) -> None:
    chat = family.chat
    for form in (chat.user, chat.answer, *([chat.system] if chat.system else [])):
        assert form.count("{content}") == 1
    assert "{content}" not in chat.bos + chat.answer_open + chat.answer_close


def test_the_answer_ends_with_the_first_stop_token(family: Family) -> None:
    """What is trained last is what generation stops at: a model whose EOS was never trained does not stop."""
    assert family.chat.answer.endswith("{content}" + family.stop_tokens[0])


def test_the_formats_tokens_are_single_ids(family: Family, tokenizer: PreTrainedTokenizerFast) -> None:
    chat = family.chat
    written = "".join([chat.bos, chat.system or "", chat.user, chat.answer_open, chat.answer, chat.answer_close])
    for token in chat.tokens:
        assert token in written
    assert not chat.bos or chat.bos == chat.tokens[0]
    rest = written
    for token in sorted(chat.tokens, key=len, reverse=True):
        rest = rest.replace(token, "")
    assert not {"<", ">", "[", "]"} & set(rest), "a control token is written but not listed in chat.tokens"


def test_gguf_facts_are_names_that_llama_cpp_knows(family: Family) -> None:
    assert family.gguf.architecture in gguf.MODEL_ARCH_NAMES.values()
    assert (family.gguf.tokenizer_model == "gpt2") == (family.gguf.pre is not None)
    if family.gguf.eot_token is not None:
        assert family.gguf.eot_token == family.stop_tokens[0]


def test_bos_is_added_to_a_gguf_exactly_where_the_format_has_one(family: Family) -> None:
    assert family.gguf.add_bos == bool(family.chat.bos)


def test_sources_and_licence_are_named(family: Family) -> None:
    assert family.licence
    assert any("chat format" in source for source in family.sources)
    assert any("config" in source for source in family.sources)


def test_a_misspelt_family_is_told_its_name() -> None:
    with pytest.raises(ConfigError) as fault:
        get_family("mistal")
    assert "did you mean 'mistral'?" in str(fault.value)
    assert all(name in fault.value.remedy for name in all_families())


def test_a_checkpoint_of_another_family_is_refused_and_its_own_named() -> None:
    with pytest.raises(ModelError) as fault:
        check_model_type(get_family("mistral"), "llama", checkpoint="org/model")
    assert "llama3 or smollm2" in fault.value.remedy
    with pytest.raises(ModelError, match="'bert'") as fault:
        check_model_type(get_family("mistral"), "bert", checkpoint="org/model")
    assert "supported family" in fault.value.remedy
