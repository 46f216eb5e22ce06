"""``vsim systolic``: the closed-form systolic model on the command line."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vsim import cli_tables

EXIT_DIFFERS = 1

app = typer.Typer(help="The closed-form systolic model: whole networks on whole spaces of designs.")
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


class Original(StrEnum):
    """Closed-form models that vsim reproduces, faults included."""

    SIMDIT = "simdit"
    SCALESIM = "scalesim"


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Recorded runs: .json, .jsonl or .jsonl.gz.")],
    compat: Annotated[Original, typer.Option("--compat", help="The program that was recorded.")],
    as_json: JsonOption = False,
) -> None:
    """Evaluate every recorded layer, network or case in one batch and compare; exit code 1 if any differs."""
    from vsim.systolic.replay import replay_file

    report = replay_file(file, compat.value)
    if as_json:
        print(json.dumps(report.to_json(), indent=1))
    else:
        if report.different:
            cli_tables.print_rows("First differences", report.to_json()["different"])
        console = cli_tables.stdout()
        for note in report.notes:
            console.print(note)
        console.print(
            f"{report.equal:,} of {report.items:,} {report.kind} equal {report.compat}'s ({report.values:,} values); "
            f"worst relative difference {report.worst_relative:.3g}",
            style="bold",
        )
    if not report.all_equal:
        raise typer.Exit(EXIT_DIFFERS)
