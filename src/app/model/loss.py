"""A micro-batch and its loss, summed over trained tokens."""

from typing import TYPE_CHECKING, NotRequired, TypedDict

from torch import Tensor

from app.kernels.linear_cross_entropy import linear_cross_entropy
from app.model.varlen_attention import NAME as VARLEN
from app.model.varlen_attention import packed_documents

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Batch(TypedDict):
    """Rows of equal length: one sample each, padded at the end, or several packed ones.

    Attributes:
        input_ids: [B, T] int64.
        trained: [B, T] bool, True where the token itself is one to learn.
        attention_mask: [B, T] int64, 0 where padded; padded rows only.
        position_ids: [B, T] int64, from 0 in each sample; packed rows only.
    """

    input_ids: Tensor
    trained: Tensor
    attention_mask: NotRequired[Tensor]
    position_ids: NotRequired[Tensor]


def summed_loss(causal_lm: "PreTrainedModel", batch: Batch) -> tuple[Tensor, Tensor]:
    """The negative log likelihood of a batch's trained tokens, in nats, and how many they are.

    The head is applied at positions whose next token is trained and nowhere else. A row's first token has nothing
    before it to be predicted from and never counts. Without an attention mask transformers lets no sample of a packed
    row see another: a sample begins where positions do (masking_utils.find_packed_sequence_indices, 5.23).

    Args:
        causal_lm: the transformers model itself; peft has put its layers inside it.
        batch: padded or packed rows.

    Returns:
        The sum (float32 scalar, differentiable) and the count (int64 scalar).
    """
    positions = batch.get("position_ids")
    packed = {}
    if positions is not None and causal_lm.config._attn_implementation == VARLEN:
        packed = {"documents": packed_documents(positions)}
    states = causal_lm.get_decoder()(
        input_ids=batch["input_ids"],
        attention_mask=batch.get("attention_mask"),
        position_ids=positions,
        use_cache=False,
        **packed,
    ).last_hidden_state  # [B, T, D]
    next_trained = batch["trained"][:, 1:]  # [B, T-1]
    hidden = states[:, :-1][next_trained]  # [N, D]
    targets = batch["input_ids"][:, 1:][next_trained]  # [N]
    return linear_cross_entropy(hidden, causal_lm.get_output_embeddings().weight, targets), next_trained.sum()
