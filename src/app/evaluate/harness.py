"""lm-evaluation-harness on a session: any of its tasks, by this application's scoring and its one engine.

Needs the extra ``lm-eval``; nothing else imports this module.
"""

import hashlib
import os
from collections.abc import Sequence
from contextlib import nullcontext
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from app.artifact import RunDirectory, write_atomic
from app.data.tokenize import Encoding, special_ids
from app.errors import ConfigError, DataError, MachineError, first_line
from app.evaluate.measure import open_engine
from app.evaluate.report import LM_EVAL, as_text
from app.evaluate.samples import Scored
from app.evaluate.scoring import length_batches, score
from app.generate.cache import longest_context
from app.generate.sampling import Sampling
from app.generate.session import Session, open_run
from app.model.load import Device
from app.terminal import progress_bars

try:
    from lm_eval.api.model import LM
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as fault:
    raise MachineError(
        "lm-evaluation-harness is not installed", where="--lm-eval", remedy='pip install "app[lm-eval]"'
    ) from fault

# Most tasks say themselves how long an answer may be; this is lm-evaluation-harness's own default.
_MAX_TOKENS = 256


class SessionLM(LM):  # type: ignore[misc]  # mypy does not follow lm_eval (pyproject.toml)
    """A session as lm-evaluation-harness sees a model.

    Texts are encoded as lm-evaluation-harness's own Hugging Face model does (0.4.13): BOS first where the family has
    one, and spaces at a context's end counted to the continuation. But rolling likelihoods read BOS once, not twice.

    Args:
        session: the opened model.
        batch_size: rows at a time.
    """

    def __init__(self, session: Session, *, batch_size: int) -> None:
        super().__init__()
        self._session = session
        self._batch_size = batch_size
        self._limit = longest_context(session.causal_lm.config)
        bos = session.family.chat.bos
        ids = special_ids(session.tokenizer, session.family)
        self._bos = [ids[bos]] if bos else []
        # What a text's first token is predicted from: the tokenizer's own BOS, also where the format writes none.
        own = session.tokenizer.bos_token_id
        self._prefix = ids[session.family.stop_tokens[0]] if own is None else int(own)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, in nats, and whether greedy decoding would write it."""
        rows = []
        for context, continuation in (request.args for request in requests):
            spaces = len(context) - len(context.rstrip())
            if spaces:
                context, continuation = context[:-spaces], context[-spaces:] + continuation
            before = self._encode(context) or [self._prefix]
            whole = self._encode(context + continuation) if context else [self._prefix, *self._plain(continuation)]
            rows.append((whole, len(whole) - len(before)))
        return [(-found.loss, found.right == found.tokens) for found in self._score(rows)]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Log-likelihood of each whole text, in nats; long ones in windows that are each as long as the context."""
        rows, owners = [], []
        for number, (text,) in enumerate(request.args for request in requests):
            windows = get_rolling_token_windows(self._plain(text), self._prefix, self._limit - 1, 1)
            for before, wanted in map(make_disjoint_window, windows):
                rows.append(([*before, *wanted], len(wanted)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, found in zip(owners, self._score(rows), strict=True):
            totals[number] -= found.loss
        return totals

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The continuation of each context, up to one of its stop texts or the family's stop tokens."""
        prompts, samplings = [], []
        for context, options in (request.args for request in requests):
            given = normalize_gen_kwargs(options, _MAX_TOKENS)
            most = min(int(given["max_gen_toks"]), self._limit - 1)
            prompts.append((self._encode(context) or [self._prefix])[most - self._limit :])
            samplings.append(
                Sampling(
                    temperature=float(given.get("temperature", 0.0)),
                    top_p=float(given.get("top_p") or 1.0),
                    top_k=int(given.get("top_k") or 0),
                    seed=int(given.get("seed") or 0),
                    stop=tuple(text for text in given["until"] if text),
                    max_tokens=most,
                )
            )
        if not prompts:
            return []
        longest = max(len(ids) + each.max_tokens for ids, each in zip(prompts, samplings, strict=True))
        engine = open_engine(self._session, slots=self._batch_size, context=max(2, min(longest, self._limit)))
        return [answer.text for answer in engine.generate(prompts, samplings)]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation in the family's format."""
        text: str = self._session.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The family's template, for lm-evaluation-harness's records."""
        return self._session.family.chat.jinja() if chat_template else ""

    @property
    def tokenizer_name(self) -> str:
        """A name that changes with vocabulary or template: requests are cached under it."""
        content = self._session.tokenizer.backend_tokenizer.to_str() + self._session.family.chat.jinja()
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self._session.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _encode(self, text: str) -> list[int]:
        """The text's tokens after BOS, which a chat template may have written already."""
        ids = self._plain(text)
        return ids if not self._bos or ids[:1] == self._bos else [*self._bos, *ids]

    def _score(self, rows: Sequence[tuple[Sequence[int], int]]) -> list[Scored]:
        """Scores of the last tokens of rows, cut at the left to what the model takes.

        Args:
            rows: ids, and how many of the last of them are scored.
        """
        cut = [(list(ids)[-self._limit :], count) for ids, count in rows]
        encodings = [
            Encoding(input_ids=ids, trained=[False] * (len(ids) - count) + [True] * count) for ids, count in cut
        ]
        pad_id = int(self._session.tokenizer.pad_token_id)
        found: dict[int, Scored] = {}
        with progress_bars() as display:
            task = display.add_task("likelihoods", total=len(encodings))
            for batch in length_batches([len(each.input_ids) for each in encodings], self._batch_size):
                results = score(self._session.causal_lm, [encodings[index] for index in batch], pad_id=pad_id)
                found |= dict(zip(batch, results, strict=True))
                display.advance(task, len(batch))
        return [found[index] for index in range(len(rows))]


def evaluate_tasks(
    run: Path,
    tasks: Sequence[str],
    *,
    folder: Path | None = None,
    limit: int | None = None,
    chat: bool = False,
    batch_size: int = 8,
    device: Device = "auto",
) -> dict[str, Any]:
    """Runs tasks on base and tuned model; writes and returns ``reports/lm-eval.json``.

    Args:
        run: the run directory.
        tasks: their names.
        folder: with tasks of one's own, as YAML; only these are known then.
        limit: of each task only so many documents.
        chat: put the documents into the family's chat format.
        batch_size: rows at a time.
        device: where to run.

    Raises:
        ConfigError: there is no such task.
        DataError: a task's data cannot be had.
        RunError, ModelError, MachineError: see `open_run`.
    """
    from lm_eval import __version__, simple_evaluate
    from lm_eval.tasks import TaskManager

    directory = RunDirectory(run)
    directory.require_adapter()
    # The thousands of tasks that come with it take 10 seconds and more to list: a folder's own do without them.
    manager = TaskManager(include_path=str(folder), include_defaults=False) if folder else TaskManager()
    known = manager.all_tasks
    unknown = [task for task in tasks if task not in known]
    if unknown:
        close = [match for task in unknown for match in get_close_matches(task, known, n=3)]
        raise ConfigError(
            f"lm-evaluation-harness has no task {', '.join(unknown)}",
            where="--lm-eval",
            remedy=f"did you mean {', '.join(close)}?" if close else "`lm_eval ls tasks` lists them",
        )
    session = open_run(run, device=device)
    language_model = SessionLM(session, batch_size=batch_size)
    found: dict[str, dict[str, Any]] = {}
    for model in ("base", "tuned"):
        with session.base() if model == "base" else nullcontext():
            try:
                results = simple_evaluate(
                    model=language_model,
                    tasks=list(tasks),
                    task_manager=manager,
                    limit=limit,
                    apply_chat_template=chat,
                    bootstrap_iters=1000,
                    log_samples=False,
                )
            except (OSError, ValueError, RuntimeError, LookupError) as fault:
                raise DataError(
                    f"lm-evaluation-harness could not run {', '.join(tasks)}: {first_line(fault)}",
                    where="--lm-eval",
                    remedy="most tasks fetch their data from the Hugging Face hub: check the network"
                    + (", and HF_HUB_OFFLINE, which is set" if os.environ.get("HF_HUB_OFFLINE") else ""),
                ) from fault
        assert results is not None, "only a rank other than 0 gets none"
        found[model] = results["results"]
    report = {"version": __version__, "limit": limit, "chat": chat, "results": result_rows(found)}
    write_atomic(directory.reports / LM_EVAL, as_text(report))
    return report


def result_rows(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each task and metric, with both models' values and standard errors (None where there is none).

    Args:
        found: model -> task -> lm-evaluation-harness's "METRIC,FILTER" and "METRIC_stderr,FILTER".
    """
    rows = []
    for task, values in found["base"].items():
        for name, value in values.items():
            metric, _, kind = name.partition(",")
            if metric.endswith("_stderr") or not kind or not isinstance(value, int | float):
                continue
            row: dict[str, Any] = {"task": task, "metric": metric if kind == "none" else name}
            for model in ("base", "tuned"):
                error = found[model][task].get(f"{metric}_stderr,{kind}")
                row[model] = float(found[model][task][name])
                row[f"{model}_stderr"] = float(error) if isinstance(error, int | float) else None
            rows.append(row)
    return rows
