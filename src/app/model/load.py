"""The frozen base: which device, which arithmetic, and the weights in 4-bit NF4."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from app.errors import MachineError, ModelError
from app.families import Family, check_model_type
from app.hub import checkpoint_faults
from app.kernels.attention import has_flash
from app.model.nf4_cache import is_intact, nf4_folder, store
from app.model.varlen_attention import register_varlen_attention
from app.terminal import progress_bars

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Quantization = Literal["nf4", "none"]
Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Attention = Literal["auto", "varlen", "sdpa", "eager"]


def pick_device(device: Device, *, where: str = "--device") -> torch.device:
    """The device asked for; "auto" is the GPU where there is one.

    Raises:
        MachineError: "cuda" was asked for, and torch sees no usable GPU.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        built = torch.version.cuda or "none: this is a CPU build"
        raise MachineError(
            f"CUDA was asked for, but torch {torch.__version__} sees no NVIDIA GPU (its CUDA build: {built})",
            where=where,
            remedy="check `nvidia-smi`; install the CUDA build of the pinned torch; or use the CPU",
        )
    return torch.device("cuda", 0) if available and device != "cpu" else torch.device("cpu")


def pick_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    """The arithmetic of the frozen weights; "auto" is bfloat16 wherever the processor computes in it.

    On CPUs without bfloat16 instructions it is emulated, slower than float32; with them SmolLM2 trained 1.6 times
    as fast as in float32 (2 cores with AVX512-BF16, 152 against 97 tokens per CPU-second, 2026-11). GPUs before
    Ampere have no bfloat16 either and get float16.
    """
    if dtype != "auto":
        chosen: torch.dtype = getattr(torch, dtype)
        return chosen
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    capabilities = torch.cpu.get_capabilities()
    fast = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16"))
    return torch.bfloat16 if fast else torch.float32


def read_config(base: str, family: Family, *, revision: str | None = None) -> "PretrainedConfig":
    """The checkpoint's configuration, before any weight is fetched.

    Raises:
        ModelError: it cannot be had, or belongs to another family.
    """
    from transformers import AutoConfig

    with checkpoint_faults(base):
        config = AutoConfig.from_pretrained(base, revision=revision, trust_remote_code=False)
    check_model_type(family, config.model_type, checkpoint=base)
    return config


def require_bitsandbytes(device: torch.device) -> None:
    """Refuses early where bitsandbytes cannot work.

    Raises:
        MachineError: it is not installed, or its library for this device does not load.
    """
    # On CPUs its import warns that an optional package of faster kernels is missing: nothing the user must mend.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import bitsandbytes
    except ImportError as fault:
        raise MachineError(
            f"bitsandbytes cannot be imported: {fault}",
            remedy="pip install -r requirements.txt; where no wheel exists for this machine, train with "
            "--model.quantization none",
        ) from fault
    library = bitsandbytes.cextension.lib
    if device.type == "cuda" and not getattr(library, "compiled_with_cuda", False):
        raise MachineError(
            f"bitsandbytes {bitsandbytes.__version__} has no library for CUDA {torch.version.cuda} on this machine",
            remedy="run `python -m bitsandbytes` to see what it looked for, and install the pinned torch and "
            "bitsandbytes together",
        )


def load_base(
    base: str,
    family: Family,
    *,
    device: torch.device,
    dtype: torch.dtype,
    revision: str | None = None,
    quantization: Quantization = "nf4",
    double_quant: bool = True,
    attention: Attention = "auto",
    trainable: bool = False,
    mapped: bool = False,
) -> "PreTrainedModel":
    """The base model on its device, frozen, every linear layer but the head in NF4 (QLoRA, arXiv 2305.14314).

    The first load quantises and stores the result (`app.model.nf4_cache`); later ones read that.

    Args:
        base: hub id or local folder with 16-bit weights.
        family: what the checkpoint must be.
        device: where it goes, straight from disk.
        dtype: of the arithmetic and of what is not quantised (embeddings, norms, head).
        revision: hub commit or tag.
        quantization: "nf4", or "none" for 16-bit weights.
        double_quant: quantise the block scales too (0.37 bit per weight less, section 3 of the paper).
        attention: "auto" is varlen (`app.model.varlen_attention`) to train on a GPU in 16 bits, SDPA to generate there,
            and eager on a CPU, where it was faster at short rows (2026-11).
        trainable: whether gradients will flow through it; turns off what trains wrongly (see below).
        mapped: leave the weights on disk, mapped into CPU memory, for `app.model.shard` to move piece by piece: from
            the stored NF4 copy processes share the file's pages and take no memory of their own.

    Raises:
        ModelError: the checkpoint cannot be had, is damaged, or is of another family.
        MachineError: bitsandbytes does not work here.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = read_config(base, family, revision=revision)
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"{base} is already quantised; QLoRA quantises 16-bit weights itself",
            where="model.base",
            remedy="name the 16-bit checkpoint it was made from",
        )
    kwargs: dict[str, Any] = {}
    stored: Path | None = None
    held = torch.device("cpu") if mapped else device
    if quantization == "nf4":
        require_bitsandbytes(device)
        stored = nf4_folder(base, config, device=held, dtype=dtype, double_quant=double_quant)
        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=double_quant,
            bnb_4bit_compute_dtype=dtype,
        )
    if attention == "auto":
        varlen = trainable and dtype.itemsize == 2 and has_flash(device)
        attention = "varlen" if varlen else "sdpa" if device.type == "cuda" else "eager"
    if attention == "varlen":
        register_varlen_attention()
    if stored is not None and is_intact(stored):
        kwargs = {}
        source = str(stored)
    else:
        kwargs |= {"config": config, "revision": revision}
        source = base
    with checkpoint_faults(base), loading_bars():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            device_map={"": held},
            attn_implementation=attention,
            trust_remote_code=False,
            use_safetensors=True,
            **kwargs,
        )
    if source == base and stored is not None:
        with loading_bars():
            store(model, stored)
    elif source != base:
        # What is trained belongs to the base, whichever copy of it was read; peft writes this name into its adapters.
        model.name_or_path = model.config.name_or_path = base
        model.config._commit_hash = getattr(config, "_commit_hash", None)
    model.requires_grad_(False)
    if trainable:
        forbid_cpu_repacking(model)
    return model


@contextmanager
def loading_bars() -> Iterator[None]:
    """What transformers counts while it reads, quantises and writes weights shows in the application's own bars."""
    from transformers.utils.logging import set_tqdm_hook

    with progress_bars() as display:

        def bar(theirs: Callable[..., Any], given: tuple[Any, ...], options: dict[str, Any]) -> Any:
            if not given:  # a bar that is moved by hand
                return theirs(*given, **options)
            return display.track(given[0], description=options.get("desc") or "loading")

        before = set_tqdm_hook(bar)
        try:
            yield
        finally:
            set_tqdm_hook(before)


def forbid_cpu_repacking(model: torch.nn.Module) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights for CPU inference, which breaks training without an error.

    On CPUs with AVX512-BF16, ``Linear4bit`` repacks its weights at the first forward in eval mode (Lightning's sanity
    check is one) and then uses a product without autograd: the gradient's cosine to the true one was 0.019
    (bitsandbytes 0.50.2, 2026-11).
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
