"""``vsim systolic``: the closed-form systolic model on the command line."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from hwconfigs.errors import UserError
from hwconfigs.systolic_schema import load_systolic, systolic_preset_names
from vsim import cli_tables
from vsim.cli_options import (
    BatchOption,
    DimsOption,
    EnergyOption,
    JsonOption,
    NodeOption,
    SetOption,
    SupplyOption,
    parse_dims,
    parse_overrides,
    parse_sizes,
    technology_of,
)
from vsim.cli_training import (
    LossOption,
    LossOutputOption,
    OptimizerOption,
    RecomputeOption,
    RestoreBatchNormOption,
    TrainOption,
    training_options,
)

EXIT_DIFFERS = 1

SkipUnknownOption = Annotated[
    bool, typer.Option("--skip-unknown", help="Leave out operators that are not modelled, with a warning.")
]

app = typer.Typer(help="The closed-form systolic model: whole networks on whole spaces of designs.")


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


@app.command()
def run(
    model: Annotated[
        str, typer.Argument(help="ONNX file, onnx:light_resnet50, or simdit:ResNet50[-training], SimDIT's own network.")
    ],
    hw: Annotated[str, typer.Option("--hw", help="Design of hwconfigs/systolic, or a YAML file.")],
    overrides: SetOption = None,
    batch: BatchOption = 1,
    dims: DimsOption = None,
    compat: Annotated[
        Original | None, typer.Option("--compat", help="simdit: with SimDIT's faults, for its own networks.")
    ] = None,
    skip_unknown: SkipUnknownOption = False,
    energy: EnergyOption = None,
    node_nm: NodeOption = None,
    supply_v: SupplyOption = None,
    train: TrainOption = False,
    optimizer: OptimizerOption = None,
    loss: LossOption = None,
    loss_output: LossOutputOption = None,
    recompute: RecomputeOption = None,
    restore_batch_norm: RestoreBatchNormOption = False,
    as_json: JsonOption = False,
) -> None:
    """Cycles and traffic of every layer of a model on one design, in closed form."""
    if compat is Original.SCALESIM:
        raise UserError("--compat scalesim replays recorded layers: vsim systolic replay FILE --compat scalesim")
    faults = compat is not None
    from vsim.systolic.run import layers_of, run

    design = load_systolic(hw).with_overrides(parse_overrides(overrides, "array.rows=32"))
    sizes = parse_dims(dims)
    training = training_options(
        model,
        train=train,
        optimizer=optimizer,
        loss=loss,
        loss_output=loss_output,
        recompute=recompute,
        restore_batch_norm=restore_batch_norm,
        inference_only={"--compat": compat},
    )
    bridged = layers_of(model, batch=batch, dims=sizes, skip_unknown=skip_unknown, faults=faults, training=training)
    technology = technology_of(energy, node_nm, supply_v)
    content = run(model, bridged, design, faults=faults, technology=technology)
    if as_json:
        print(json.dumps(content, indent=1))
        return
    cli_tables.print_rows("Layers", content["layers"])
    cli_tables.print_rows("Operators", content["operators"])
    if "roles" in content:
        cli_tables.print_rows("Roles", content["roles"])
    how = "one after the other" if faults else "array and vector unit overlapping within a chain of fused layers"
    console = cli_tables.stdout()
    console.print(
        f"{model} on {design.name}: {content['cycles']:,.2f} cycles ({content['milliseconds']:,.3f} ms) with "
        f"{content['chains']:,} chains, {how}; {content['serial_cycles']:,.2f} one after the other, of which "
        f"{content['vector_share']:.2%} on the vector unit; array {content['macs_of_peak']:.1%} of its peak; "
        f"{content['dram_bytes']:,.0f} bytes of DRAM traffic",
        style="bold",
    )
    if "energy" in content:
        found = content["energy"]
        area = sum(found["area_mm2"].values())
        rows = [{"part": name, "microjoules": value} for name, value in found["microjoules"].items()]
        cli_tables.print_rows(f"Energy at {found['node_nm']:g} nm ({found['technology']})", rows)
        console.print(
            f"{found['total_microjoules']:,.1f} microjoules, {found['average_watts']:,.3f} W on average, energy-delay "
            f"product {found['joule_seconds']:.4g} J s; arithmetic and memory cells {area:.2f} mm2",
            style="bold",
        )
    for warning in content["warnings"]:
        cli_tables.stderr().print(f"vsim: warning: {warning}")


@app.command()
def figures(
    model: Annotated[
        str, typer.Argument(help="ONNX file, onnx:light_resnet50, or simdit:ResNet50, SimDIT's own network.")
    ],
    hw: Annotated[str, typer.Option("--hw", help="Design of hwconfigs/systolic, or a YAML file.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the figures.")],
    overrides: SetOption = None,
    batches: Annotated[
        str, typer.Option("--batches", metavar="N,...", help="Batches; the breakdown is of the largest.")
    ] = "1,8,32",
    arrays: Annotated[
        str, typer.Option("--arrays", metavar="N,...", help="Rows and columns of arrays; the rest of --hw stays.")
    ] = "8,16,32,64,128",
    dims: DimsOption = None,
    compat: Annotated[
        Original | None, typer.Option("--compat", help="simdit: with SimDIT's faults, for its own networks.")
    ] = None,
    skip_unknown: SkipUnknownOption = False,
    energy: EnergyOption = None,
    node_nm: NodeOption = None,
    supply_v: SupplyOption = None,
    optimizer: OptimizerOption = None,
    loss: LossOption = None,
    loss_output: LossOutputOption = None,
    recompute: RecomputeOption = None,
    restore_batch_norm: RestoreBatchNormOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw where time and energy go in inference and in training, and the non-conv share by batch and array."""
    if compat is Original.SCALESIM:
        raise UserError("--compat scalesim replays recorded layers: vsim systolic replay FILE --compat scalesim")
    from figures.systolic_figures import save_systolic
    from vsim.systolic.phases import compare_phases

    content = compare_phases(
        model,
        load_systolic(hw).with_overrides(parse_overrides(overrides, "array.rows=32")),
        batches=parse_sizes(batches, "--batches", "1,8,32"),
        sides=parse_sizes(arrays, "--arrays", "16,32,64"),
        dims=parse_dims(dims),
        skip_unknown=skip_unknown,
        faults=compat is not None,
        training=training_options(
            model,
            train=True,
            optimizer=optimizer,
            loss=loss,
            loss_output=loss_output,
            recompute=recompute,
            restore_batch_norm=restore_batch_norm,
            inference_only={},
        ),
        technology=technology_of(energy, node_nm, supply_v),
    )
    files = [str(file) for file in save_systolic(content, out)]
    if as_json:
        print(json.dumps(content | {"files": files}, indent=1))
        return
    shown = ("cycles", "milliseconds", "serial_cycles", "vector_share", "dram_bytes")
    rows = []
    for phase, report in content["phases"].items():
        spent = {"microjoules": report["energy"]["total_microjoules"]} if "energy" in report else {}
        rows.append({"phase": phase, **{key: report[key] for key in shown}, **spent})
    cli_tables.print_rows(f"{model} on {content['hw']}, batch {content['batch']}", rows)
    for warning in dict.fromkeys(text for report in content["phases"].values() for text in report["warnings"]):
        cli_tables.stderr().print(f"vsim: warning: {warning}")
    for file in files:
        print(file)


