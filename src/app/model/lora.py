"""LoRA adapters by peft, on layers that are checked to exist."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from app.errors import ConfigError
from app.families import Family

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def resolve_targets(names: Collection[str], family: Family, targets: Sequence[str]) -> list[str]:
    """The names of the linear layers that get an adapter; ``["all"]`` means all of the family's.

    Args:
        names: of the model's linear layers.
        family: of the model.
        targets: layer names, or ``["all"]``.

    Raises:
        ConfigError: a target is no linear layer of this model (all such are listed).
    """
    if list(targets) == ["all"]:
        return list(family.lora_targets)
    unknown = [target for target in targets if target not in names]
    if unknown or not targets:
        raise ConfigError(
            f"no layer of the model is called {', '.join(map(repr, unknown)) or '(empty list)'}",
            where="model.targets",
            remedy=f"use [all], or some of {', '.join(family.lora_targets)}",
        )
    return list(targets)


def attach_lora(
    model: "PreTrainedModel",
    family: Family,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    targets: Sequence[str],
    rslora: bool,
    dora: bool,
) -> "PeftModel":
    """The model with new LoRA adapters (arXiv 2106.09685) in float32, B zero, so that it starts as the base.

    Args:
        model: the frozen base.
        family: names the layers.
        rank, alpha, dropout: of LoRA; the update is scaled by alpha / rank, or alpha / sqrt(rank) with ``rslora``.
        targets: layer names, or ``["all"]``.
        rslora: rank-stabilised scaling (arXiv 2312.03732).
        dora: weight-decomposed adaptation (arXiv 2402.09353).

    Raises:
        ConfigError: a target is no layer of the model.
    """
    from peft import LoraConfig, get_peft_model

    linears = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if hasattr(module, "in_features")}
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=resolve_targets(linears, family, targets),
        use_rslora=rslora,
        use_dora=dora,
        bias="none",
        task_type="CAUSAL_LM",
    )
    adapted: PeftModel = get_peft_model(model, config, autocast_adapter_dtype=True)
    return adapted
