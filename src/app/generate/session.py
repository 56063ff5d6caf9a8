"""An opened model with its tokenizer: what generation and evaluation work on."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.artifact import Manifest, RunDirectory
from app.data.tokenize import check_golden, load_tokenizer
from app.errors import RunError, first_line
from app.families import Family, get_family
from app.model.load import Device, Quantization, load_base, pick_device, pick_dtype

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True, kw_only=True)
class Session:
    """A model in eval mode, ready to answer.

    Attributes:
        model: the base, or the base with a run's adapter on it.
        tokenizer: the base's own, with the family's template.
        family: the model's family.
        manifest: the run's, None for a base model without a run.
    """

    model: "PreTrainedModel | PeftModel"
    tokenizer: "PreTrainedTokenizerFast"
    family: Family
    manifest: Manifest | None

    @property
    def causal_lm(self) -> "PreTrainedModel":
        """The transformers model itself; an adapter's layers are inside it."""
        from peft import PeftModel

        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @contextmanager
    def base(self) -> Iterator[None]:
        """Within it, the adapter is off: the model answers as its base."""
        from peft import PeftModel

        if isinstance(self.model, PeftModel):
            with self.model.disable_adapter():
                yield
        else:
            yield


def open_run(run: Path, *, device: Device = "auto") -> Session:
    """The base a run was trained on, quantised as it was, with the run's adapter.

    Raises:
        RunError: not a run directory, no adapter yet, or the base's tokenizer is not the one trained with.
        ModelError, MachineError: the base cannot be loaded.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    directory = RunDirectory(run)
    manifest = directory.read_manifest()
    adapter = directory.require_adapter()
    base = manifest.base
    family = get_family(base.family)
    tokenizer = load_tokenizer(base.id, family, revision=base.revision)
    check_golden(manifest.golden, tokenizer, family)
    target = pick_device(device)
    model = load_base(
        base.id,
        family,
        device=target,
        dtype=pick_dtype("auto", target),
        revision=base.revision,
        quantization=base.quantization,
        double_quant=base.double_quant,
    )
    try:
        tuned = PeftModel.from_pretrained(model, adapter, is_trainable=False)
    except (SafetensorError, ValueError, RuntimeError, OSError) as fault:
        raise RunError(
            f"the adapter in {adapter} cannot be loaded: {first_line(fault)}",
            where="--run",
            remedy="resume the run with `fit --ckpt_path last`, which writes the adapter again, or restore a copy",
        ) from fault
    return Session(model=tuned.eval(), tokenizer=tokenizer, family=family, manifest=manifest)


def open_base(
    base: str, family: str, *, device: Device = "auto", quantization: Quantization = "nf4", revision: str | None = None
) -> Session:
    """A base model without a run.

    Raises:
        ConfigError: no such family.
        ModelError, MachineError: it cannot be loaded.
    """
    known = get_family(family)
    tokenizer = load_tokenizer(base, known, revision=revision)
    target = pick_device(device)
    model = load_base(
        base, known, device=target, dtype=pick_dtype("auto", target), revision=revision, quantization=quantization
    )
    return Session(model=model.eval(), tokenizer=tokenizer, family=known, manifest=None)