@app.command("list")
def list_designs() -> None:
    """List the designs of hwconfigs/systolic."""
    rows = []
    for name in systolic_preset_names():
        hw = load_systolic(name)
        array, buffers, ports = f"{hw.array.rows}x{hw.array.cols}", dict(hw.buffers), dict(hw.ports)
        rows.append({"name": name, "array": array, "activation_bits": hw.precision.activation_bits, **buffers, **ports})
    cli_tables.print_rows("Designs", rows)


def allocate(
    spec: Annotated[
        Path, typer.Argument(metavar="SPEC.yaml", help="Network, design and budget; see vsim/systolic/resnet50.yaml.")
    ],
    figure: Annotated[
        Path | None, typer.Option("--figure", metavar="FILE", help="Draw the landscape: .png, .pdf or .svg.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Split a budget of memory and port width: every split of a grid, and a search along the gradient."""
    if figure is not None:
        from figures.roofline import check_target

        check_target(figure)
    from vsim.systolic.allocate import allocate as search
    from vsim.systolic.allocate import load_allocation

    loaded = load_allocation(spec)
    with cli_tables.stderr().status("evaluating every split"):
        allocation = search(loaded)
    found = allocation.to_json()
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        _print_allocation(found)
    if figure is not None:
        from figures.allocation_figure import save_allocation

        save_allocation(allocation, figure)


def _print_allocation(found: dict[str, Any]) -> None:
    cli_tables.print_rows(f"{found['network']} on {found['hw']}", found["splits"])
    equal, worst, gradient = (row["of_best"] for row in found["splits"][1:])
    cli_tables.stdout().print(
        f"Of {found['grid_points']:,} splits in steps of 1/{found['steps']}, {found['grid_runnable']:,} can run the "
        f"network: the equal one takes {equal:.3f} times the cycles of the best, the worst {worst:.2f} times. The "
        f"gradient search evaluated {found['gradient_points']:,} splits; its best takes {gradient:.4f} times.",
        style="bold",
    )
