"""What an export says about itself: the model card, and the same facts for a GGUF file's metadata."""

import json
from dataclasses import dataclass

from app.artifact import sha256_text
from app.export.tuned import TunedModel
from app.hub import is_local


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


def provenance(tuned: TunedModel) -> Provenance:
    """The facts of the run's manifest; a local folder is named by its last part, since paths are the user's own."""
    base, data = tuned.manifest.base, tuned.manifest.data
    run = tuned.run.path.resolve().name
    digest = sha256_text(json.dumps(dict(data.sha256), sort_keys=True))
    source = tuned.title if is_local(base.id) else base.id
    samples = ", ".join(f"{count} {split}" for split, count in data.samples.items())
    return Provenance(
        # llama.cpp reads behaviour from this name: Phi-3's turn tokens strip white space only if it says "phi-3".
        name=f"{tuned.family.title} {run}",
        base=f"{source}@{base.revision}" if base.revision else source,
        licence=tuned.family.licence,
        data=f"sha256:{digest} ({samples})" if samples else f"sha256:{digest}",
        run=run,
    )


def model_card(tuned: TunedModel, *, kind: str) -> str:
    """A README.md with the hub's front matter."""
    facts = provenance(tuned)
    base = tuned.manifest.base
    config = tuned.adapter.config
    variant = "DoRA" if config.get("use_dora") else "rsLoRA" if config.get("use_rslora") else "LoRA"
    into = "the NF4-rounded base it was trained on" if tuned.exact else "the original 16-bit base"
    result = "".join(f"| {name} | {value} |\n" for name, value in tuned.manifest.result.items())
    front = ["---", f"license: {facts.licence}"]
    if not is_local(base.id):
        front.append(f"base_model: {base.id}")
    front += ["library_name: transformers", "pipeline_tag: text-generation", "---"]
    return "\n".join(
        [
            *front,
            "",
            f"# {facts.name}",
            "",
            f"{tuned.family.title}, fine-tuned with {variant} (rank {config.get('r')}, alpha "
            f"{config.get('lora_alpha')}) on {'NF4' if base.quantization == 'nf4' else '16-bit'} weights, "
            f"exported as {kind} from {into}.",
            "",
            "| | |",
            "|---|---|",
            f"| base | {facts.base} |",
            f"| licence | {facts.licence} (the base model's; the training data may add terms) |",
            f"| data | {facts.data} |",
            f"| longest row | {tuned.manifest.max_length} tokens |",
            f"| stop tokens | {' '.join(f'`{token}`' for token in tuned.family.stop_tokens)} |",
            f"| trained | {tuned.manifest.created}, seed {tuned.manifest.seed} |",
            result.rstrip("\n"),
            "",
            "The chat template is in `chat_template.jinja`; it is the one the model was trained with.",
            "",
        ]
    )
