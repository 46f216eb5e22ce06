"""Tables of costs: closed forms keep the bounds they are made of, measured ones are cycles of the cycle-level model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hwconfigs import UserError, load_hw
from lowering import lower
from lowering.llm.closed_forms import compulsory_traffic
from lowering.llm.configs import read_config
from lowering.llm.inference import Inference
from tests.unit.test_llm_configs import config_path
from vsim.api import SimPoint, simulate
from vsim.bounds import dram_peak_bytes_per_cycle
from vsim.serving.costs import OPERATORS, Costs, Grid, Table, model_costs, operator_of, stack, stored_costs
from vsim.serving.tables import iteration_cycles

MOBILE = load_hw("npu-mobile-8x8")
SERVER = load_hw("npu-server-128x128x4")
TINY_GRID = Grid(tokens=(4, 16, 32), sequences=(1, 4, 8), context=63)

MIDPOINT_ERROR = 0.05
"""Bound on the relative error between grid points, of the tiny model on the mobile chip; its tests say what it is."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two small layers."""
    path = tmp_path_factory.mktemp("serving") / "tiny.json"
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 512}
    path.write_text(json.dumps({"model_type": "llama", **sizes}))
    return path


@pytest.fixture(scope="module")
def measured(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Costs:
    return stored_costs(tmp_path_factory.mktemp("store"), tiny, MOBILE, "measured", grid=TINY_GRID)


def cycles(costs: Costs, *, tokens: int, outputs: int, context: int = 0, pairs: float = 0.0) -> float:
    """Of one iteration, through the machine's own tables."""
    sizes = [np.array([size], np.float32) for size in (tokens, outputs, context, pairs)]
    return float(iteration_cycles(stack([costs]), *sizes)[0])


def test_rows_of_a_llama_belong_to_its_operators():
    assert operator_of("layers.3.attention.q") == "qkv"
    assert operator_of("layers.31.attention [extrapolated]") == "attention"
    assert operator_of("layers.0.attention.out") == "out"
    assert operator_of("layers.0.mlp.up") == "gate_up"
    assert operator_of("layers.0.mlp.down") == "down"
    assert operator_of("layers.0.attention.q.rotary") == "elementwise"
    assert operator_of("lm_head.2 [extrapolated]") == "head"
    assert operator_of("norm") == "elementwise"
    assert operator_of("layers.0.moe.expert3.up") == "experts"


def test_decode_in_closed_form_reads_all_weights_at_the_achievable_bandwidth():
    """Llama-3-8B is bound by its weights: within 5 % of compulsory traffic over 82 % of the bus's peak at 800 MHz."""
    hw = SERVER.with_overrides({"clocks.dram_mhz": 800})
    path = config_path("llama-3-8b")
    costs = model_costs(path, hw, "closed_form", grid=Grid(tokens=(1, 16), sequences=(1, 4), context=4096))
    model = read_config(path).architecture("llama", str(path))
    traffic = compulsory_traffic(model, Inference.decode(4096), hw.precision_bytes).total
    least = traffic / (0.82 * dram_peak_bytes_per_cycle(hw))
    assert cycles(costs, tokens=1, outputs=1, context=4097) == pytest.approx(least, rel=0.05)
    # What the cycle-level model took (tests/benchmarks/RESULTS.md).
    assert cycles(costs, tokens=1, outputs=1, context=4097) == pytest.approx(46_442_341, rel=0.05)


@pytest.fixture(scope="module")
def simulated(tiny: Path) -> dict[str, int]:
    """Cycles until the last operator ends: a grid point as it was measured, and two midpoints of the whole model."""
    passes = {
        "grid point": (1, {"prompt": 16, "steady_layers": 1}),
        "prompt": (1, {"prompt": 24}),
        "decode": (6, {"context": 63}),
    }
    programs = [lower(str(tiny), MOBILE, batch=batch, dims=dims) for batch, dims in passes.values()]
    results = simulate([SimPoint(MOBILE, program) for program in programs])
    return {name: result.layers[-1]["finish_cycle"] for name, result in zip(passes, results, strict=True)}


def test_measured_tables_are_the_simulated_cycles(measured: Costs, simulated: dict[str, int]):
    at = TINY_GRID.tokens.index(16)
    in_tables = sum(table.cycles[at] for table in measured.by_token.values()) + measured.prompt_attention.cycles[at]
    assert set(measured.by_token) == set(OPERATORS)
    assert in_tables < simulated["grid point"]
    # The head is tabled from decodes, which leave the memory in another state.
    assert cycles(measured, tokens=16, outputs=1, pairs=136) == pytest.approx(simulated["grid point"], rel=0.03)


def test_error_between_grid_points_is_small(measured: Costs, simulated: dict[str, int]):
    """A prompt of 24 tokens: -1.7 %. Six decodes behind 63 tokens: +4.3 %."""
    prompt = cycles(measured, tokens=24, outputs=1, pairs=24 * 25 / 2)
    decode = cycles(measured, tokens=6, outputs=6, context=6 * 64)
    assert prompt == pytest.approx(simulated["prompt"], rel=MIDPOINT_ERROR)
    assert decode == pytest.approx(simulated["decode"], rel=MIDPOINT_ERROR)


def test_closed_forms_are_below_the_measured_cycles(tiny: Path, measured: Costs):
    closed = model_costs(tiny, MOBILE, "closed_form", grid=TINY_GRID, efficiency=1.0)
    assert set(closed.by_token["experts"].cycles) == set(measured.by_token["experts"].cycles) == {0.0}
    for operator in set(OPERATORS) - {"experts"}:
        for least, simulated in zip(closed.by_token[operator].cycles, measured.by_token[operator].cycles, strict=True):
            assert 0 < least <= simulated


def test_tables_are_measured_once(tiny: Path, tmp_path: Path):
    grid = Grid(tokens=(2, 4), sequences=(1, 2), context=15)
    first = stored_costs(tmp_path, tiny, MOBILE, "closed_form", grid=grid)
    [file] = tmp_path.iterdir()
    before = file.stat().st_mtime_ns
    assert stored_costs(tmp_path, tiny, MOBILE, "closed_form", grid=grid) == first
    assert file.stat().st_mtime_ns == before
    assert stored_costs(tmp_path, tiny, MOBILE.with_overrides({"dram.channels": 4}), "closed_form", grid=grid) != first
    assert len(list(tmp_path.iterdir())) == 2
    file.write_text("{}")
    with pytest.raises(UserError, match=f"{file.name}: damaged; delete it"):
        stored_costs(tmp_path, tiny, MOBILE, "closed_form", grid=grid)


def test_tables_are_lines_between_and_beyond_their_knots():
    costs = Costs(
        {"a": Table((2, 4, 8), (10, 20, 60)), "b": Table((2, 4, 8), (1, 1, 1))},
        Table((1, 2), (3, 6)), Table.constant(0), Table.constant(0),
    )  # fmt: skip
    longer = Costs({"a": Table((1, 2, 4, 8), (1, 2, 4, 8))}, *[Table.constant(0)] * 3)
    for tokens, expected in ((1, 5 + 1), (3, 15 + 1), (4, 21), (6, 41), (16, 141)):
        assert cycles(costs, tokens=tokens, outputs=0) == expected
        sizes = [np.array([size, size], np.float32) for size in (tokens, 0, 0, 0)]
        assert iteration_cycles(stack([costs, longer]), *sizes).tolist() == [expected, tokens]
    assert cycles(costs, tokens=4, outputs=3) == 21 + 9
    assert cycles(costs, tokens=0, outputs=0) == 0


def test_a_model_that_makes_no_tokens_is_refused():
    with pytest.raises(UserError, match="BERT is an encoder and generates no tokens"):
        model_costs(config_path("bert-base-uncased"), MOBILE, "closed_form")
