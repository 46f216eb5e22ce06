"""Compatibility mode against every recorded run of one model by ONNXim: `python -m tests.golden.onnxim_cases`.

The rows of `onnxim.md` section 16 and the exact cases of `cases.json` (`onnxim_reference`) are simulated, those of one
machine shape side by side, and compared: layer names, layer finishes, total, and requests and row states where they
are recorded. A line a run says whether it is equal, or what differs first. Exit code 1 when one differs, 2 for a name
that is none.

The mapping file of `resnet18_mapped` is ONNXim's own (`models/resnet18/resnet18.mapping` of its repository) and is not
shipped: its case is left out unless `--mappings FOLDER` names a folder that holds it as `resnet18_mapped.mapping`.
"""

from __future__ import annotations

import argparse
import fnmatch
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hwconfigs import HwConfig
from lowering.onnxim import lower_onnxim
from lowering.onnxim.language import Request, lower_language, plan, read_language_model, read_trace
from tests import models
from tests.conftest import SHARED
from tests.golden.onnxim_reference import (
    CONFIGURATIONS,
    LANGUAGE_ROWS,
    ROWS,
    TRANSFORMER_BLOCK,
    Case,
    GoldenRow,
    LanguageRow,
    load_cases,
)
from vsim.api import SimPoint, SimResult, simulate

TRACES = {
    "T_lang_opt125m_input": "input.csv",
    "T_lang_opt125m_short": "short.csv",
    "T_lang_opt125m_short_iter": "short.csv",
    "T_lang_llama3_8b_prefill8": "llama1.csv",
}
"""Traces of the language cases; the recording says input.csv of all of them."""
MAPPED = ("T_resnet18_readme_mapping",)
"""Cases whose mapping file is not shipped."""
NAMELESS = "(attention qkv projection)"
"""What the recording calls the matrix product that ONNXim puts before an Attention and gives no name."""


@dataclass(frozen=True)
class Recorded:
    """A run to repeat, and what is recorded of it.

    finishes: cycle at which a layer finished, by its index; layers: names of all layers, where they are known.
    dram: counters by their names in `SimResult.dram`.
    """

    name: str
    point: SimPoint
    finishes: Mapping[int, int]
    total: int
    dram: Mapping[str, int]
    layers: tuple[str, ...] = ()

    def first_difference(self, result: SimResult) -> str | None:
        """What differs first, in words; None when all is equal."""
        names = [layer["name"] for layer in result.layers]
        if result.status != "ok":
            return f"status {result.status}"
        if self.layers and len(names) != len(self.layers):
            return f"{len(names)} layers, recorded {len(self.layers)}"
        for index, theirs in enumerate(self.layers):
            if names[index] != theirs and theirs != NAMELESS:
                return f"layer {index} is {names[index]}, recorded {theirs}"
        for index, cycle in self.finishes.items():
            if result.layers[index]["finish_cycle"] != cycle:
                return f"layer {names[index]} finishes at {result.layers[index]['finish_cycle']}, recorded {cycle}"
        figures = {"total": (result.cycles, self.total)}
        figures |= {name: (result.dram[name], count) for name, count in self.dram.items()}
        return next(
            (f"{key} {ours}, recorded {theirs}" for key, (ours, theirs) in figures.items() if ours != theirs), None
        )


def of_row(row: GoldenRow) -> Recorded:
    """A row of a single layer, a perceptron or a convolution. Of a fixed-latency memory no row states are recorded."""
    point = SimPoint(row.hw, lower_onnxim(row.model, row.hw), compat=True, label=str(row))
    states = zip(("row_hits", "row_misses", "row_conflicts"), row.row_states, strict=True)
    return Recorded(
        str(row), point, dict(enumerate(row.finishes)), row.total, dict(states) if any(row.row_states) else {}
    )


def of_language_row(row: LanguageRow) -> Recorded:
    """A row of the language mode: all layers, or the last one of every iteration."""
    iterations = plan(row.requests, row.scheduler, 0, row.finishes if row.scheduler == "iter" else ())
    hw = CONFIGURATIONS["server"]
    program = lower_language(row.model, iterations, hw)
    layers = list(range(program.n_layers))
    if row.scheduler == "iter":
        layers = [index - 1 for index, release in enumerate(program.releases) if index and release] + layers[-1:]
    point = SimPoint(hw, program, compat=True, label=row.name)
    return Recorded(f"language {row.name}", point, dict(zip(layers, row.finishes, strict=True)), row.total, {})


def of_transformer_block() -> Recorded:
    """The row of the attention block."""
    hw = CONFIGURATIONS["mobile_c4"]
    point = SimPoint(hw, lower_onnxim(models.transformer_block(64, 128, 2, 256), hw), compat=True, label="block")
    return Recorded("transformer_block", point, dict(enumerate(TRANSFORMER_BLOCK)), 364584, {})


