"""Requests as ONNXim launches them: order, arrival, places in memory, lists of tiles; and the files that name them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hwconfigs.errors import UserError
from lowering.mix import Scheduler
from lowering.onnxim import lower_onnxim
from lowering.onnxim.mix import Request, launch_order, lower_onnxim_mix
from lowering.onnxim.models_list import read_models_list
from lowering.program import Col, Op, Program
from tests import models
from tests.golden.onnxim_reference import CONFIGURATIONS
from tests.sweep_results import save_model

SERVER = CONFIGURATIONS["server"]
OPTIONS = {"scheduler": "partition_cpu", "layout": "NHWC", "dram_type": "ramulator2", "icnt_type": "simple"}
PARTITIONED = SERVER.with_overrides({"onnxim": OPTIONS | {"partition": [0, 1, 1, 1]}})
MLP = models.mlp(256, 256, 1024, 2048)


def blocks(program: Program) -> set[int]:
    """First memory blocks of its loads and stores."""
    memory = program.rows[(program.rows[:, Col.OP] == Op.LOAD) | (program.rows[:, Col.OP] == Op.STORE)]
    return set(memory[:, Col.FIRST_BLOCK].tolist())


@pytest.mark.parametrize(
    ("times", "order"),
    [
        ([5, 3, 4], [1, 2, 0]),
        ([0, 0], [0, 1]),
        # As std::push_heap and std::pop_heap of GNU's C++ library order equal times.
        ([0] * 6, [0, 2, 5, 4, 1, 3]),
        ([3, 1, 2, 1, 1, 0, 0], [5, 6, 1, 3, 4, 2, 0]),
    ],
    ids=str,
)
def test_launch_order(times: list[int], order: list[int]):
    assert launch_order(times) == order


@pytest.mark.parametrize(
    ("milliseconds", "cycle"), [(0.0, 0), (1e-6, 0), (1.5e-6, 1), (2e-6, 1), (0.003, 2999), (1.0, 999_999)]
)
def test_a_request_arrives_in_the_tick_at_whose_end_its_time_has_come(milliseconds: float, cycle: int):
    mix = lower_onnxim_mix([Request("A", MLP, milliseconds)], SERVER, Scheduler.SIMPLE)
    assert mix.tenants[0].arrival_cycle == cycle


def test_the_first_of_several_lies_where_it_lies_alone():
    mix = lower_onnxim_mix([Request("A", MLP), Request("A", MLP)], SERVER, Scheduler.SIMPLE)
    first, second = (blocks(tenant.program) for tenant in mix.tenants)
    assert first == blocks(lower_onnxim(MLP, SERVER))
    # Weights are shared, inputs and results are not.
    assert first & second and first - second and second - first


def test_memory_is_given_out_in_order_of_launch():
    requests = [Request("A", MLP, 1.0), Request("A", MLP)]
    late, early = lower_onnxim_mix(requests, SERVER, Scheduler.SIMPLE).tenants[::-1]
    assert (early.position, late.position) == (1, 0)
    assert max(blocks(early.program)) < max(blocks(late.program))


def test_layers_wait_for_those_whose_results_they_read():
    [tenant] = lower_onnxim_mix([Request("R", models.resnet18())], SERVER, Scheduler.SIMPLE).tenants
    program, names = tenant.program, [layer.name for layer in tenant.program.layers]
    consumers = {names[index]: [names[other] for other in waiting] for index, waiting in enumerate(program.consumers)}
    assert consumers["layer1.1.add.relu"] == ["layer2.0.conv1", "layer2.0.downsample"]
    assert consumers["layer2.0.downsample"] == ["layer2.0.add"] == consumers["layer2.0.conv2"]
    assert consumers["fc"] == []
    assert {name for name, unbound in zip(names, program.unbound, strict=True) if not unbound} == {
        layer.name for layer in program.layers if layer.op in ("Conv", "Gemm")
    }


@pytest.mark.parametrize(
    ("scheduler", "lists"),
    [(Scheduler.SIMPLE, (4, 4)), (Scheduler.PARTITION_CPU, (1, 3)), (Scheduler.SPATIAL_SPLIT, (1, 1))],
)
def test_a_list_for_every_core_that_a_tenant_may_use(scheduler: Scheduler, lists: tuple[int, int]):
    mix = lower_onnxim_mix([Request("A", MLP), Request("A", MLP, partition=1)], PARTITIONED, scheduler)
    assert tuple(tenant.program.n_cores for tenant in mix.tenants) == lists
    tiles = {int((t.program.schedule[..., 1] - t.program.schedule[..., 0]).sum()) for t in mix.tenants}
    assert len(tiles) == 1


def test_requests_that_cannot_run_are_refused():
    with pytest.raises(UserError, match="at least one request"):
        lower_onnxim_mix([], SERVER, Scheduler.SIMPLE)
    with pytest.raises(UserError, match=r"model A: partition_id = 7, but no core is in that partition.*are in: 0, 1"):
        lower_onnxim_mix([Request("A", MLP, partition=7)], PARTITIONED, Scheduler.PARTITION_CPU)
    with pytest.raises(UserError, match="scheduler 'dynamic' is none of ONNXim's"):
        lower_onnxim_mix([Request("A", MLP)], SERVER, Scheduler.DYNAMIC)
    with pytest.raises(UserError, match="model A: request_time = -1"):
        lower_onnxim_mix([Request("A", MLP, -1.0)], SERVER, Scheduler.SIMPLE)
    with pytest.raises(UserError, match="model A: output_seq_len"):
        lower_onnxim_mix([Request("A", MLP, dims={"output_seq_len": 9})], SERVER, Scheduler.SIMPLE)


# --------------------------------------------------------------------------------------------------------------
# Model lists
# --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Graphs `mlp`, and `tokens` with a dimension of that name, as ONNXim wants them."""
    tokens = models.mm(8, 64, 64)
    tokens.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "tokens"
    for name, model in (("mlp", MLP), ("tokens", tokens)):
        (tmp_path / name).mkdir()
        save_model(model, tmp_path / name / f"{name}.onnx")
    return tmp_path


