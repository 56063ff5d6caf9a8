"""Mistral 7B v0.3: SentencePiece v3 vocabulary, ``[INST]`` turns, no system role."""

from app.families.base import ChatFormat, Family, GgufFacts

FAMILY = Family(
    name="mistral",
    title="Mistral 7B v0.3",
    base_models=("mistralai/Mistral-7B-Instruct-v0.3", "mistralai/Mistral-7B-v0.3"),
    licence="apache-2.0",
    parameters=7_248_023_552,
    model_types=("mistral",),
    chat=ChatFormat(
        bos="<s>",
        system=None,
        user="[INST] {content}[/INST]",
        answer_open="",
        answer=" {content}</s>",
        tokens=("<s>", "[INST]", "[/INST]", "</s>"),
    ),
    lora_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    stop_tokens=("</s>",),
    pad_token="<unk>",
    gguf=GgufFacts(architecture="llama", tokenizer_model="llama", permute_qk=True, add_bos=True),
    config={
        "model_type": "mistral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32768,
        "max_position_embeddings": 32768,
        "sliding_window": None,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    sources=(
        "chat format: mistralai/Mistral-7B-Instruct-v0.3 tokenizer_config.json, and mistral-common's SentencePiece v3 "
        "encoding; the system text stands before the first question, where the official template puts it before the "
        "last one and drops it from a conversation that ends with an answer",
        "pad token: the checkpoint names none; <unk> is never produced, as bytes stand in for unknown characters",
        "config: mistralai/Mistral-7B-Instruct-v0.3 config.json",
        "GGUF: llama.cpp convert_hf_to_gguf.py (Mistral is its 'llama' architecture)",
    ),
)
