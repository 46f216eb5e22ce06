"""Mixes of the corrected mode: a lone tenant is the single run, partitions do not meet, files are read and checked."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from hwconfigs import HwConfig
from hwconfigs.errors import UserError
from lowering import lower
from lowering.mix import Scheduler
from lowering.mix_placement import PlacedPrograms, Workload, place_workloads
from lowering.mix_spec import load_mix
from lowering.program import Col, Op, Program, Repeat
from tests import models
from tests.mixes import CORES, HW
from tests.sweep_results import save_model
from vsim.api import SimPoint, simulate
from vsim.cli import main
from vsim.mixes import MixPoint, simulate_mixes

CHIP = HW.with_overrides({"dram.scheduler": "fr_fcfs"})


def lowered(folder: Path, name: str, size: tuple[int, int, int], hw: HwConfig) -> Program:
    path = folder / f"{name}.onnx"
    save_model(models.mlp(size[0], size[1], size[2], size[0]), path)
    return lower(path, hw)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mixes")


@pytest.fixture(scope="module")
def program(folder: Path) -> Program:
    return lowered(folder, "whole", (48, 32, 48), CHIP)


@pytest.fixture(scope="module")
def on_two(folder: Path) -> Program:
    return lowered(folder, "half", (48, 32, 48), CHIP.with_overrides({"cores.count": 2}))


@pytest.fixture(scope="module")
def results(program: Program, on_two: Program) -> dict:
    """Mixes by name, with their results, side by side."""
    mixes = {
        "alone": place_workloads("alone", [Workload("a", program, (0,))], CHIP, Scheduler.SIMPLE),
        "late": place_workloads("late", [Workload("a", program, (5000,))], CHIP, Scheduler.TIME_MULTIPLEX),
        "queue": place_workloads("queue", [Workload("a", program, (0, 0, 10))], CHIP, Scheduler.SIMPLE),
        "two": place_workloads(
            "two", [Workload("a", program, (0,)), Workload("b", program, (0,))], CHIP, Scheduler.TIME_MULTIPLEX
        ),
        "apart": place_workloads(
            "apart",
            [Workload("a", on_two, (0,), (0, 1)), Workload("b", on_two, (0,), (2, 3))],
            CHIP,
            Scheduler.PARTITION_CPU,
        ),
        "dynamic": place_workloads(
            "dynamic", [Workload("a", program, (0,), (), 1), Workload("b", program, (0,))], CHIP, Scheduler.DYNAMIC
        ),
        "deadline": place_workloads(
            "deadline",
            [Workload("a", program, (0,)), Workload("b", program, (0,), deadline_cycles=1)],
            CHIP,
            Scheduler.EARLIEST_DEADLINE,
        ),
    }
    return dict(zip(mixes, simulate_mixes([MixPoint(CHIP, mix) for mix in mixes.values()]), strict=True))


def test_a_lone_tenant_is_the_single_run(results: dict, program: Program):
    [single] = simulate([SimPoint(CHIP, program)])
    alone = results["alone"]
    keys = ("start_cycle", "finish_cycle", "load_bytes", "store_bytes")
    assert alone.status == "ok"
    assert [[layer[key] for key in keys] for layer in alone.layers] == [
        [layer[key] for key in keys] for layer in single.layers
    ]
    assert (alone.cycles, alone.dram, alone.cores) == (single.cycles, single.dram, single.cores)
    late = results["late"]
    assert late.tenants[0]["start_cycle"] == 5000
    assert late.tenants[0]["finish_cycle"] == 5000 + alone.tenants[0]["finish_cycle"]


def test_requests_are_served_in_turn(results: dict):
    tenants = results["queue"].tenants
    for earlier, later in pairwise(tenants):
        assert earlier["finish_cycle"] <= later["start_cycle"]


def test_tenants_share_the_chip(results: dict):
    alone = results["alone"].tenants[0]["finish_cycle"]
    assert all(alone < tenant["finish_cycle"] < 3 * alone for tenant in results["two"].tenants)


def test_partitions_work_side_by_side(results: dict):
    first, second = results["apart"].tenants
    assert first["start_cycle"] == second["start_cycle"] == 0
    assert all(core["compute_active_cycles"] > 0 for core in results["apart"].cores)


def test_priority_is_served_first(results: dict):
    """The other only gets tiles that it leaves: it loses less to their traffic than the other loses to its work."""
    slow, fast = results["dynamic"].tenants
    alone = results["alone"].tenants[0]["finish_cycle"]
    assert results["dynamic"].status == "ok"
    lost = fast["finish_cycle"] - alone
    assert 0 <= lost < slow["finish_cycle"] - fast["finish_cycle"]
    assert results["dynamic"].dram["read_bytes"] == 2 * results["alone"].dram["read_bytes"]
    assert fast["finish_cycle"] < 1.5 * alone


def test_the_earliest_deadline_is_the_highest_priority(results: dict):
    assert results["deadline"].tenants[1]["deadline_cycle"] == 1
    assert results["deadline"].layers == results["dynamic"].layers


def test_a_layer_need_not_have_tiles_for_every_core(folder: Path):
    """A single row is a single tile, which stands in the one list of scheduler dynamic."""
    small = lowered(folder, "small", (1, 8, 8), CHIP)
    assert (small.schedule[0, :, 1] - small.schedule[0, :, 0]).tolist().count(0) == CORES - 1
    mix = place_workloads("m", [Workload("a", small, (0,))], CHIP, Scheduler.DYNAMIC)
    [tenant] = mix.tenants
    assert tenant.program.schedule.shape[1] == 1
    assert sorted(tenant.program.tiles.tolist()) == sorted(small.tiles.tolist())


def test_deadlines_count_from_arrivals_and_go_before_their_absence(folder: Path, program: Program):
    """Cycles are nanoseconds here; b's two requests are due first, a's and c's later, c without deadline last."""
    text = MIX.replace("time_multiplex", "earliest_deadline").replace("requests: 3}}", "requests: 3}, deadline_us: 9}")
    _, mix = load_mix(write(folder, text.replace("seed: 4}}", "seed: 4}, deadline_us: 1.5}")))
    due = {(tenant.name, tenant.arrival_cycle): tenant.deadline_cycle for tenant in mix.tenants}
    assert (due["a", 0], due["a", 2500]) == (9000, 11500)
    assert due["c", 0] is None
    in_order = sorted(mix.tenants, key=lambda tenant: mix.priorities[tenant.position])
    assert [tenant.name for tenant in in_order if tenant.name != "b"] == ["a", "a", "a", "c"]
    assert all(tenant.deadline_cycle == tenant.arrival_cycle + 1500 for tenant in in_order if tenant.name == "b")
    assert sorted(mix.priorities) == list(range(6))