def write_list(folder: Path, content: Any) -> Path:
    path = folder / "list.json"
    path.write_text(json.dumps(content))
    return path


def test_model_lists_are_read(folder: Path):
    (folder / "tokens" / "tokens.mapping").write_text("[T] N1 C64 M64 - [O] N1 C1 M1 - [I] N8 C64 M64\n")
    entries = [
        {"name": "mlp", "request_time": 0.5, "partition_id": 1},
        {"name": "tokens", "batch_size": 2, "tokens": 8, "seq_len": 3, "nr_atten": -1},
        {"name": "mlp"},
    ]
    requests = read_models_list(write_list(folder, {"models": entries}), folder)
    assert [(request.name, request.request_time_ms, request.partition) for request in requests] == [
        ("mlp", 0.5, 1), ("tokens", 0.0, 0), ("mlp", 0.0, 0),
    ]  # fmt: skip
    assert (requests[1].batch, requests[1].dims, len(requests[1].given)) == (2, {"tokens": 8}, 1)
    assert requests[0].model is requests[2].model
    bare = read_models_list(write_list(folder, entries), folder)
    assert [request.name for request in bare] == [request.name for request in requests]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "models"),
        ([{"request_time": 0}], "key 'models.0.name' is missing"),
        ([{"name": "../mlp"}], "models.0.name"),
        ([{"name": "nothing"}], "nothing.onnx: no such file"),
        ([{"name": "mlp", "request_time": "soon"}], "models.0.request_time = 'soon'"),
        ([{"name": "mlp", "request_time": -1}], "models.0.request_time = -1 is out of range"),
        ([{"name": "mlp", "partition_id": 1.5}], "models.0.partition_id = 1.5: expected a whole number"),
        ([{"name": "mlp", "batch_size": 0}], "models.0.batch_size = 0 is out of range"),
        ([{"name": "mlp", "partition": 1}], "models.0: unknown key 'partition'; did you mean 'partition_id'"),
        ([{"name": "tokens", "tokens": 1.5}], "models.0.tokens = 1.5: expected a whole number"),
        ([{"name": "mlp", "nr_atten": 2}], "models.0.nr_atten = 2"),
    ],
    ids=str,
)
def test_bad_model_lists_are_named(folder: Path, entries: list[dict[str, Any]], message: str):
    with pytest.raises(UserError, match=message):
        read_models_list(write_list(folder, {"models": entries}), folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "list.json:1: not valid JSON"), ("{}", "key 'models' is missing"), ('{"model": []}', "unknown key 'model'")],
)
def test_files_that_are_no_model_lists_are_named(folder: Path, text: str, message: str):
    path = folder / "list.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_models_list(path, folder)
