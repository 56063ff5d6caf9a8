"""What a model says of itself: the model card, and the same facts for a GGUF file's metadata."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from app.artifact import Manifest, RunDirectory, sha256_text, write_atomic
from app.families import Family, get_family
from app.hub import is_local

Kind = Literal["adapter", "merged", "gguf", "lora-gguf"]
QUANTIZATION = """
quantization = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant={double_quant},
    bnb_4bit_compute_dtype=torch.{dtype},
)
"""
LOAD = {
    "adapter": """
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
{quantization}
base = AutoModelForCausalLM.from_pretrained("{base}"{revision}, dtype=torch.{dtype}{quantized})
model = PeftModel.from_pretrained(base, "{place}")
tokenizer = AutoTokenizer.from_pretrained("{place}")
""",
    "merged": """
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{place}", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("{place}")
""",
}
ASK = """
messages = [{"role": "user", "content": "…"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**inputs.to(model.device), max_new_tokens=256)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
"""
COMMANDS = {
    "gguf": "llama-cli -m FILE.gguf --jinja",
    "lora-gguf": "llama-server -m BASE.gguf --lora FILE.gguf --jinja",
}
LIBRARY = {"adapter": "peft", "merged": "transformers", "gguf": "gguf", "lora-gguf": "gguf"}


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where the model comes from.

    Attributes:
        name: of the tuned model: the family's title and the run's name.
        base: hub id or folder name of the base, with its revision.
        licence: of the base's weights, as SPDX or the hub call it.
        data: what it was trained on, with a hash of all splits.
        run: the run directory's name.
    """

    name: str
    base: str
    licence: str
    data: str
    run: str


def provenance(run: RunDirectory, manifest: Manifest) -> Provenance:
    """The facts of the run's manifest; a local folder is named by its last part, since paths are the user's own."""
    data, family = manifest.data, get_family(manifest.base.family)
    name = run.path.resolve().name
    digest = sha256_text(json.dumps(dict(data.sha256), sort_keys=True))
    samples = ", ".join(f"{count} {split}" for split, count in data.samples.items())
    return Provenance(
        # llama.cpp reads behaviour from this name: Phi-3's turn tokens strip white space only if it says "phi-3".
        name=f"{family.title} {name}",
        base=f"{base_name(manifest)}@{manifest.base.revision}" if manifest.base.revision else base_name(manifest),
        licence=family.licence,
        data=f"sha256:{digest} ({samples})" if samples else f"sha256:{digest}",
        run=name,
    )


def base_name(manifest: Manifest) -> str:
    """The base's hub id, or a local folder's name."""
    base = manifest.base.id
    return Path(base).name if is_local(base) else base


def write_adapter_card(run: RunDirectory, folder: Path) -> None:
    """Writes ``README.md`` into an adapter folder, in place of peft's, which holds nothing but blanks to fill in."""
    lora = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    write_atomic(folder / "README.md", model_card(run, run.read_manifest(), lora, kind="adapter"))


def model_card(
    run: RunDirectory, manifest: Manifest, lora: Mapping[str, Any], *, kind: Kind, exact: bool = False, place: str = ""
) -> str:
    """A README.md with the hub's front matter: base, licence, data, metrics, how to load it.

    Args:
        run: the run directory.
        manifest: the run's.
        lora: peft's ``adapter_config.json``.
        kind: what lies beside the card.
        exact: whether a merge went into the NF4-rounded base.
        place: where it is to be loaded from: a repository of the hub; this folder by default.
    """
    facts, base, family = provenance(run, manifest), manifest.base, get_family(manifest.base.family)
    variant = "DoRA" if lora.get("use_dora") else "rsLoRA" if lora.get("use_rslora") else "LoRA"
    bits = "NF4" if base.quantization == "nf4" else "16-bit"
    into = "the NF4-rounded base it was trained on" if exact else "the original 16-bit base"
    made = "This is the adapter alone" if kind in ("adapter", "lora-gguf") else f"Exported as {kind} from {into}"
    front = ["---", f"license: {facts.licence}"]
    if not is_local(base.id):
        front.append(f"base_model: {base.id}")
    tags = "".join(f"\n- {tag}" for tag in ("lora", "qlora", "sft") if tag != "qlora" or base.quantization == "nf4")
    front += [f"library_name: {LIBRARY[kind]}", "pipeline_tag: text-generation", f"tags:{tags}", "---"]
    return "\n".join(
        [
            *front,
            "",
            f"# {facts.name}",
            "",
            f"{base_name(manifest)}, fine-tuned with {variant} (rank {lora.get('r')}, alpha {lora.get('lora_alpha')}) "
            f"on {bits} weights. {made}.",
            "",
            "## How to load it",
            "",
            *_how_to_load(manifest, kind, place or "."),
            "",
            *_prompting(family, kind),
            "",
            "## Data and training",
            "",
            "| | |",
            "|---|---|",
            f"| base | {facts.base} |",
            f"| licence | {facts.licence} (the base model's; the training data may add terms) |",
            f"| data | {facts.data} |",
            f"| longest row | {manifest.max_length} tokens |",
            f"| stop tokens | {' '.join(f'`{token}`' for token in family.stop_tokens)} |",
            f"| trained | {manifest.created}, seed {manifest.seed} |",
            "",
            "## Metrics",
            "",
            *_metrics(run, manifest),
            "",
        ]
    )


def _how_to_load(manifest: Manifest, kind: Kind, place: str) -> Iterator[str]:
    if kind in COMMANDS:
        yield from ("```sh", COMMANDS[kind], "```")
        return
    base = manifest.base
    nf4 = base.quantization == "nf4"
    filled = LOAD[kind].format(
        base=base_name(manifest),
        revision=f', revision="{base.revision}"' if base.revision else "",
        dtype=base.dtype,
        place=place,
        quantization=QUANTIZATION.format(double_quant=base.double_quant, dtype=base.dtype) if nf4 else "",
        quantized=", quantization_config=quantization" if nf4 else "",
    )
    text = filled if nf4 else filled.replace(", BitsAndBytesConfig", "")
    yield from ("```python", f"{text.strip()}\n{ASK.rstrip()}", "```")


def _prompting(family: Family, kind: Kind) -> Iterator[str]:
    where = "in `chat_template.jinja`" if kind in ("adapter", "merged") else "in the file"
    where = "the base's own" if kind == "lora-gguf" else where
    yield f"The chat template is {where}; it is the one the model was trained with."
    if family.chat.default_system:
        yield f"Trained with this system prompt where a conversation had none: {family.chat.default_system!r}."


def _metrics(run: RunDirectory, manifest: Manifest) -> Iterator[str]:
    """What training measured, and what `evaluate` found, if it was called."""
    result = manifest.result
    rows = {
        "optimizer steps": result.get("steps"),
        "best validation loss, nats per answer token": result.get("best_val_loss"),
        "perplexity of that": _perplexity(result.get("best_val_loss")),
        "at step": result.get("best_step"),
        "training loss at the end": result.get("train_loss"),
        "tokens trained on, prompts included": result.get("tokens"),
    }
    known = {name: value for name, value in rows.items() if value is not None}
    if known:
        yield from ("| training | |", "|---|---|")
        yield from (f"| {name} | {_shown(value)} |" for name, value in known.items())
    else:
        yield "Training has not ended yet."
    report = run.reports / "report.json"
    if report.is_file():
        found = json.loads(report.read_text(encoding="utf-8"))
        split = found["split"]
        yield from ("", f"| {split} split, rows never trained on | base | tuned | better |", "|---|---|---|---|")
        for metric in found["metrics"]:
            if metric["tuned"]["n"] and metric["tuned"]["value"] is not None:
                values = (_shown(metric[model]["value"]) for model in ("base", "tuned"))
                yield f"| {metric['title']} | {' | '.join(values)} | {metric['better']} |"


def _perplexity(loss: float | None) -> float | None:
    return None if loss is None else math.exp(min(loss, 50))


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