def blocks(program: Program) -> set[int]:
    memory = program.rows[(program.rows[:, Col.OP] == Op.LOAD) | (program.rows[:, Col.OP] == Op.STORE)]
    return set(memory[:, Col.FIRST_BLOCK].tolist())


def test_every_workload_has_memory_of_its_own(program: Program):
    workloads = [Workload("a", program, (0, 7)), Workload("b", program, (3,))]
    first, other, second = place_workloads("m", workloads, CHIP, Scheduler.SIMPLE).tenants
    assert (first.name, other.name, second.name) == ("a", "b", "a")
    assert first.program is second.program
    # 7 cycles at 1 GHz.
    assert (first.request_time_ms, second.request_time_ms) == (0.0, 7e-6)
    assert max(blocks(first.program)) < min(blocks(other.program))


MIX = """
hw: npu-mobile-8x8x4
set: {dram.standard: simple}
scheduler: time_multiplex
tenants:
  - {name: a, model: whole.onnx, arrival: {interval_us: 2.5, requests: 3}}
  - {name: b, model: whole.onnx, arrival: {poisson_us: 3, requests: 2, seed: 4}}
  - {name: c, model: whole.onnx}
"""


def write(folder: Path, text: str = MIX) -> Path:
    path = folder / "mix.yaml"
    path.write_text(text)
    return path


