"""The command line: ``vsim run``, ``sweep``, ``figures``, ``hw``, ``dram`` and ``systolic``.

Exit codes: 0 all well; 1 something ran and did not end well (a status other than ok, a replay that differs); 2 bad
input, told in one line; 130 interrupted. Heavy libraries are imported by the command that needs them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwconfigs.errors import UserError
from hwconfigs.load import load_hw, preset_names
from hwconfigs.schema import HwConfig
from vsim import __version__, cli_compare, cli_serving, cli_systolic, cli_tables
from vsim.cli_options import (
    BatchOption,
    DimsOption,
    EnergyOption,
    HwOption,
    JsonOption,
    MappingOption,
    MaxCyclesOption,
    NodeOption,
    SetOption,
    SupplyOption,
    parse_dims,
    parse_overrides,
    technology_of,
)
from vsim.cli_training import (
    LossOption,
    LossOutputOption,
    OptimizerOption,
    RecomputeOption,
    RestoreBatchNormOption,
    TrainOption,
    totals_by_role,
    training_options,
)

if TYPE_CHECKING:
    from vsim.api import SimPoint, SimResult

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="vsim",
    help="Cycle-level simulation of neural accelerators: many configurations at once.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
)
hw_app = typer.Typer(help="Hardware presets and descriptions.")
dram_app = typer.Typer(help="The DRAM controller on its own.")
app.add_typer(hw_app, name="hw")
app.add_typer(dram_app, name="dram")
app.add_typer(cli_systolic.app, name="systolic")
app.command()(cli_systolic.allocate)


class Compat(StrEnum):
    """Simulators that vsim can reproduce, faults included."""

    ONNXIM = "onnxim"


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """Show the version, or the help when no command is given."""
    if version:
        print(__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def run(
    hw: HwOption,
    model: Annotated[
        str | None,
        typer.Argument(help="ONNX file, onnx:light_resnet50 for a graph of the onnx package, or an LLM's config.json."),
    ] = None,
    overrides: SetOption = None,
    batch: BatchOption = 1,
    dims: DimsOption = None,
    compat: Annotated[Compat | None, typer.Option("--compat", help="Reproduce another simulator to the cycle.")] = None,
    skip_unknown: Annotated[
        bool, typer.Option("--skip-unknown", help="Leave out operators that are not modelled, with a warning.")
    ] = False,
    mapping: MappingOption = None,
    max_cycles: MaxCyclesOption = None,
    no_idle_skip: Annotated[bool, typer.Option("--no-idle-skip", help="Step every cycle, also idle ones.")] = False,
    prefill: Annotated[
        int | None, typer.Option("--prefill", min=1, metavar="TOKENS", help="config.json: run a prompt so long.")
    ] = None,
    decode: Annotated[bool, typer.Option("--decode", help="config.json: make one token behind --context.")] = False,
    context: Annotated[
        int | None, typer.Option("--context", min=1, metavar="TOKENS", help="config.json: tokens in the KV cache.")
    ] = None,
    tensor_parallel: Annotated[
        int | None, typer.Option("--tp", min=1, metavar="CHIPS", help="config.json: tensor-parallel degree.")
    ] = None,
    link_gbps: Annotated[
        int | None, typer.Option("--link-gbps", min=1, help="With --tp: GB/s from each chip to the next of the ring.")
    ] = None,
    steady_layers: Annotated[
        int | None,
        typer.Option(
            "--steady-layers", min=1, metavar="N", help="config.json: simulate N layers, extrapolate the rest."
        ),
    ] = None,
    roofline: Annotated[
        Path | None, typer.Option("--roofline", metavar="FILE", help="Draw the roofline: .png, .pdf or .svg.")
    ] = None,
    models_list: Annotated[
        Path | None, typer.Option("--models-list", metavar="LIST.json", help="ONNXim's list of models on one chip.")
    ] = None,
    models_dir: Annotated[
        Path | None, typer.Option("--models-dir", metavar="DIR", help="Graphs of the list: DIR/NAME/NAME.onnx.")
    ] = None,
    language: Annotated[
        Path | None, typer.Option("--language", metavar="MODEL.json", help="ONNXim's language mode: its model.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option("--trace", metavar="TRACE.csv", help="ONNXim's language mode: the requests.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", help="Of a list of models, or of the language mode.")
    ] = None,
    max_batch: Annotated[
        int, typer.Option("--max-batch", min=0, help="Language mode: requests in an iteration, 0: no limit.")
    ] = 0,
    train: TrainOption = False,
    optimizer: OptimizerOption = None,
    loss: LossOption = None,
    loss_output: LossOutputOption = None,
    recompute: RecomputeOption = None,
    restore_batch_norm: RestoreBatchNormOption = False,
    energy: EnergyOption = None,
    node_nm: NodeOption = None,
    supply_v: SupplyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Simulate one model on one chip, or several models that share it."""
    from vsim.cli_tenants import OnnximInputs

    inputs = OnnximInputs(models_list, models_dir, language, trace, scheduler, max_batch)
    if inputs.are_given:
        single = {
            "MODEL": model, "--batch": batch != 1, "--dim": dims, "--skip-unknown": skip_unknown, "--mapping": mapping,
            "--prefill": prefill, "--decode": decode, "--context": context, "--tp": tensor_parallel,
            "--link-gbps": link_gbps, "--steady-layers": steady_layers, "--roofline": roofline, "--train": train,
            "--energy": energy, "--node-nm": node_nm, "--supply-v": supply_v,
        }  # fmt: skip
        inputs.check(compat is not None, [name for name, value in single.items() if value])
        _report(inputs.run(_hardware(hw, overrides), max_cycles, idle_skip=not no_idle_skip), as_json)
        return
    if model is None:
        raise UserError("missing argument 'MODEL': an ONNX file, a config.json, or --models-list, or --language")
    from vsim.cli_llm import pass_sizes

    sizes = pass_sizes(
        model,
        # ONNXim reads a prompt as a graph whose past has length 0.
        parse_dims(dims, least=0 if compat else 1),
        prefill=prefill,
        decode=decode,
        context=context,
        tensor_parallel=tensor_parallel,
        link_gbps=link_gbps,
        steady_layers=steady_layers,
    )
    training = training_options(
        model,
        train=train,
        optimizer=optimizer,
        loss=loss,
        loss_output=loss_output,
        recompute=recompute,
        restore_batch_norm=restore_batch_norm,
        inference_only={"--compat": compat, "--skip-unknown": skip_unknown},
    )
    hardware = _hardware(hw, overrides)
    hardware.check_modelled()
    technology = technology_of(energy, node_nm, supply_v)
    if roofline is not None:
        from figures.roofline import check_target

        check_target(roofline)
    from lowering import MappingTable, lower

    program = lower(
        model,
        hardware,
        batch=batch,
        dims=sizes,
        compat=compat and compat.value,
        skip_unknown=skip_unknown,
        mapping=mapping and MappingTable.read(mapping),
        training=training,
    )
    from vsim.api import SimPoint

    point = SimPoint(hw=hardware, program=program, compat=compat is not None, max_cycles=max_cycles, label=program.name)
    content = {"model": model, "hw": hardware.name, **_simulated(point, idle_skip=not no_idle_skip).to_json()}
    if technology is not None:
        from vsim.npu.energy import with_energy

        content = with_energy(content, hardware, program, technology)
    if training is not None:
        content["training"] = totals_by_role(program.layers, content["layers"])
    if compat and hardware.dram.is_table and not hardware.dram.is_onnxim:
        content["warnings"].append(
            f"dram.standard {hardware.dram.standard} of {hardware.name} is none of ONNXim's memories: the original has "
            "no such cycles; give its own configuration with --hw FILE.json"
        )
    try:
        _report(content, as_json)
    finally:
        # The figure comes second: a result without a layer to draw is still printed.
        if roofline is not None:
            from figures.roofline import save_roofline

            save_roofline(content, roofline)


