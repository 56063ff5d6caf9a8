"""An opened model with its tokenizer: what generation and evaluation work on."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from app.artifact import Manifest, RunDirectory
from app.data.tokenize import check_golden, load_tokenizer
from app.errors import RunError, first_line, several
from app.families import Family, get_family
from app.hub import is_local
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
        manifest: the run's (of several runs, the first one's), None for a base model without a run.
        adapters: a run's name -> what peft calls its adapter.
    """

    model: "PreTrainedModel | PeftModel"
    tokenizer: "PreTrainedTokenizerFast"
    family: Family
    manifest: Manifest | None
    adapters: Mapping[str, str] = field(default_factory=dict)

    def use(self, run: str | None) -> None:
        """Answers come from that run's adapter from now on; None is the base. Not while an engine runs requests."""
        if run is not None:
            self.model.base_model.enable_adapter_layers()
            self.model.set_adapter(self.adapters[run], inference_mode=True)
        elif self.adapters:
            self.model.base_model.disable_adapter_layers()

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


def open_run(run: Path, *, device: Device = "auto", base: str | None = None) -> Session:
    """The base a run was trained on, quantised as it was, with the run's adapter; see `open_runs`."""
    return open_runs({"default": run}, device=device, base=base)


def open_runs(runs: Mapping[str, Path], *, device: Device = "auto", base: str | None = None) -> Session:
    """Several runs over the one base they were trained on; the first one's adapter is on.

    Args:
        runs: name -> run directory, at least one.
        device: where the model goes.
        base: where the base's weights are, if no longer where the manifests say.

    Raises:
        RunError: not a run directory, no adapter yet, runs of different bases, or the base's tokenizer is not the one
            trained with.
        ModelError, MachineError: the base cannot be loaded.
    """
    from peft import PeftModel

    manifests = {name: RunDirectory(run).read_manifest() for name, run in runs.items()}
    adapters = {name: _require_safetensors(RunDirectory(run)) for name, run in runs.items()}
    first = next(iter(manifests.values()))
    _require_one_base(manifests)
    family = get_family(first.base.family)
    where = base or first.base.id
    revision = None if base else first.base.revision
    tokenizer = load_tokenizer(where, family, revision=revision)
    for manifest in manifests.values():
        check_golden(manifest.golden, tokenizer, family)
    target = pick_device(device)
    model = load_base(
        where,
        family,
        device=target,
        dtype=pick_dtype("auto", target),
        revision=revision,
        quantization=first.base.quantization,
        double_quant=first.base.double_quant,
    )
    # peft's names are attributes of modules: a run's own name may hold a dot, which those may not.
    names = {run: f"run{number}" for number, run in enumerate(runs)}
    tuned: PeftModel | None = None
    for run, name in names.items():
        with _adapter_faults(adapters[run]):
            if tuned is None:
                tuned = PeftModel.from_pretrained(model, adapters[run], adapter_name=name, is_trainable=False)
            else:
                tuned.load_adapter(adapters[run], adapter_name=name, is_trainable=False)
    assert tuned is not None, "no run was named"
    return Session(model=tuned.eval(), tokenizer=tokenizer, family=family, manifest=first, adapters=names)


def _require_safetensors(run: RunDirectory) -> Path:
    """The run's adapter, which must not be a pickle: peft would fall back to one."""
    adapter = run.require_adapter()
    if not (adapter / "adapter_model.safetensors").is_file():
        raise RunError(
            f"{adapter} holds no adapter_model.safetensors; other formats are not loaded",
            where="--run",
            remedy="resume the run with `fit --ckpt_path last`, which writes the adapter again, or restore a copy",
        )
    return adapter


def _require_one_base(manifests: Mapping[str, Manifest]) -> None:
    def identity(manifest: Manifest) -> tuple[object, ...]:
        base = manifest.base
        place = str(Path(base.id).expanduser().resolve()) if is_local(base.id) else base.id
        return place, base.revision, base.family, base.quantization, base.double_quant

    if len({identity(manifest) for manifest in manifests.values()}) > 1:
        raise RunError(
            several(
                "the runs were not trained on one base",
                (f"{name}: {m.base.id} ({m.base.family}, {m.base.quantization})" for name, m in manifests.items()),
            ),
            where="--run",
            remedy="serve those of one base together, and the others by a server of their own",
        )


@contextmanager
def _adapter_faults(adapter: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, ValueError, RuntimeError, OSError) as fault:
        raise RunError(
            f"the adapter in {adapter} cannot be loaded: {first_line(fault)}",
            where="--run",
            remedy="resume the run with `fit --ckpt_path last`, which writes the adapter again, or restore a copy",
        ) from fault


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
