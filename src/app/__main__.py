"""The command table: ``python -m app COMMAND …``. Imports only what the command needs."""

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence

TRAINER = "app.cli:main"
COMMANDS = {
    "prepare": (
        "app.commands.prepare:main",
        "turn CSV, JSONL, Parquet or a Hugging Face data set into training data, with a report",
    ),
    "doctor": ("app.commands.doctor:main", "is this machine ready? each line ok, warn or fail, with a remedy"),
    "init": ("app.commands.init:main", "write a commented configuration for your card, model and data"),
    "plan": ("app.commands.plan:main", "memory, speed and hours before anything is downloaded: plan --config FILE"),
    "fit": (TRAINER, "fine-tune: python -m app fit --config configs/mistral.yaml"),
    "validate": (TRAINER, "loss on the validation split"),
    "test": (TRAINER, "loss on the test split"),
    "runs": ("app.commands.runs:main", "the runs there are: runs, runs show NAME, runs rm NAME, runs best"),
    "evaluate": (
        "app.commands.evaluate:main",
        "is the tuned model better than its base? python -m app evaluate --run runs/mistral",
    ),
    "compare": (
        "app.commands.compare:main",
        "which run is better, and is it real? python -m app compare --runs runs/a runs/b base",
    ),
    "benchmark": (
        "app.commands.benchmark:main",
        "how fast a run answers: time to first token, tokens/s, memory",
    ),
    "chat": ("app.commands.chat:main", "talk to a run or a base model: python -m app chat --run runs/mistral"),
    "export": (
        "app.commands.export:main",
        "merged folder, GGUF, Ollama or BentoML, checked to be the same model: python -m app export gguf --run …",
    ),
    "completion": ("app.commands.completion:main", "a script that completes all this in bash or zsh"),
}
"""Command -> (module:function called with the remaining arguments, what the help says)."""


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python -m app COMMAND [options]",
            "",
            *lines,
            "",
            "python -m app COMMAND --help lists a command's options and defaults.",
        ]
    )


def quieten() -> None:
    """Silences what libraries say as they are imported and a user can do nothing about."""
    # bitsandbytes 0.50 on CPUs with AVX512-BF16: an optional package of faster kernels is missing.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # peft 0.21 asks transformers 5.23 by a name that is to be removed one day.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status (0 done, 1 a check failed, 2 a fault the message explains)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    command, rest = arguments[0], arguments[1:]
    if sys.platform == "linux":  # torch reads it once, when it is imported
        # Fixed segments lost 600 MiB to gaps between tensors of different sizes, growing ones 270 (H100, 2026-11).
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    if command in ("-V", "--version"):
        from app import __version__

        print(__version__)
        return 0
    if command not in COMMANDS:
        import difflib

        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        print(f"error: there is no command {command!r}{hint}\n\n{usage()}", file=sys.stderr)
        return 2
    target = COMMANDS[command][0]
    if "--quiet" in rest or not sys.stderr.isatty():  # for libraries with bars of their own, which read it on import
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    quieten()
    module, function = target.split(":")
    run = getattr(importlib.import_module(module), function)
    status: int = run([command, *rest] if target == TRAINER else rest)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
