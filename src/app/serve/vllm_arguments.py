"""A run, in the words of vLLM: its command line, and the body of its completions route.

Names are those of vLLM 0.33 (``vllm serve --help``); tests/serve/vllm_options.txt holds what its parser knows.
"""

import json
import shlex
from typing import Any

from app.errors import ConfigError
from app.serve.catalogue import Catalogue
from app.serve.job import Job
from app.serve.settings import Settings

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that --max-lora-rank takes (vllm/config/lora.py); the least one that holds every adapter."""

_OURS = frozenset(
    {"--model", "--port", "--host", "--served-model-name", "--enable-lora", "--lora-modules", "--api-key"}
)
"""Options on which the proxy relies."""


def launch_arguments(settings: Settings, catalogue: Catalogue, *, port: int) -> list[str]:
    """The rest of ``vllm`` on the command line: base quantised as in training, each run a LoRA module under its name.

    bitsandbytes in vLLM quantises the 16-bit weights as they load, to NF4; whether block scales are quantised again
    (``double_quant``) has no option there, and changes weights by less than their own rounding.

    Raises:
        ConfigError: an adapter is of a kind that vLLM does not run, or ``vllm_args`` holds what is set here.
    """
    manifest = catalogue.manifest
    quantization = manifest.base.quantization if manifest is not None else settings.quantization
    arguments = ["serve", catalogue.weights, "--served-model-name", catalogue.base_name]
    arguments += ["--host", "127.0.0.1", "--port", str(port)]
    if manifest is not None and manifest.base.revision is not None and catalogue.base is None:
        arguments += ["--revision", manifest.base.revision, "--tokenizer-revision", manifest.base.revision]
    if quantization == "nf4":
        arguments += ["--quantization", "bitsandbytes"]
    if settings.context is not None:
        arguments += ["--max-model-len", str(settings.context)]
    arguments += ["--max-num-seqs", str(settings.slots)]
    arguments += ["--gpu-memory-utilization", f"{settings.vllm_memory:g}"]
    if settings.vllm_gpus > 1:
        arguments += ["--tensor-parallel-size", str(settings.vllm_gpus)]
    # The checkpoint's own generation_config would change temperature and top_k of requests that do not name them.
    arguments += ["--generation-config", "vllm"]
    # Alternatives beside each token, as the API allows.
    arguments += ["--max-logprobs", "20"]
    if catalogue.runs:
        modules = [
            json.dumps({"name": name, "path": str((run / "adapter").resolve()), "base_model_name": catalogue.base_name})
            for name, run in catalogue.runs.items()
        ]
        arguments += ["--enable-lora", "--max-loras", str(len(modules)), "--max-lora-rank", str(_rank(catalogue))]
        arguments += ["--lora-modules", *modules]
    return arguments + _more(settings.vllm_args)


def completion_body(job: Job, model: str) -> dict[str, Any]:
    """A job as the body of vLLM's ``/v1/completions``; token ids in, so that its own template plays no part."""
    sampling = job.sampling
    body: dict[str, Any] = {
        "model": model,
        "prompt": job.prompt,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "stop": list(sampling.stop),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.logprobs is not None:
        body |= {"logprobs": sampling.logprobs, "return_tokens_as_token_ids": True}
    return body


def _rank(catalogue: Catalogue) -> int:
    """The least allowed --max-lora-rank for all adapters."""
    configs = {
        name: json.loads((run / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
        for name, run in catalogue.runs.items()
    }
    unfit = [name for name, config in configs.items() if config.get("use_dora") or config.get("modules_to_save")]
    if unfit:
        raise ConfigError(
            f"vLLM runs plain LoRA only; DoRA or trained modules are in {', '.join(unfit)}",
            where="APP_ENGINE",
            remedy="use engine: local, or merge the run: python -m app export merged --run …, then APP_BASE",
        )
    needed = max(max([config["r"], *(config.get("rank_pattern") or {}).values()]) for config in configs.values())
    fitting = [rank for rank in _RANKS if rank >= needed]
    if not fitting:
        raise ConfigError(
            f"vLLM takes adapters up to rank {_RANKS[-1]}; there is one of {needed}",
            where="APP_ENGINE",
            remedy="use engine: local",
        )
    return fitting[0]


def _more(text: str) -> list[str]:
    """vLLM's options that the user adds."""
    try:
        more = shlex.split(text)
    except ValueError as fault:
        raise ConfigError(
            f"vllm_args is {text!r}: {fault}", where="APP_VLLM_ARGS", remedy="close the quotes"
        ) from fault
    clash = sorted(_OURS & {part.partition("=")[0] for part in more})
    if clash:
        raise ConfigError(f"{', '.join(clash)} is set by the application", where="APP_VLLM_ARGS", remedy="leave it out")
    return more
