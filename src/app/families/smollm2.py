"""SmolLM2-Instruct: the small default that runs on any machine."""

from app.families.base import ChatFormat, Family, GgufFacts

FAMILY = Family(
    name="smollm2",
    title="SmolLM2",
    base_models=(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "HuggingFaceTB/SmolLM2-360M-Instruct",
        "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    ),
    licence="apache-2.0",
    parameters=134_515_008,
    model_types=("llama",),
    chat=ChatFormat(
        bos="",
        system="<|im_start|>system\n{content}<|im_end|>\n",
        default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
        user="<|im_start|>user\n{content}<|im_end|>\n",
        answer_open="<|im_start|>assistant\n",
        answer="{content}<|im_end|>",
        answer_close="\n",
        tokens=("<|im_start|>", "<|im_end|>"),
    ),
    lora_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    stop_tokens=("<|im_end|>", "<|endoftext|>"),
    pad_token="<|endoftext|>",
    gguf=GgufFacts(architecture="llama", tokenizer_model="gpt2", pre="smollm", permute_qk=True, add_bos=False),
    config={
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    sources=(
        "chat format, special tokens: HuggingFaceTB/SmolLM2-135M-Instruct tokenizer_config.json",
        "config: HuggingFaceTB/SmolLM2-135M-Instruct config.json",
        "GGUF: llama.cpp convert_hf_to_gguf.py (pre 'smollm')",
    ),
)
