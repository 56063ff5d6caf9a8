"""A LoRA adapter as numbers: what it adds to which weight, without building a model.

The update of a weight W [out, in] is ``W + s B A`` with A [r, in] and B [out, r] and s = alpha / r (LoRA, arXiv
2106.09685) or alpha / sqrt(r) (rsLoRA, arXiv 2312.03732). DoRA (arXiv 2402.09353) then gives each row of the sum the
length that its magnitude vector says.
"""

import json
import re
from dataclasses import dataclass
from math import isclose, sqrt
from pathlib import Path
from typing import Any

import torch

from app.errors import ModelError, RunError, several
from app.export.weights import TensorPlace, read_index

PREFIX = "base_model.model."
PARTS = {".lora_A.weight": "a", ".lora_B.weight": "b", ".lora_magnitude_vector": "magnitude"}
WEIGHT_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that also change the frozen base: the adapter alone does not say what was trained."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """What happens to one weight.

    Attributes:
        a: [r, in], float32.
        b: [out, r], float32.
        scale: s.
        magnitude: [out], float32, for DoRA; else None.
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    magnitude: torch.Tensor | None

    def applied(self, weight: torch.Tensor, rows: range | None = None) -> torch.Tensor:
        """The tuned weight in float32, [out, in]; a ``weight`` that is float32 already is changed in place.

        Args:
            weight: the base's, or a stretch of its rows.
            rows: which stretch.
        """
        chosen = slice(rows.start, rows.stop) if rows else slice(None)
        tuned = weight.float().addmm_(self.b[chosen], self.a, alpha=self.scale)  # [out, in]
        if self.magnitude is not None:
            tuned *= (self.magnitude[chosen] / torch.linalg.vector_norm(tuned, dim=1)).unsqueeze(1)
        return tuned


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter folder's content.

    Attributes:
        updates: weight name of the base checkpoint -> its update.
        replaced: weight name -> the whole new weight (peft's ``modules_to_save``).
        config: ``adapter_config.json``.
    """

    updates: dict[str, Update]
    replaced: dict[str, TensorPlace]
    config: dict[str, Any]

    def check(self, places: dict[str, TensorPlace], *, tied: bool) -> None:
        """Refuses an adapter whose weights are not the base checkpoint's (``tied``: head and embeddings are one).

        Raises:
            RunError: naming all that do not fit.
        """
        faults = []
        for name, update in self.updates.items():
            expected = (update.b.shape[0], update.a.shape[1])
            if name not in places:
                faults.append(f"{name} is no tensor of the base model")
            elif places[name].shape != expected:
                faults.append(f"{name} is {places[name].shape} in the base model, {expected} in the adapter")
        for name, place in self.replaced.items():
            if name not in places:
                faults.append(f"{name} is no tensor of the base model")
            elif tied and "embed_tokens" in name:
                faults.append(f"{name} was trained apart from the head it is tied to, which no export format can say")
            elif places[name].shape != place.shape:
                faults.append(f"{name} is {places[name].shape} in the base model, {place.shape} in the adapter")
        if faults:
            raise RunError(
                several("the adapter does not fit the base model", faults),
                where="--run",
                remedy="restore the base model the run's manifest names, with its revision",
            )


def read_adapter(folder: Path) -> Adapter:
    """The adapter in a peft folder.

    Raises:
        RunError: it is of a kind whose merge is not defined by its own numbers, or holds tensors of unknown meaning.
    """
    config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    faults = _unsupported(config)
    parts: dict[str, dict[str, torch.Tensor]] = {}
    replaced: dict[str, TensorPlace] = {}
    try:
        places = read_index(folder / "adapter_model.safetensors")
    except (ModelError, OSError) as fault:
        raise RunError(
            f"the adapter in {folder} cannot be read: {fault}",
            where="--run",
            remedy="resume the run with `fit --ckpt_path last`, which writes the adapter again, or restore a copy",
        ) from fault
    for key, place in places.items():
        name = key.removeprefix(PREFIX)
        suffix = next((suffix for suffix in PARTS if name.endswith(suffix)), None)
        if suffix:
            parts.setdefault(name.removesuffix(suffix), {})[PARTS[suffix]] = place.read().float()
        elif "lora_" in name or not name.endswith((".weight", ".bias")):
            faults.append(f"the tensor {key} is of a kind that is not known here")
        else:
            replaced[name] = place
    for module, found in parts.items():
        if not {"a", "b"} <= set(found):
            faults.append(f"{module} lacks its A or its B")
        if bool(config.get("use_dora")) != ("magnitude" in found):
            faults.append(f"{module}: use_dora is {config.get('use_dora')}, its magnitudes say otherwise")
    if faults:
        raise RunError(
            several(f"the adapter in {folder} cannot be exported", faults),
            where="--run",
            remedy="export takes LoRA, rsLoRA and DoRA on linear layers, and whole layers that were trained beside it",
        )
    updates = {
        f"{module}.weight": Update(
            a=found["a"],
            b=found["b"],
            scale=_scale(config, module, rank=found["a"].shape[0]),
            magnitude=found["magnitude"].reshape(-1) if "magnitude" in found else None,
        )
        for module, found in parts.items()
    }
    return Adapter(updates=updates, replaced=replaced, config=config)


def alpha(config: dict[str, Any], module: str) -> float:
    """The module's alpha: the first pattern that matches its name's end, as peft does, or the common one."""
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(value)
    return float(config["lora_alpha"])


def _scale(config: dict[str, Any], module: str, *, rank: int) -> float:
    return alpha(config, module) / (sqrt(rank) if config.get("use_rslora") else rank)


def _unsupported(config: dict[str, Any]) -> list[str]:
    """Why the adapter's own numbers do not define the tuned weights; empty if they do."""
    faults = []
    if config.get("peft_type") != "LORA":
        faults.append(f"peft_type is {config.get('peft_type')!r}, not 'LORA'")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        faults.append("it trains biases (bias or lora_bias)")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.split("_niter")[0] in WEIGHT_CHANGING:
        faults.append(f"init_lora_weights {start!r} changed the base weights too, which the adapter does not hold")
    others = (
        "fan_in_fan_out use_qalora use_bdlora layer_replication trainable_token_indices target_parameters "
        "alora_invocation_tokens arrow_config velora_config monteclora_config kasa_config megatron_config"
    )
    faults += [f"{name} is set" for name in others.split() if config.get(name)]
    return faults


def same_scale(left: float, right: float) -> bool:
    """Whether two scales are one and the same number, but for rounding."""
    return isclose(left, right, rel_tol=1e-9)
