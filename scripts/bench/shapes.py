"""Models of the four families' 7B shapes with random weights, their linear layers in NF4, made without a checkpoint."""

import copy
import json
from pathlib import Path
from typing import Any

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": (
        "MistralConfig",
        {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "sliding_window": None,
         "max_position_embeddings": 32768, "rope_theta": 1e6},
    ),
    "llama3": (
        "LlamaConfig",
        {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192, "rope_theta": 5e5},
    ),
    "gemma": (
        "GemmaConfig",
        {"vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
         "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256, "max_position_embeddings": 8192},
    ),
    "phi3": (
        "Phi3Config",
        {"vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
         "sliding_window": 2047, "pad_token_id": 0},
    ),
    "tiny": (
        "MistralConfig",
        {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": None},
    ),
}  # fmt: skip
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj"]


def build_base(shape: str, device: str) -> Any:
    """A model of that shape with random weights, its linear layers in NF4, made layer by layer on the device."""
    import transformers

    name, values = SHAPES[shape]
    return random_model(getattr(transformers, name)(**values), device)


def random_model(config: Any, device: Any, *, attention: str = "sdpa", mapped: bool = False) -> Any:
    """The same for any configuration.

    Args:
        config: transformers' own.
        device: on which weights are drawn.
        attention: transformers' name of the implementation.
        mapped: leave the model on the CPU, where all layers share one matrix of each shape and so take no memory, as
            weights that are mapped from disk take none.
    """
    import torch
    import transformers

    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation=attention
        )
    hold = "cpu" if mapped else device
    drawn: dict[tuple[int, int], Any] = {}
    for path, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and "lm_head" not in path:
            shape = module.out_features, module.in_features
            weight = drawn.get(shape) if mapped else None
            if weight is None:
                drawn[shape] = weight = _random_weight(shape, device).to(hold)
            model.set_submodule(path, _linear4bit(shape, weight))
    for module in model.modules():
        for key, value in list(module._parameters.items()):
            if value is not None and value.is_meta:
                made = torch.ones if value.dim() == 1 else torch.randn
                filled = made(value.shape, dtype=value.dtype, device=device) * (1.0 if value.dim() == 1 else 0.02)
                module._parameters[key] = torch.nn.Parameter(filled.to(hold), requires_grad=False)
        if hasattr(module, "scalar_embed_scale"):
            module.embed_scale = torch.tensor(module.scalar_embed_scale, device=hold)
    decoder = model.get_decoder()
    decoder.rotary_emb = type(decoder.rotary_emb)(config=config).to(hold)
    model.tie_weights()
    return model.requires_grad_(False)


def _random_weight(shape: tuple[int, int], device: Any) -> Any:
    import bitsandbytes as bnb
    import torch

    weight = torch.randn(shape, dtype=torch.bfloat16, device=device) * 0.02
    return bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4").to(device)


def _linear4bit(shape: tuple[int, int], weight: Any) -> Any:
    """A layer with these packed weights, and block scales of its own."""
    import bitsandbytes as bnb
    import torch

    rows, columns = shape
    linear = bnb.nn.Linear4bit(
        columns, rows, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4", device="meta",
    )  # fmt: skip
    state = copy.deepcopy(weight.quant_state)
    linear.weight = bnb.nn.Params4bit(
        weight.data, requires_grad=False, quant_state=state, quant_type="nf4", bnb_quantized=True, module=linear
    )
    linear.quant_state = state
    return linear


def add_adapters(model: Any, rank: int) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model

    names = {path.rsplit(".", 1)[-1] for path, _ in model.named_modules()} & set(TARGETS)
    adapted = get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=sorted(names), task_type="CAUSAL_LM")
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    return adapted.train()


def save_checkpoint(shape: str, folder: Path) -> None:
    """The random model as a 4-bit checkpoint, for systems that only load from disk, with a tokenizer of its size."""
    from safetensors.torch import save_file
    from transformers import BitsAndBytesConfig

    model = build_base(shape, "cuda")
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    config["architectures"] = [type(model).__name__]
    config["quantization_config"] = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="bfloat16"
    ).to_dict()
    (folder / "config.json").write_text(json.dumps(config))
    # SmolLM2's tokenizer has more tokens than Mistral's shape has rows: Unsloth then failed with a device-side assert.
    word_tokenizer(model.config.vocab_size).save_pretrained(folder)


def word_tokenizer(size: int) -> Any:
    """A tokenizer of that many words, the control tokens of all families among them."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from app.families import all_families

    tokens = [token for family in all_families().values() for token in (*family.chat.tokens, *family.stop_tokens)]
    special = list(dict.fromkeys(["<unk>", "<s>", "</s>", "<pad>", *tokens]))
    words = special + [f"w{number}" for number in range(size - len(special))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
