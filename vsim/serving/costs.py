"""Cycles of a model's operators against the sizes of an iteration, for one chip: in closed form, or measured.

Both ways lower passes of the model at a grid of sizes: prompts of T tokens give the operators of the layers against T,
and attention of prompts against their (query, key) pairs; decodes of B sequences behind a context give the head against
B, and attention of decodes against the sum of the contexts. The cycles of a row of the lowered program are

* `closed_form`: the largest of the bounds of `vsim.bounds` (array passes of the tiling, vector operations, DRAM bytes
  at the peak of the bus times `DRAM_EFFICIENCY`, NoC, issue); nothing is simulated;
* `measured`: those of a cycle-level run of one layer and one block of the head (`steady_layers=1`).

Keys and values that attention reads and writes are in its rows, as are all weights in those of the products.

What is left out: an iteration is taken as its operators at these sizes, one after the other. So contention between
iterations, weights or caches that stay on the chip, where the cache of a sequence lies in DRAM (pages), the time of the
host, and links between chips cost nothing. Attention depends on sums over the sequences: that sequences differ in
length, and that a chunk behind a long context has another tiling than a prompt with as many pairs, is not seen. Closed
forms have no latencies, row conflicts or waits of one resource for another; they are lower bounds but for the DRAM's
efficiency.

Errors against whole models simulated: measured tables between their grid points, a Llama of two small layers on the
mobile chip, a prompt -1.7 %, a decode of six sequences +4.3 % (tests/unit/test_serving_costs.py). Closed forms, decode
of Llama-3-8B at context 4,096 on the server chip: -0.2 % with 800 MHz HBM2, where `DRAM_EFFICIENCY` comes from, -9.6 %
with 1200 MHz (tests/benchmarks/RESULTS.md has the simulated cycles).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hwconfigs import HwConfig
from hwconfigs.errors import UserError
from lowering import lower
from lowering.llm.architecture import Architecture
from lowering.llm.closed_forms import kv_bytes_per_token
from lowering.llm.configs import model_name, read_config
from lowering.program import Program
from vsim.bounds import bounds_of
from vsim.serving.types import CostTables

OPERATORS = ("qkv", "out", "gate_up", "down", "experts", "elementwise")
"""Operators against tokens. experts: of a mixture, with their router, evenly loaded; elementwise: norms, rotations,
activations, sums, the token table, and everything else."""
DRAM_EFFICIENCY = 0.82
"""Share of the data bus's peak that long streams of weights are taken to reach; refresh and the opening of rows take
the rest. Measured: decode of Llama-3-8B on the server chip with 800 MHz HBM2, 335 of 410 bytes a cycle
(`tests/benchmarks/RESULTS.md`)."""
FORMAT = 1
MOST_CYCLES = 1e18

_PRODUCTS = {
    "attention.q": "qkv", "attention.k": "qkv", "attention.v": "qkv", "attention": "attention", "attention.out": "out",
    "mlp.gate": "gate_up", "mlp.up": "gate_up", "mlp.down": "down",
}  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """Sizes at which operators are tabled, each rising, at least two: tokens of prompts, sequences of decodes behind
    `context` cached tokens each.
    """

    tokens: tuple[int, ...] = (1, 16, 64, 128, 256, 512, 1024, 2048)
    sequences: tuple[int, ...] = (1, 4, 16, 64)
    context: int = 1023

    def __post_init__(self) -> None:
        for name in ("tokens", "sequences"):
            sizes = getattr(self, name)
            if len(sizes) < 2 or sizes[0] < 1 or any(b <= a for a, b in pairwise(sizes)):
                raise UserError(f"grid.{name} = {list(sizes)}: expected two or more rising sizes from 1")


@dataclass(frozen=True)
class Table:
    """Cycles against sizes, rising, two or more. Of a kind of operator, all layers together."""

    sizes: tuple[float, ...]
    cycles: tuple[float, ...]

    def __post_init__(self) -> None:
        values = np.array([self.sizes, self.cycles])
        if values.shape[1] < 2 or not np.isfinite(values).all() or (values < 0).any() or (values > MOST_CYCLES).any():
            raise UserError(f"a table of costs needs two or more sizes and cycles of 0..{MOST_CYCLES:.0e}")
        if (np.diff(values[0]) <= 0).any():
            raise UserError(f"the sizes of a table of costs must rise: {list(self.sizes)}")

    @staticmethod
    def constant(cycles: float) -> Table:
        """The same for every size."""
        return Table((1, 2), (cycles, cycles))


@dataclass(frozen=True)
class Costs:
    """Tables of a model on a chip. by_token: as many as wanted, by operator; the others as in `CostTables`."""

    by_token: Mapping[str, Table]
    head: Table
    decode_attention: Table
    prompt_attention: Table


def model_costs(
    model: Path, hw: HwConfig, kind: str, *, grid: Grid | None = None, efficiency: float = DRAM_EFFICIENCY
) -> Costs:
    """Tables of the model in `model` (config.json). kind: closed_form or measured.

    Raises ModelError for a model that cannot be read or is no decoder, UserError for a grid beyond its positions.
    """
    grid = _fitting(model, grid or Grid())
    passes = _passes(grid)
    programs = [lower(str(model), hw, batch=batch, dims={**dims, "steady_layers": 1}) for batch, dims in passes]
    rows = _bounds(hw, programs, efficiency) if kind == "closed_form" else _measured(hw, programs)
    return _tables(grid, [_by_operator(each) for each in rows])


def stored_costs(
    folder: Path, model: Path, hw: HwConfig, kind: str, *, grid: Grid | None = None, efficiency: float = DRAM_EFFICIENCY
) -> Costs:
    """`model_costs`, kept in a JSON file of the folder under everything that the tables depend on but vsim's sources.

    Raises what `model_costs` does, and UserError for a damaged file.
    """
    grid = _fitting(model, grid or Grid())
    key = {
        "format": FORMAT, "kind": kind, "model": model.read_text(encoding="utf-8"), "hw": hw.to_data(),
        "grid": asdict(grid), "efficiency": efficiency if kind == "closed_form" else None,
    }  # fmt: skip
    text = json.dumps(key, sort_keys=True)
    file = folder / f"costs-{sha256(text.encode()).hexdigest()[:16]}.json"
    if file.exists():
        return _read(file)
    costs = model_costs(model, hw, kind, grid=grid, efficiency=efficiency)
    folder.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps({"of": key, "costs": asdict(costs)}, indent=1), encoding="utf-8")
    part.replace(file)
    return costs


def default_store() -> Path:
    """Where the command line keeps tables: beside the compiled programs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vsim" / "serving"


