"""Llama 3 8B: byte-level vocabulary of 128,256 tokens, turns under role headers."""

from app.families.base import ChatFormat, Family, GgufFacts

FAMILY = Family(
    name="llama3",
    title="Llama 3 8B",
    base_models=("meta-llama/Meta-Llama-3-8B-Instruct",),
    licence="llama3",
    parameters=8_030_261_248,
    model_types=("llama",),
    chat=ChatFormat(
        bos="<|begin_of_text|>",
        system="<|start_header_id|>system<|end_header_id|>\n\n{content}<|eot_id|>",
        user="<|start_header_id|>user<|end_header_id|>\n\n{content}<|eot_id|>",
        answer_open="<|start_header_id|>assistant<|end_header_id|>\n\n",
        answer="{content}<|eot_id|>",
        tokens=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    lora_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    stop_tokens=("<|eot_id|>", "<|end_of_text|>"),
    pad_token="<|reserved_special_token_0|>",
    gguf=GgufFacts(architecture="llama", tokenizer_model="gpt2", pre="llama-bpe", permute_qk=True, add_bos=True),
    config={
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "bos_token_id": 128000,
        "eos_token_id": 128009,
    },
    sources=(
        "chat format: meta-llama/Meta-Llama-3-8B-Instruct tokenizer_config.json",
        "stop tokens: its generation_config.json (128009, 128001)",
        "pad token: the checkpoint names none; id 128002 has this name in Llama 3, 3.1 and 3.2",
        "not listed: the base Meta-Llama-3-8B, whose header and end-of-turn embeddings were never trained, and Llama "
        "3.1 and later, whose official template adds a dated system turn",
        "config: meta-llama/Meta-Llama-3-8B-Instruct config.json",
        "GGUF: llama.cpp convert_hf_to_gguf.py (pre 'llama-bpe')",
    ),
)
