"""A run in BentoML's model store, where the service finds it by name and a build pins it by tag."""

import shutil
from pathlib import Path

from app.artifact import RunDirectory
from app.export.exporter import Bars, Outcome, checking, outcome_of
from app.export.scorers import TransformersScorer
from app.export.tuned import open_tuned
from app.generate.session import open_run


def export_bento(
    run: Path, *, name: str | None, verify: bool, data: Path | None, prompts: int, bars: Bars
) -> tuple[Outcome, str]:
    """The run's adapter, manifest and configuration in BentoML's model store; returns the tag too.

    The base model is not copied: the service fetches it by the id in the manifest. A copy that does not answer as the
    run does is taken out of the store again.
    """
    import bentoml

    tuned = open_tuned(run)
    source = tuned.run
    verdicts = []
    with checking(tuned, verify, data=data, prompts=prompts, bars=bars, twin=False) as check:
        labels = {"family": tuned.family.name, "base": tuned.title}
        with bentoml.models.create((name or source.path.resolve().name).lower(), labels=labels) as model:
            copy = RunDirectory(model.path)
            shutil.copytree(source.adapter, copy.adapter)
            shutil.copy2(source.manifest_path, copy.manifest_path)
            if source.config_path.is_file():
                shutil.copy2(source.config_path, copy.config_path)
        stored = Path(bentoml.models.get(model.tag).path)
        if check:
            verdicts.append(check.judge(TransformersScorer(open_run(stored)), str(model.tag), "copy"))
    if not all(verdict.passed for verdict in verdicts):
        bentoml.models.delete(model.tag)
    return outcome_of("bento", [stored], verdicts, check), str(model.tag)