def of_case(case: Case, hw: HwConfig, model: Path | None = None) -> Recorded:
    """A case of `cases.json` on its hardware; model: another copy of its graph, beside a mapping file."""
    entry = case.data["models_list"][0]
    if case.data["mode"] == "language":
        requests: tuple[Request, ...] = read_trace(case.model_path.parents[2] / "traces" / TRACES[case.name])
        max_batch = entry.get("scheduler_config", {}).get("max_batch_size", 0)
        iterations = plan(requests, entry["scheduler"], max_batch, ())
        program = lower_language(read_language_model(case.model_path), iterations, hw)
    else:
        program = lower_onnxim(model or case.model_path, hw, batch=case.batch, dims=case.dims)
    names = {"mem_reads": "reads", "mem_writes": "writes"} | {
        f"dram_row_{state}": f"row_{state}" for state in ("hits", "misses", "conflicts")
    }
    counted = {names[key]: count for key, count in (case.data["dram"] or {}).items() if count is not None}
    point = SimPoint(hw, program, compat=True, label=case.name)
    layers = tuple(layer["name"] for layer in case.data["layers"])
    return Recorded(case.name, point, dict(enumerate(case.finishes)), case.data["total_cycles"], counted, layers)


def catalogue(scratch: Path, mappings: Path | None = None) -> dict[str, Callable[[], Recorded]]:
    """What makes each run, by its name: lowering all of them takes a minute.

    scratch: folder for configurations and graphs; mappings: folder of `<model>.mapping`, for the cases in `MAPPED`.
    """
    makers: dict[str, Callable[[], Recorded]] = {str(row): partial(of_row, row) for row in ROWS}
    makers |= {f"language {row.name}": partial(of_language_row, row) for row in LANGUAGE_ROWS}
    makers["transformer_block"] = of_transformer_block
    if SHARED is not None:
        for case in [*load_cases(SHARED).values(), *load_cases(SHARED, mode="language").values()]:
            makers[case.name] = partial(_make, case, scratch, mappings if case.name in MAPPED else None)
    if mappings is None:
        return {name: maker for name, maker in makers.items() if name not in MAPPED}
    return makers


def _make(case: Case, scratch: Path, mappings: Path | None) -> Recorded:
    model = case.model_path
    if mappings is not None:
        model = Path(shutil.copy(model, scratch))
        shutil.copy(mappings / f"{model.stem}.mapping", scratch)
    return of_case(case, case.hw(scratch), model)


def compare(runs: Sequence[Recorded], lanes: int | None = None, report: bool = False) -> dict[str, str]:
    """Simulate the runs; the first difference of each that is not equal, by name. report: print a line a run."""
    differences: dict[str, str] = {}
    started = time.perf_counter()

    def keep(index: int, result: SimResult) -> None:
        run = runs[index]
        difference = run.first_difference(result)
        if difference is not None:
            differences[run.name] = difference
        if report:
            seconds = time.perf_counter() - started
            print(f"{run.name:<45} {result.cycles:>10,} cycles {seconds:8.0f} s  {difference or 'equal'}", flush=True)

    simulate([run.point for run in runs], on_result=keep, lanes=lanes)
    if report:
        seconds, cycles = time.perf_counter() - started, sum(run.total for run in runs)
        print(
            f"{len(runs) - len(differences)} of {len(runs)} runs equal; {cycles:,} cycles, {cycles / seconds:,.0f} /s"
        )
    return differences


def main() -> int:
    """Run the cases asked for, or all; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden.onnxim_cases", description=__doc__)
    parser.add_argument(
        "--case", action="append", metavar="NAME", help="a row or case; a pattern with * is all of them"
    )
    parser.add_argument("--not", action="append", default=[], dest="but", metavar="NAME", help="leave these out")
    parser.add_argument("--list", action="store_true", help="print the names and run nothing")
    parser.add_argument("--lanes", type=int, help="runs side by side; left out, as vsim does it")
    parser.add_argument("--mappings", type=Path, metavar="FOLDER", help="folder of mapping files")
    options = parser.parse_args()
    if SHARED is None:
        print("no recorded cases: ../shared is not there; only the rows of section 16 are run", file=sys.stderr)
    with tempfile.TemporaryDirectory() as scratch:
        makers = catalogue(Path(scratch), options.mappings)
        patterns = options.case or ["*"]
        unknown = [pattern for pattern in (*patterns, *options.but) if not fnmatch.filter(makers, pattern)]
        if unknown:
            print(f"no recorded run is called {', '.join(unknown)}; --list names all", file=sys.stderr)
            return 2
        names = [
            name
            for name in makers
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
            and not any(fnmatch.fnmatchcase(name, pattern) for pattern in options.but)
        ]
        if options.list:
            print("\n".join(names))
            return 0
        return int(bool(compare([makers[name]() for name in names], options.lanes, report=True)))


if __name__ == "__main__":
    sys.exit(main())
