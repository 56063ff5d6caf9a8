"""``python -m app doctor``: is this machine ready, and if not, what is to be done?"""

from collections.abc import Sequence

from app.commands import run_command

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor(quiet: bool = False) -> int:
    """Checks Python, driver, torch, bitsandbytes, Triton, compiler, disk, hub, W&B and the GPU's memory.

    Each line is ok, warn (something will not work or be slow) or fail (training will not work), with a remedy. Exit
    status 1: something failed.

    Args:
        quiet: print only what is not ok.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from app.plan.doctor import examine

    console, waiting = Console(highlight=False), Console(stderr=True)
    with waiting.status("looking at this machine") as status:
        if not waiting.is_terminal or quiet:
            status.stop()
        findings = list(examine(lambda name: status.update(f"checking {name}")))
    shown = [finding for finding in findings if finding.state != "ok"] if quiet else findings
    if shown:
        table = Table()
        for column in ("", "check", "found", "remedy"):
            table.add_column(column, overflow="fold")
        for finding in shown:
            state = f"[{COLOURS[finding.state]}]{finding.state}[/]"
            table.add_row(state, finding.check, escape(finding.found), escape(finding.remedy))
        console.print(table)
    failed = sum(finding.state == "fail" for finding in findings)
    warned = sum(finding.state == "warn" for finding in findings)
    if not quiet:
        console.print(f"{len(findings) - failed - warned} ok, {warned} warnings, {failed} failed")
    return 1 if failed else 0


def main(argv: Sequence[str]) -> int:
    return run_command(doctor, argv, name="doctor")
