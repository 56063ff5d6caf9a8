"""What the plain layers hold during a step: transformers' blocks, bitsandbytes' products, peft's adapters in float32.

Counted from their code (transformers 5.23, peft 0.21, bitsandbytes 0.50), tensor by tensor. `tests/plan` runs those
layers themselves on torch's meta device, adds up what lives, and holds this arithmetic to it.
"""

from collections.abc import Collection
from dataclasses import dataclass

from app.plan.shapes import ModelShape

FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class PlainStep:
    """Bytes that a micro-batch's forward and backward pass hold besides weights, gradients and optimizer.

    Attributes:
        saved: what all blocks keep between their passes: their inputs, or with ``checkpointing`` off everything.
        block: of one block at its most, in the backward pass (with checkpointing, its recomputation).
        head: of the output head and the loss at their most.
    """

    saved: int
    block: int
    head: int

    @property
    def peak(self) -> int:
        return self.saved + max(self.block, self.head)


@dataclass(frozen=True, kw_only=True)
class _Block:
    """One block's tensors in bytes.

    Attributes:
        saved: by the forward pass for the backward pass.
        widest: all that the forward pass has in its widest product.
        last: what it has besides ``saved`` in the down projection.
        gradient: what the way back through the MLP adds to ``saved`` at its most.
    """

    saved: int
    widest: int
    last: int
    gradient: int


def plain_step(
    shape: ModelShape,
    *,
    rows: int,
    length: int,
    adapted: Collection[str],
    element: int = 2,
    quantised: bool = True,
    checkpointing: bool = True,
    dropout: bool = False,
    eager: bool = False,
    padded: bool = False,
    chunk_elements: int,
) -> PlainStep:
    """The step's tensors for micro-batches of ``rows`` x ``length`` tokens.

    Args:
        shape: of the model.
        rows, length: of a micro-batch.
        adapted: names of the linear layers with an adapter.
        element: bytes of an activation.
        quantised: whether weights are decoded for each product.
        checkpointing: whether blocks are recomputed in the backward pass.
        dropout: whether the adapters drop inputs.
        eager: attention that holds its scores.
        padded: whether an attention mask is needed (padding, or several samples in a row).
        chunk_elements: logits held at a time by the loss.
    """
    tokens = rows * length
    stream = element * shape.width * tokens
    block = _block(
        shape, rows=rows, length=length, adapted=adapted, element=element, quantised=quantised, dropout=dropout,
        eager=eager, padded=padded or (shape.window is not None and shape.window < length),
    )  # fmt: skip
    # The gradient that comes in: as it is, rounded for the base's path, and in float32 times LoRA's scale.
    incoming = 2 * stream + (FLOAT32 * shape.width * tokens if "down_proj" in adapted else 0)
    if checkpointing:
        saved = shape.layers * stream
        peak = incoming + max(block.widest, block.saved + block.last)
        peak = max(peak, 2 * stream + block.saved + block.gradient)
    else:
        saved = shape.layers * block.saved
        peak = max(block.widest - block.saved, block.last, 2 * stream + block.gradient)
    # The hidden states, their gradient, the final norm's float32 copy; a chunk of logits beside as large a temporary.
    chunk = FLOAT32 * min(chunk_elements, tokens * shape.vocabulary)
    head = 2 * stream + _cast(element) * shape.width * tokens + 2 * chunk
    return PlainStep(saved=saved, block=peak, head=head)


def _block(
    shape: ModelShape,
    *,
    rows: int,
    length: int,
    adapted: Collection[str],
    element: int,
    quantised: bool,
    dropout: bool,
    eager: bool,
    padded: bool,
) -> _Block:
    tokens = rows * length
    width, inner, queries, keys = shape.width, shape.inner, shape.query_width, shape.key_width
    cast = _cast(element)
    decoded = {linear.name: element * linear.weights if quantised else 0 for linear in shape.linears}

    def adapter_input(*names: str) -> int:
        """Per token: the input that LoRA's A keeps in float32, and dropout's mask."""
        each = cast + (FLOAT32 - cast + 1 if dropout else 0)
        return sum(each * linear.inputs for linear in shape.linears if linear.name in names and linear.name in adapted)

    fused = shape.has("qkv_proj")
    # Rotated query and key, value (in Phi-3 a view of the whole projection), output, log-sum-exp. Under a mask
    # grouped keys and values are repeated for every head (CUDA's kernels take groups only without one).
    repeated = (padded or eager) and keys < queries
    key_value = 2 * queries if repeated else keys + (queries + 2 * keys if fused else keys)
    attention = element * (2 * queries + key_value) + FLOAT32 * shape.heads
    before_mlp = cast * width + adapter_input("q_proj", "k_proj", "v_proj", "qkv_proj")  # the norm's float32 copy
    before_mlp += attention + adapter_input("o_proj") + cast * width
    scores = 0
    if eager:
        scores = (FLOAT32 + element) * shape.heads * rows * length**2  # softmax in float32 and rounded
    elif padded:
        scores = element * rows * length**2  # the mask as an addend, shared by the heads
    gate_up = ("gate_up_proj",) if shape.has("gate_up_proj") else ("gate_proj", "up_proj")
    # Gate and up, and the gate's activation.
    mlp = adapter_input(*gate_up) + element * 3 * inner
    saved = tokens * (before_mlp + mlp + adapter_input("down_proj")) + scores
    # The widest moment is in the last product before the activation (up, or gate and up at once): its output, and
    # LoRA's before and after scaling; the residual stream and the normed input live beside it.
    last = gate_up[-1]
    outputs = 2 * inner if len(gate_up) == 1 else inner
    product = max(decoded[last], tokens * 2 * FLOAT32 * outputs if last in adapted else 0)
    already = before_mlp + adapter_input(*gate_up) + element * (0 if len(gate_up) == 1 else 2 * inner)
    widest = tokens * (already + element * (2 * width + outputs)) + scores + product
    # In the down projection: its input, its output, the residual stream and the normed input.
    in_down = tokens * element * (inner + 3 * width) + (0 if "down_proj" in adapted else decoded["down_proj"])
    gradient = tokens * FLOAT32 * inner if "down_proj" in adapted else 0
    through_base = decoded["down_proj"] + tokens * element * inner - tokens * adapter_input("down_proj")
    through_base += tokens * element * inner if "down_proj" in adapted else 0
    # Back through the same product: its decoded weight, the gradients of its output and of the residual stream.
    back = decoded[last] + tokens * element * (outputs + width) - tokens * (mlp + adapter_input("down_proj"))
    return _Block(saved=saved, widest=widest, last=in_down, gradient=max(gradient, through_base, back))


def _cast(element: int) -> int:
    """Bytes of a float32 copy of an activation; none is made of one that is float32."""
    return 0 if element == FLOAT32 else FLOAT32
