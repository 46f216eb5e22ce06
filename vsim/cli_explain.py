"""`vsim explain-compat`: which workload is compared, and how the comparison is printed for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from hwconfigs.errors import UserError
from lowering.llm.configs import is_config
from lowering.models import load_model, resolve
from lowering.onnxim.comparison import Comparison, LanguageComparison, OnnxComparison
from vsim import cli_tables
from vsim.explain_compat import DOES_NOT_OCCUR


def comparison_of(
    model: str, batch: int, dims: Mapping[str, int], *, prefill: int | None, decode: bool, context: int | None
) -> Comparison:
    """The workload that the options name. Raises UserError for options that contradict each other or the model."""
    if not is_config(model):
        if prefill is not None or decode or context is not None:
            raise UserError(f"--prefill, --decode and --context go with ONNXim's language models (.json), not {model}")
        return OnnxComparison(load_model(model), batch, dims)
    if dims:
        raise UserError(f"--dim {next(iter(dims))}: a language model takes --prefill, or --decode with --context")
    path = resolve(model)
    if prefill is not None and not decode:
        return LanguageComparison(path, batch, prompt=prefill, context=context or 0)
    if decode and prefill is None and context is not None:
        return LanguageComparison(path, batch, prompt=1, context=context)
    raise UserError("say what a language model is to run: --prefill TOKENS, or --decode --context TOKENS")


def print_explanation(content: Mapping[str, Any]) -> None:
    """Print what `vsim explain-compat --json` prints: the table, its columns explained, and what has none."""
    console = cli_tables.stdout()
    console.print(_table(content))
    console.print("Each column: cycles moved when that fault alone is repaired; they need not add up.")
    for fault in content["faults"]:
        note = "; the default mode keeps this" if fault["kept_in_default_mode"] else ""
        console.print(f"{fault['id']}: {fault['behaviour']}. Repaired: {fault['repair']}{note}.")
    console.print(
        "all: every repair that the default mode has, together; left: from there to the default mode, by its own"
    )
    console.print("mapping, schedule and fusions. A row holds the nodes that the default mode fuses into one layer.")
    reason_known = [fault["id"] for fault in content["absent"] if fault["reason"] == DOES_NOT_OCCUR]
    console.print(f"do not occur in this model: {', '.join(reason_known) or 'none'}")
    for fault in content["absent"]:
        if fault["id"] not in reason_known:
            console.print(f"{fault['id']}: no column: {fault['reason']}")
    if content["corrected_hardware"]:
        changed = ", ".join(f"{key}={value}" for key, value in content["corrected_hardware"].items())
        console.print(f"hardware with Q9, Q10 repaired and in the default mode: {changed}")
    if content["onnxim_aborts"]:
        console.print("ONNXim itself aborts on this model; the column ONNXim is one with Q3 repaired:", style="bold")
        for warning in content["onnxim_aborts"]:
            console.print(warning)
    total = content["total"]
    console.print(
        f"{content['model']} on {content['hw']}: {total['original_cycles']:,} cycles as ONNXim, "
        f"{total['default_cycles']:,} in default mode",
        style="bold",
    )
    for warning in content["warnings"]:
        cli_tables.stderr().print(f"vsim: warning: {warning}")


def _table(content: Mapping[str, Any]) -> Table:
    faults = [fault["id"] for fault in content["faults"]]
    table = Table(title="Core cycles", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", overflow="fold")
    for name in ("ONNXim", *faults, "all", "left", "default"):
        table.add_column(name, justify="right")
    for layer in content["layers"]:
        _add(table, faults, layer)
    table.add_section()
    _add(table, faults, content["total"])
    return table


def _add(table: Table, faults: list[str], layer: Mapping[str, Any]) -> None:
    others = [name for name in layer["layers"] if name != layer["name"]] if layer["name"] in layer["layers"] else []
    moved = [layer["moved_cycles"][fault] for fault in faults]
    table.add_row(
        " + ".join([layer["name"], *others]),
        f"{layer['original_cycles']:,}",
        *(f"{cycles:+,}" if cycles else "" for cycles in (*moved, layer["together_cycles"], layer["remaining_cycles"])),
        f"{layer['default_cycles']:,}",
    )
