"""Tensor names, shapes and orders of llama.cpp's model files (convert_hf_to_gguf.py of llama.cpp, 2026-10)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import log, pi, sqrt
from typing import TYPE_CHECKING, Any

import torch

from app.errors import ModelError, several
from app.families import Family

if TYPE_CHECKING:
    from gguf import GGUFWriter


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a base model's tensors are called and ordered in a GGUF file.

    Attributes:
        names: checkpoint name -> GGUF name, for every tensor that is written.
        head_size: rows of a query's or key's head.
        permute_qk, norm_offset: as in the family's GgufFacts.
    """

    names: dict[str, str]
    head_size: int
    permute_qk: bool
    norm_offset: float

    def arranged(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """The tensor, or whole heads of it, as llama.cpp wants it (same shape)."""
        if self.norm_offset and name.endswith("norm.weight"):
            return weight.float() + self.norm_offset
        rows = self.head_rows(name)
        return permuted(weight, rows) if rows else weight

    def head_rows(self, name: str) -> int:
        """Within how many neighbouring rows of the tensor (a head's) the order changes; 0 for not at all."""
        return self.head_size if self.permute_qk and re.search(r"\.[qk]_proj\.(weight|bias)$", name) else 0


def permuted(weight: torch.Tensor, rows: int) -> torch.Tensor:
    """Rows reordered within each head from transformers' rotary layout (halves) to llama.cpp's (pairs).

    ``weight`` is [heads * rows, …]: row i and row i + rows / 2 of a head become neighbours.
    """
    return weight.reshape(-1, 2, rows // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def make_layout(family: Family, config: Any, names: list[str]) -> Layout:
    """The layout of a checkpoint with these tensors.

    Raises:
        ModelError: llama.cpp's architecture has no place for some of them (all are named).
    """
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    facts = family.gguf
    architecture = next(arch for arch in MODEL_ARCH if MODEL_ARCH_NAMES[arch] == facts.architecture)
    known = get_tensor_name_map(architecture, config.num_hidden_layers)
    mapped, unknown = {}, []
    for name in names:
        # Frequencies are computed from the configuration; a tied head is stored once, as the embeddings.
        if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tie_word_embeddings):
            continue
        target = known.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            unknown.append(name)
        else:
            mapped[name] = target
    if unknown:
        raise ModelError(
            several(f"llama.cpp's {facts.architecture!r} has no place for these tensors", unknown),
            where="base model",
            remedy="use a plain checkpoint of the family; adapters and extra heads are not part of one",
        )
    return Layout(
        names=mapped,
        head_size=head_size(config),
        permute_qk=facts.permute_qk,
        norm_offset=facts.norm_offset,
    )


def head_size(config: Any) -> int:
    """Width of an attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def write_shape(writer: "GGUFWriter", config: Any) -> None:
    """The ``{architecture}.*`` metadata.

    Raises:
        ModelError: the rotary scaling is of a kind that is not known here.
    """
    size = head_size(config)
    rope = config.rope_parameters
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(int(size * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    window = getattr(config, "sliding_window", None)
    if window:
        writer.add_sliding_window(window)
    original = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    if original is not None:
        writer.add_rope_scaling_orig_ctx_len(original)
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        from gguf import RopeScalingType

        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif kind == "longrope":
        assert original is not None, "longrope states the context it was trained with"
        scale = config.max_position_embeddings / original
        factor = rope.get("attention_factor") or (sqrt(1 + log(scale) / log(original)) if scale > 1 else 1.0)
        writer.add_rope_scaling_attn_factors(factor)
    elif kind not in ("default", "llama3"):
        raise ModelError(
            f"the model scales its rotary positions by {kind!r}, which is not known here",
            where="base model",
            remedy="use a checkpoint with rope_type default, linear, llama3 or longrope",
        )


def rope_tensors(config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The rotary factors that llama.cpp takes as float32 tensors of [head size / 2], if the model has any.

    The Llama 3.1 rule: wavelengths above ``original / low`` are stretched by the factor, those below
    ``original / high`` are not, and between them the stretch is interpolated (transformers' modeling_rope_utils).
    """
    rope = config.rope_parameters
    if rope.get("rope_type") == "llama3":
        size = int(head_size(config) * rope.get("partial_rotary_factor", 1.0))
        original = rope["original_max_position_embeddings"]
        wavelengths = (
            2 * pi * rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
        )  # [size / 2]
        low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
        share = ((original / wavelengths - low) / (high - low)).clamp(0, 1)
        yield "rope_freqs.weight", (1 / ((1 - share) / factor + share)).float()
    elif rope.get("rope_type") == "longrope":
        yield "rope_factors_long.weight", torch.tensor(rope["long_factor"], dtype=torch.float32)
        yield "rope_factors_short.weight", torch.tensor(rope["short_factor"], dtype=torch.float32)