def _simulated(point: SimPoint, *, idle_skip: bool) -> SimResult:
    """Simulate one point on one thread, and say meanwhile how far it is."""
    from vsim import devices
    from vsim.api import Progress, simulate

    devices.one_thread()
    with cli_tables.stderr().status("compiling") as status:

        def advance(progress: Progress) -> None:
            speed = progress.lane_cycles / max(progress.seconds, 1e-9)
            status.update(f"simulating: {progress.lane_cycles:,} cycles, {speed:,.0f} a second")

        [result] = simulate([point], on_progress=advance, idle_skip=idle_skip)
    return result


def _report(content: dict[str, Any], as_json: bool) -> None:
    """Print a result; exit code 1 if it did not end well."""
    if as_json:
        _print_json(content)
    elif "tenants" in content:
        cli_tables.print_mix(content)
    else:
        cli_tables.print_run(content)
    if content["status"] != "ok":
        raise typer.Exit(EXIT_FAILED)


@app.command("explain-compat")
def explain_compat(
    model: Annotated[str, typer.Argument(help="ONNX file, or ONNXim's JSON of a language model.")],
    hw: HwOption,
    overrides: SetOption = None,
    batch: BatchOption = 1,
    dims: DimsOption = None,
    prefill: Annotated[
        int | None, typer.Option("--prefill", min=1, metavar="TOKENS", help="Language model: run a prompt so long.")
    ] = None,
    decode: Annotated[bool, typer.Option("--decode", help="Language model: make one token behind --context.")] = False,
    context: Annotated[
        int | None, typer.Option("--context", min=1, metavar="TOKENS", help="Language model: tokens in the KV cache.")
    ] = None,
    max_cycles: MaxCyclesOption = None,
    figure: Annotated[
        Path | None, typer.Option("--figure", metavar="FILE", help="Draw the table: .png, .pdf or .svg.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show which fault of ONNXim moves which layer by how many cycles, and what the default mode makes of the model."""
    from vsim.cli_explain import comparison_of, print_explanation

    hardware = _hardware(hw, overrides)
    hardware.check_modelled()
    if figure is not None:
        from figures.roofline import check_target

        check_target(figure)
    workload = comparison_of(model, batch, parse_dims(dims, least=0), prefill=prefill, decode=decode, context=context)
    from vsim import devices
    from vsim.api import Progress
    from vsim.explain_compat import explain

    devices.one_thread()
    with cli_tables.stderr().status("compiling") as status:

        def advance(progress: Progress) -> None:
            status.update(f"simulating: {progress.lanes_done} of {progress.lanes_total} lanes done")

        explanation = explain(workload, hardware, max_cycles=max_cycles, on_progress=advance)
    content = {"model": model, "hw": hardware.name, **explanation.to_json()}
    if as_json:
        _print_json(content)
    else:
        print_explanation(content)
    if figure is not None:
        from figures.compat_faults import save_compat_faults

        save_compat_faults(content, figure)


@app.command()
def mix(
    spec: Annotated[Path, typer.Argument(metavar="MIX.yaml", help="Tenants, arrivals, scheduler and hardware.")],
    max_cycles: MaxCyclesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Simulate tenants that share one chip; lowering/mix_spec.py explains the file."""
    from lowering.mix_spec import load_mix

    hardware, mix = load_mix(spec)
    from vsim import devices
    from vsim.mixes import MixPoint, simulate_mixes

    devices.one_thread()
    with cli_tables.stderr().status("simulating"):
        [result] = simulate_mixes([MixPoint(hardware, mix, max_cycles=max_cycles, label=mix.name)])
    content = {"model": str(spec), "hw": hardware.name, "scheduler": mix.scheduler.value, **result.to_json()}
    _report(content, as_json)


@app.command("map")
def map_model(
    model: Annotated[str, typer.Argument(help="ONNX file, or onnx:light_resnet50 for a graph of the onnx package.")],
    hw: HwOption,
    overrides: SetOption = None,
    batch: BatchOption = 1,
    dims: DimsOption = None,
    mapping: MappingOption = None,
    search: Annotated[
        int | None, typer.Option("--search", metavar="K", min=1, help="Try the K best of every layer, cycle by cycle.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write them as a mapping file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show, search and save the tile sizes of a model's matrix layers."""
    hardware, sizes = _hardware(hw, overrides), parse_dims(dims)
    hardware.check_modelled()
    if mapping is not None and search is not None:
        raise UserError("--mapping and --search exclude each other: tile sizes are read, or searched for")
    from lowering import MappingTable, lower
    from lowering.mapping_file import write_mapping_file
    from lowering.mapping_table import shortest

    content: dict[str, Any] = {"model": model, "hw": hardware.name}
    if search is None:
        program = lower(model, hardware, batch=batch, dims=sizes, mapping=mapping and MappingTable.read(mapping))
        layers = [layer for layer in program.layers if layer.mapping]
        content["layers"] = [{"name": item.name, "op": item.op, "lines": list(item.mapping)} for item in layers]
        entries = shortest(line for layer in layers for line in layer.mapping)
    else:
        from dataclasses import asdict

        from vsim import devices
        from vsim.mapping_search import search_mapping

        devices.one_thread()
        with cli_tables.stderr().status("simulating the candidates"):
            found = search_mapping(model, hardware, search, batch=batch, dims=sizes)
        content |= {"default_cycles": found.default_cycles, "cycles": found.cycles}
        content["layers"] = [asdict(layer) for layer in found.layers]
        entries = found.entries
    if as_json:
        _print_json(content)
    else:
        cli_tables.print_mapping(content)
    if out is not None:
        write_mapping_file(out, entries)


@app.command()
def sweep(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="What to sweep; see sweeps/demo.yaml.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the results.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the points of another spec that match.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the points and simulate none.")] = False,
) -> None:
    """Simulate every point of a sweep. Run it again to continue one that was interrupted.

    Exit code 1 when any point did not end with status ok; all results are stored in any case.
    """
    from sweeps.mix_points import expand_mixes
    from sweeps.points import expand
    from sweeps.spec import load_spec

    loaded = load_spec(spec)
    expansion = expand(loaded) if loaded.spec.mix is None else expand_mixes(loaded)
    for warning in expansion.warnings:
        _say(f"warning: {warning}")
    if dry_run:
        for point in expansion.points:
            print(f"{point.index:6d}  {point.digest[:12]}  {point.label}")
        return
    if out is None:
        raise UserError("missing option '--out': the folder for the results")
    from sweeps.runner import run_sweep
    from sweeps.terminal import ProgressReport, print_summary

    try:
        with ProgressReport(cli_tables.stderr()) as progress:
            summary = run_sweep(loaded, expansion, out, resume=resume, observer=progress)
    except KeyboardInterrupt:
        _say("interrupted; every finished point is kept, and the same command continues the sweep")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    print_summary(summary, cli_tables.stdout())
    if summary.failed:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def figures(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Result folder of a sweep.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the figures; DIR/figures by default.")] = None,
    point: Annotated[int | None, typer.Option("--point", min=0, help="Point shown layer by layer.")] = None,
) -> None:
    """Draw the figures of a sweep, or of a serving run, as PDF and PNG."""
    from figures.draw import draw_figures
    from figures.serving import draw_serving
    from sweeps.serving_store import is_serving

    target = out or folder / "figures"
    files, remarks = draw_serving(folder, target) if is_serving(folder) else draw_figures(folder, target, point=point)
    for remark in remarks:
        _say(f"note: {remark}")
    for file in files:
        print(file)


app.command()(cli_serving.serve)
app.command()(cli_compare.compare)


@hw_app.command("list")
def hw_list(as_json: JsonOption = False) -> None:
    """List the hardware presets."""
    presets = [load_hw(name) for name in preset_names()]
    if as_json:
        _print_json([preset.to_data() for preset in presets])
    else:
        cli_tables.print_presets(presets)


@hw_app.command("show")
def hw_show(
    name: Annotated[str, typer.Argument(help="Preset, YAML file or ONNXim JSON file.")],
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print a hardware description in full, as YAML that --hw reads back."""
    hardware = _hardware(name, overrides)
    if as_json:
        _print_json(hardware.to_data())
    else:
        print(hardware.to_yaml(), end="")


@dram_app.command("replay")
def dram_replay(
    traces: Annotated[list[Path], typer.Argument(metavar="TRACE.npz...", help="Recorded request traces.")],
    check: Annotated[
        bool, typer.Option("--check", help="Compare with the recording; exit code 1 if it differs.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Replay recorded request traces through the DRAM controller, all as one batch."""
    from vsim.npu.replay import replay

    reports = replay(traces, check=check)
    if as_json:
        _print_json(reports)
    else:
        cli_tables.print_replay(reports)
    if check and not all(report["equal"] for report in reports):
        raise typer.Exit(EXIT_FAILED)


def _hardware(name: str, overrides: Sequence[str] | None) -> HwConfig:
    hardware = load_hw(name)
    return hardware.with_overrides(parse_overrides(overrides, "dram.channels=8"))


def _print_json(content: object) -> None:
    print(json.dumps(content, indent=1))


def _say(text: str) -> None:
    print(f"vsim: {text}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; every error of the user's is one line on stderr."""
    return _guarded(
        lambda: app(args=list(arguments) if arguments is not None else None, prog_name="vsim", standalone_mode=False)
    )


def _guarded(command: Callable[[], Any]) -> int:
    try:
        code = command()
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except UserError as error:
        return _fail(str(error))
    except typer.TyperException as error:
        return _fail(_usage(error))
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe (head, less) has gone; Python must not complain about it while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(f"{error.filename or 'input or output'}: {error.strerror or error}")


def _usage(error: typer.TyperException) -> str:
    """Return a usage error with the way to more help."""
    message = error.format_message().replace("Value error, ", "").rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{message}; see '{context.command_path} --help'" if context else message


def _fail(message: str) -> int:
    _say(f"error: {' '.join(message.split())}")
    return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