def kv_tokens_in(model: Path, hw: HwConfig, gib: float) -> int:
    """Tokens whose keys and values, of all layers, fit in so much memory. Raises UserError where none does."""
    tokens = int(gib * 2**30) // kv_bytes_per_token(_architecture(model), hw.precision_bytes)
    if tokens < 1:
        raise UserError(f"{model}: the keys and values of one token do not fit in kv_gib = {gib}")
    return tokens


def check_decoder(model: Path) -> None:
    """Raise UserError for a model that cannot be read or generates no tokens."""
    _architecture(model)


def _architecture(model: Path) -> Architecture:
    architecture = read_config(model).architecture(model_name(model), str(model))
    if not architecture.causal:
        raise UserError(f"{model}: {architecture.family} is an encoder and generates no tokens")
    return architecture


def _fitting(model: Path, grid: Grid) -> Grid:
    """The grid within the model's positions."""
    most = _architecture(model).max_positions
    tokens = tuple(size for size in grid.tokens if size <= most)
    if len(tokens) < 2:
        raise UserError(f"{model}: grid.tokens has no two sizes within the {most} positions of the model")
    return Grid(tokens, grid.sequences, min(grid.context, most - 1))


def _passes(grid: Grid) -> list[tuple[int, dict[str, int]]]:
    """(batch, dims) of every pass: prompts, then decodes."""
    prompts = [(1, {"prompt": size}) for size in grid.tokens]
    return prompts + [(size, {"context": grid.context}) for size in grid.sequences]


Rows = list[tuple[str, float]]
"""Name and cycles of every row of a pass, repeated ones as often as they are."""


def _bounds(hw: HwConfig, programs: Sequence[Program], efficiency: float) -> list[Rows]:
    passes = []
    for program in programs:
        bounds = bounds_of(hw, program).cycles
        bounds = bounds | {"dram": bounds["dram"] / efficiency}
        least = np.max(np.stack(list(bounds.values())), axis=0)
        times = np.ones(len(least))
        for repeat in program.repeats:
            for first, end in repeat.units:
                times[first:end] = repeat.total / len(repeat.units)
        passes.append([(layer.name, float(c)) for layer, c in zip(program.layers, least * times, strict=True)])
    return passes


