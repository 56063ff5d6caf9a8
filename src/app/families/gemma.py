"""Gemma 7B: 256,000 tokens tied to the output head, norms stored as weight - 1, no system role."""

from app.families.base import ChatFormat, Family, GgufFacts

FAMILY = Family(
    name="gemma",
    title="Gemma 7B",
    base_models=("google/gemma-7b-it", "google/gemma-1.1-7b-it", "google/gemma-2b-it"),
    licence="gemma",
    parameters=8_537_680_896,
    model_types=("gemma",),
    chat=ChatFormat(
        bos="<bos>",
        system=None,
        user="<start_of_turn>user\n{content}<end_of_turn>\n",
        answer_open="<start_of_turn>model\n",
        answer="{content}<end_of_turn>",
        answer_close="\n",
        tokens=("<bos>", "<start_of_turn>", "<end_of_turn>"),
    ),
    lora_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    stop_tokens=("<end_of_turn>", "<eos>"),
    pad_token="<pad>",
    gguf=GgufFacts(
        architecture="gemma",
        tokenizer_model="llama",
        permute_qk=False,
        norm_offset=1.0,
        add_bos=True,
        add_space_prefix=False,
        eot_token="<end_of_turn>",
    ),
    config={
        "model_type": "gemma",
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "hidden_act": "gelu_pytorch_tanh",
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    },
    sources=(
        "chat format: google/gemma-7b-it tokenizer_config.json; its template refuses a system turn, so the system text "
        "stands before the first question",
        "config: google/gemma-7b-it config.json",
        "GGUF: llama.cpp convert_hf_to_gguf.py (architecture 'gemma')",
    ),
)
