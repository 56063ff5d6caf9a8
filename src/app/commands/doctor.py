"""``python -m app doctor``: is this machine ready, and if not, what is to be done?"""

from collections.abc import Sequence

from app.commands import run_command
from app.terminal import is_quiet, make_table, progress_bars

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor() -> int:
    """Checks Python, driver, torch, bitsandbytes, Triton, compiler, disk, hub, W&B and the GPU's memory.

    Each line is ok, warn (something will not work or be slow) or fail (training will not work), with a remedy. Exit
    status 1: something failed.
    """
    from rich.console import Console
    from rich.markup import escape

    from app.plan.doctor import CHECKS, examine

    console = Console(highlight=False)
    with progress_bars() as progress:
        task = progress.add_task("looking at this machine", total=len(CHECKS), completed=-1)
        findings = list(examine(lambda name: progress.update(task, advance=1, description=f"checking {name}")))
        progress.update(task, advance=1, description="looked at this machine")
    shown = [finding for finding in findings if finding.state != "ok"] if is_quiet() else findings
    if shown:
        table = make_table("", "check", "found", "remedy")
        for finding in shown:
            state = f"[{COLOURS[finding.state]}]{finding.state}[/]"
            table.add_row(state, finding.check, escape(finding.found), escape(finding.remedy))
        console.print(table)
    failed = sum(finding.state == "fail" for finding in findings)
    warned = sum(finding.state == "warn" for finding in findings)
    if not is_quiet():
        console.print(f"{len(findings) - failed - warned} ok, {warned} warnings, {failed} failed")
    return 1 if failed else 0


def main(argv: Sequence[str]) -> int:
    return run_command(doctor, argv, name="doctor", stays="what is not ok")