def _measured(hw: HwConfig, programs: Sequence[Program]) -> list[Rows]:
    from vsim.api import SimPoint, simulate

    results = simulate([SimPoint(hw, program, label=program.name) for program in programs])
    passes = []
    for program, result in zip(programs, results, strict=True):
        if result.status != "ok":
            raise UserError(f"{program.name} on {hw.name}: the measuring run ended with status {result.status}")
        ends = np.array([row["finish_cycle"] for row in result.layers], float)
        cycles = np.diff(ends, prepend=0.0)
        passes.append([(row["name"], float(c)) for row, c in zip(result.layers, cycles, strict=True)])
    return passes


def operator_of(row: str) -> str:
    """The operator of `OPERATORS`, "attention" or "head" that a row of a lowered pass belongs to."""
    name = row.split(" ")[0]
    if name.startswith("lm_head"):
        return "head"
    part = name.removeprefix("layers.").partition(".")[2]
    return "experts" if part.startswith("moe.") else _PRODUCTS.get(part, "elementwise")


def _by_operator(rows: Rows) -> dict[str, float]:
    sums: dict[str, float] = dict.fromkeys((*OPERATORS, "attention", "head"), 0.0)
    for name, cycles in rows:
        sums[operator_of(name)] += cycles
    return sums


def _tables(grid: Grid, passes: Sequence[Mapping[str, float]]) -> Costs:
    prompts, decodes = passes[: len(grid.tokens)], passes[len(grid.tokens) :]

    def table(sizes: Sequence[float], passes: Sequence[Mapping[str, float]], operator: str) -> Table:
        return Table(tuple(map(float, sizes)), tuple(each[operator] for each in passes))

    return Costs(
        by_token={operator: table(grid.tokens, prompts, operator) for operator in OPERATORS},
        head=table(grid.sequences, decodes, "head"),
        decode_attention=table([size * (grid.context + 1) for size in grid.sequences], decodes, "attention"),
        prompt_attention=table([size * (size + 1) / 2 for size in grid.tokens], prompts, "attention"),
    )


def _read(file: Path) -> Costs:
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))["costs"]
        tables = {name: _table(stored[name]) for name in ("head", "decode_attention", "prompt_attention")}
        return Costs(by_token={name: _table(data) for name, data in stored["by_token"].items()}, **tables)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: damaged; delete it to make its tables again") from error


def _table(data: Mapping[str, Sequence[float]]) -> Table:
    return Table(tuple(data["sizes"]), tuple(data["cycles"]))


# -- tables as arrays of the machine


class _Knots(NamedTuple):
    sizes: np.ndarray
    cycles: np.ndarray


def stack(costs: Sequence[Costs]) -> CostTables:
    """Tables of many lanes as arrays, the lane last; shorter ones go on along their last line."""

    def arrays(tables_of: Callable[[Costs], Sequence[Table]]) -> _Knots:
        count = max(len(table.sizes) for each in costs for table in tables_of(each))
        longest = max(len(tables_of(each)) for each in costs)
        lanes = [_padded(tables_of(each), longest, count) for each in costs]
        return _Knots(*(np.stack(part, axis=-1) for part in zip(*lanes, strict=True)))

    tokens = arrays(lambda each: list(each.by_token.values()))
    head = arrays(lambda each: [each.head])
    decode = arrays(lambda each: [each.decode_attention])
    prompt = arrays(lambda each: [each.prompt_attention])
    single = [(knots.sizes, knots.cycles[0]) for knots in (head, decode, prompt)]
    fields: list[Any] = [*tokens, *chain.from_iterable(single)]
    return CostTables(*fields)


def _padded(tables: Sequence[Table], operators: int, count: int) -> _Knots:
    """float32[count] and float32[operators, count]; missing operators cost nothing. All tables have the same sizes."""
    sizes = np.array(tables[0].sizes, float)
    cycles = np.zeros((operators, len(sizes)))
    for index, table in enumerate(tables):
        if table.sizes != tables[0].sizes:
            raise UserError("the tables of a model's operators differ in their sizes")
        cycles[index] = table.cycles
    missing = count - len(sizes)
    steps = np.arange(1, missing + 1)
    slope = (cycles[:, -1] - cycles[:, -2]) / (sizes[-1] - sizes[-2])
    # A step as wide as the last segment keeps the line exact.
    width = sizes[-1] - sizes[-2]
    sizes = np.concatenate([sizes, sizes[-1] + steps * width])
    cycles = np.concatenate([cycles, cycles[:, -1:] + slope[:, None] * steps * width], axis=1)
    return _Knots(sizes.astype(np.float32), cycles.astype(np.float32))
