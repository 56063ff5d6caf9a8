"""Phi-3 mini: Llama-2's vocabulary with added turn tokens, fused qkv and gate_up layers."""

from app.families.base import ChatFormat, Family, GgufFacts

FAMILY = Family(
    name="phi3",
    title="Phi-3 mini 4k",
    base_models=("microsoft/Phi-3-mini-4k-instruct",),
    licence="mit",
    parameters=3_821_079_552,
    model_types=("phi3",),
    # The turn tokens strip white space on their right (rstrip), so the newlines below never reach the model.
    chat=ChatFormat(
        bos="",
        system="<|system|>\n{content}<|end|>\n",
        user="<|user|>\n{content}<|end|>\n",
        answer_open="<|assistant|>\n",
        answer="{content}<|end|>",
        answer_close="\n",
        tokens=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    ),
    lora_targets=("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    stop_tokens=("<|end|>", "<|endoftext|>", "<|assistant|>"),
    pad_token="<|endoftext|>",
    gguf=GgufFacts(architecture="phi3", tokenizer_model="llama", permute_qk=False, add_bos=False, eot_token="<|end|>"),
    config={
        "model_type": "phi3",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32064,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "sliding_window": 2047,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 32000,
        "pad_token_id": 32000,
    },
    sources=(
        "chat format: microsoft/Phi-3-mini-4k-instruct tokenizer_config.json; that template also ends a conversation "
        "without a next answer with <|endoftext|>, which is not written here",
        "no BOS: the template writes none and add_bos_token is false there",
        "stop tokens: its generation_config.json (32007, 32000, 32001)",
        "config: microsoft/Phi-3-mini-4k-instruct config.json",
        "GGUF: llama.cpp convert_hf_to_gguf.py (architecture 'phi3')",
    ),
)