def test_mix_files(folder: Path, program: Program):
    hw, mix = load_mix(write(folder))
    assert (hw.cores.count, mix.scheduler, mix.lists_rotate) == (4, Scheduler.TIME_MULTIPLEX, False)
    of_a = [tenant.arrival_cycle for tenant in mix.tenants if tenant.name == "a"]
    assert of_a == [0, 2500, 5000]
    assert [tenant.arrival_cycle for tenant in mix.tenants] == sorted(tenant.arrival_cycle for tenant in mix.tenants)
    assert load_mix(write(folder))[1].tenants[3].arrival_cycle == mix.tenants[3].arrival_cycle
    assert program.name == "whole"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("time_multiplex", "fair", r"mix.yaml:4: scheduler = 'fair'"),
        ("time_multiplex", "spatial_split", "scheduler 'spatial_split' needs --compat onnxim"),
        ("time_multiplex", "partition_cpu", "tenant a: with scheduler partition_cpu every tenant has cores"),
        ("requests: 3", "count: 3", "unknown key 'tenants.0.arrival.count'"),
        (", requests: 3", "", "requests goes with interval_us"),
        (", seed: 4", "", "seed goes with poisson_us"),
        ("whole.onnx}", "gone.onnx}", "gone.onnx: no such file"),
        ("requests: 3", "requests: 64", "67 requests; at most 64"),
        ("npu-mobile-8x8x4", "npu-mobil", "npu-mobil"),
        (
            "{name: c, model: whole.onnx}",
            "{name: c, model: whole.onnx, cores: [1]}",
            "tenant c: cores are given with scheduler partition_cpu only",
        ),
    ],
)
def test_bad_mix_files_are_named(folder: Path, program: Program, old: str, new: str, message: str):
    with pytest.raises(UserError, match=message):
        load_mix(write(folder, MIX.replace(old, new)))


def test_core_sets_must_not_overlap(on_two: Program):
    for cores, message in (((1, 2), "both have core 1"), ((3, 4), "core 4 of 4")):
        workloads = [Workload("a", on_two, (0,), (0, 1)), Workload("b", on_two, (0,), cores)]
        with pytest.raises(UserError, match=message):
            place_workloads("m", workloads, CHIP, Scheduler.PARTITION_CPU)


def test_the_command(folder: Path, program: Program, capsys: pytest.CaptureFixture[str]):
    assert main(["mix", str(write(folder)), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["status"], result["scheduler"]) == ("ok", "time_multiplex")
    assert sorted(tenant["name"] for tenant in result["tenants"]) == ["a", "a", "a", "b", "b", "c"]
    assert all(tenant["start_cycle"] >= tenant["arrival_cycle"] for tenant in result["tenants"])


def test_cores_are_dealt_out_evenly(folder: Path, program: Program):
    """The first tenants get one more; other schedulers take no notice."""
    text = MIX.replace("scheduler: time_multiplex", "scheduler: partition_cpu\ncore_split: even")
    _, mix = load_mix(write(folder, text))
    assert mix.core_partitions == (0, 0, 1, 2)
    _, mix = load_mix(write(folder, MIX + "core_split: even\n"))
    assert mix.core_partitions == load_mix(write(folder))[1].core_partitions
    with pytest.raises(UserError, match=r"mix.yaml: 3 tenants cannot have cores of their own: the chip has 2"):
        load_mix(write(folder, text.replace("set: {", "set: {cores.count: 2, ")))
    with pytest.raises(UserError, match=r"core_split and cores of tenants exclude each other"):
        load_mix(write(folder, text.replace("{name: c,", "{name: c, cores: [1],")))


def test_extrapolated_programs_are_no_tenants(program: Program):
    """They hold some of their layers only."""
    short = replace(program, repeats=(Repeat("layer.", ((0, 1),), 3),))
    with pytest.raises(UserError, match="tenant a: steady_layers are for single models"):
        place_workloads("m", [Workload("a", short, (0,))], CHIP, Scheduler.SIMPLE)


def test_mixes_share_placed_programs(program: Program):
    placed = PlacedPrograms()

    def programs(*workloads: Program, scheduler: Scheduler = Scheduler.SIMPLE) -> list[Program]:
        mix = place_workloads("m", [Workload("a", each, (0,)) for each in workloads], CHIP, scheduler, placed)
        return [tenant.program for tenant in mix.tenants]

    first, second = programs(program, program)
    assert first is not second
    again, after = programs(program, program)
    assert again is first
    assert after is second
    [pooled] = programs(program, scheduler=Scheduler.DYNAMIC)
    assert pooled is not first
    assert programs(program, scheduler=Scheduler.DYNAMIC)[0] is pooled
