"""A base model's shape, read from its config.json alone: nothing else of it is downloaded."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import ModelError
from app.families import Family, check_model_type
from app.hub import checkpoint_faults, is_local


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A linear layer of a decoder block: ``name`` as the model class has it, input and output width."""

    name: str
    inputs: int
    outputs: int

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What memory and arithmetic of a decoder depend on.

    Attributes:
        width: of the residual stream.
        inner: of the MLP.
        layers: decoder blocks.
        heads, key_heads, head_dim: of the attention.
        vocabulary: rows of the embeddings and of the head.
        tied: whether the head is the embeddings.
        window: of sliding attention in tokens, None without.
        linears: of one block.
    """

    width: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    window: int | None
    linears: tuple[Linear, ...]

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        return self.key_heads * self.head_dim

    @property
    def block_weights(self) -> int:
        """Of all linear layers of all blocks."""
        return self.layers * sum(linear.weights for linear in self.linears)

    @property
    def plain_weights(self) -> int:
        """What is never quantised: embeddings, head and norms."""
        tables = 1 if self.tied else 2
        return tables * self.vocabulary * self.width + (2 * self.layers + 1) * self.width

    def has(self, name: str) -> bool:
        return any(linear.name == name for linear in self.linears)


def read_shape(base: str, family: Family, *, revision: str | None = None) -> ModelShape:
    """The shape of a local folder's or a hub checkpoint's model.

    Of the latter config.json is fetched and nothing else; not even that for the family's first base model, whose
    config.json the family states.

    Raises:
        ModelError: it cannot be had, belongs to another family, or lacks a dimension.
    """
    if base == family.base_models[0] and revision is None and not is_local(base):
        return shape_of(family.config, family, checkpoint=base)
    with checkpoint_faults(base):
        config = _read_config(base, family, revision)
    check_model_type(family, str(config.get("model_type")), checkpoint=base)
    return shape_of(config, family, checkpoint=base)


def _read_config(base: str, family: Family, revision: str | None) -> Mapping[str, Any]:
    path: str | Path = Path(base).expanduser() / "config.json"
    if not is_local(base):
        from huggingface_hub import hf_hub_download

        path = hf_hub_download(base, "config.json", revision=revision)
    value: Mapping[str, Any] = json.loads(Path(path).read_text("utf-8"))
    return value


def shape_of(config: Mapping[str, Any], family: Family, *, checkpoint: str = "") -> ModelShape:
    """The shape that a config.json states.

    Raises:
        ModelError: a dimension is missing.
    """
    needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    if missing := [name for name in needed if not isinstance(config.get(name), int)]:
        raise ModelError(
            f"config.json of {checkpoint} lacks {', '.join(missing)}",
            where="model.base",
            remedy="use a checkpoint with a complete config.json",
        )
    width, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    key_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or width // heads
    queries, keys = heads * head_dim, key_heads * head_dim
    outputs = {
        "q_proj": (width, queries),
        "k_proj": (width, keys),
        "v_proj": (width, keys),
        "qkv_proj": (width, queries + 2 * keys),
        "o_proj": (queries, width),
        "gate_proj": (width, inner),
        "up_proj": (width, inner),
        "gate_up_proj": (width, 2 * inner),
        "down_proj": (inner, width),
    }
    # transformers leaves out of config.json what is the default of all models; the family's own states it.
    tied = config.get("tie_word_embeddings", family.config.get("tie_word_embeddings", False))
    return ModelShape(
        width=width,
        inner=inner,
        layers=config["num_hidden_layers"],
        heads=heads,
        key_heads=key_heads,
        head_dim=head_dim,
        vocabulary=config["vocab_size"],
        tied=bool(tied),
        window=config.get("sliding_window"),
        linears=tuple(
            Linear(name=name, inputs=outputs[name][0], outputs=outputs[name][1]) for name in family.lora_targets
        ),
    )
