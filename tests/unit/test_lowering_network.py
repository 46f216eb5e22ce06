"""Whole graphs: reading, fusing, views and copies, vector layers, errors, and the nine networks of the onnx package."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hwconfigs import load_hw
from hwconfigs.schema import HwConfig
from lowering import (
    MappingError,
    ModelError,
    Program,
    UnsupportedError,
    light_models,
    load_model,
    lower,
    read_graph,
)
from lowering.emit import expand
from lowering.network import reshaped_order
from lowering.program import Op

SERVER = load_hw("npu-server-128x128x4")
REQUEST = 32
MOBILE = load_hw("npu-mobile-8x8").with_overrides(
    {"dram.standard": "simple", "dram.request_bytes": REQUEST, "precision_bytes": 2}
)


class Model:
    """A small ONNX graph under construction; `save` writes it."""

    def __init__(self, opset: int = 17, **inputs: Sequence[int | str]) -> None:
        self.opset = opset
        self.inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, *shape: int) -> str:
        """A weight without data: it refers to a file that does not exist."""
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", "absent.bin"
        self.constants.append(tensor)
        return name

    def values(self, name: str, values: Sequence[int]) -> str:
        self.constants.append(onnx.numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def add(self, op: str, inputs: Sequence[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=f"n_{output}", **attributes))
        return output

    def save(self, folder: Path, *outputs: str) -> Path:
        results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "small", self.inputs, results, self.constants)
        path = folder / "small.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)]), path)
        return path


def ops(program: Program) -> list[str]:
    return [layer.op for layer in program.layers]


def traffic(program: Program, layer: int) -> dict[Op, Counter[int]]:
    """How often each memory block is loaded and stored by one layer."""
    found = {Op.LOAD: Counter[int](), Op.STORE: Counter[int]()}
    for tile in expand(program):
        if tile.layer == layer:
            for instruction in tile.instructions:
                if instruction.op in found:
                    found[instruction.op].update(instruction.blocks.tolist())
    return found


# -- the nine networks


@pytest.mark.parametrize("name", light_models())
@pytest.mark.parametrize(("hw", "row_limit"), [(SERVER, 15_000), (MOBILE, 200_000)], ids=["server", "mobile"])
def test_light_networks_lower(name: str, hw: HwConfig, row_limit: int) -> None:
    program = lower(f"onnx:{name}", hw)
    assert not program.warnings
    assert len(program.rows) < row_limit
    assert program.spad_entries <= 512
    assert program.n_cores == hw.cores.count
    assert sum(layer.macs for layer in program.layers) == graph_macs(name)
    assert all(layer.load_bytes > 0 and layer.store_bytes > 0 for layer in program.layers)


def graph_macs(name: str) -> int:
    """Multiply-accumulates by ONNX's own shape inference."""
    model = onnx.shape_inference.infer_shapes(load_model(f"onnx:{name}").proto)
    shapes = {
        item.name: [dim.dim_value for dim in item.type.tensor_type.shape.dim]
        for item in (*model.graph.value_info, *model.graph.input, *model.graph.output)
    }
    total = 0
    for node in model.graph.node:
        if node.op_type == "Conv":
            total += math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
        elif node.op_type == "Gemm":
            total += math.prod(shapes[node.output[0]]) * shapes[node.input[0]][1]
    return total


@pytest.mark.parametrize(
    ("name", "gmacs", "millions"),
    [
        # Published sizes; parameters without the running statistics of BatchNormalization.
        ("light_resnet50", 4.1, 25.6),
        ("light_vgg19", 19.6, 143.7),
        ("light_densenet121", 2.87, 8.0),
        ("light_squeezenet", 0.35, 1.24),
        ("light_bvlc_alexnet", 0.66, 61.0),
    ],
)
def test_sizes_of_known_networks(name: str, gmacs: float, millions: float) -> None:
    program = lower(f"onnx:{name}", SERVER)
    assert sum(layer.macs for layer in program.layers) / 1e9 == pytest.approx(gmacs, rel=0.02)
    assert read_graph(load_model(f"onnx:{name}")).parameters / 1e6 == pytest.approx(millions, rel=0.02)


def test_resnet50_has_one_layer_for_each_convolution() -> None:
    program = lower("onnx:light_resnet50", SERVER)
    assert Counter(ops(program)) == {"Conv": 53, "MaxPool": 1, "AveragePool": 1, "Gemm": 1, "Softmax": 1}


def test_batch_of_a_model_exported_for_one_image() -> None:
    one, four = (lower("onnx:light_resnet50", SERVER, batch=batch) for batch in (1, 4))
    assert sum(layer.macs for layer in four.layers) == 4 * sum(layer.macs for layer in one.layers)
    # Weights are read once for all images, or at least not four times as often.
    assert sum(layer.load_bytes for layer in four.layers) < 3 * sum(layer.load_bytes for layer in one.layers)


def test_mobilenet_folds_its_padding(shared: Path) -> None:
    program = lower(shared / "models" / "mobilenet_v2_torchscript.onnx", SERVER)
    assert set(ops(program)) == {"Conv"}
    assert sum(layer.macs for layer in program.layers) / 1e6 == pytest.approx(300, rel=0.02)


# -- fusion


def test_batch_norm_activation_and_residual_are_fused(tmp_path: Path) -> None:
    model = Model(x=[1, 16, 8, 8])
    model.add("Conv", ["x", model.constant("w", 16, 16, 3, 3)], "c", pads=[1, 1, 1, 1])
    statistics = [model.constant(name, 16) for name in ("g", "b", "m", "v")]
    model.add("BatchNormalization", ["c", *statistics], "n")
    model.add("Add", ["n", "x"], "s")
    model.add("Relu", ["s"], "y")
    program = lower(model.save(tmp_path, "y"), MOBILE)
    assert ops(program) == ["Conv"]
    tensor, weights, bias = 16 * 64 * 2, 16 * 16 * 9 * 2, 16 * 4
    assert program.layers[0].store_bytes == tensor
    tiles = len(program.tiles)
    # Input with halo, weights and bias of every tile, and the residual once.
    assert program.layers[0].load_bytes >= 2 * tensor + weights + bias
    assert program.layers[0].load_bytes <= 3 * tensor + tiles * (weights + bias)
    # Addition and maximum over every output element.
    assert program.layers[0].vector_cycles >= 2 * tensor // (MOBILE.cores.vector_bits // 8)


def test_folded_batch_norm_costs_nothing_but_its_bias(tmp_path: Path) -> None:
    def build(with_norm: bool) -> Program:
        model = Model(x=[1, 16, 8, 8])
        model.add("Conv", ["x", model.constant("w", 16, 16, 1, 1)], "y" if not with_norm else "c")
        if with_norm:
            statistics = [model.constant(name, 16) for name in ("g", "b", "m", "v")]
            model.add("BatchNormalization", ["c", *statistics], "y")
        return lower(model.save(tmp_path, "y"), MOBILE)

    plain, normed = build(False), build(True)
    assert normed.layers[0].vector_cycles == plain.layers[0].vector_cycles == 0
    assert normed.layers[0].load_bytes - plain.layers[0].load_bytes == len(plain.tiles) * 16 * 4


def test_a_value_read_twice_is_not_fused_away(tmp_path: Path) -> None:
    model = Model(x=[1, 16, 8, 8])
    model.add("Conv", ["x", model.constant("w", 16, 16, 1, 1)], "c")
    model.add("Relu", ["c"], "r")
    model.add("MaxPool", ["c"], "p", kernel_shape=[2, 2], strides=[2, 2])
    program = lower(model.save(tmp_path, "r", "p"), MOBILE)
    assert ops(program) == ["Conv", "Relu", "MaxPool"]


@pytest.mark.parametrize("decomposed", ["silu", "hard_swish", "gelu"])
def test_decomposed_activations_are_fused(tmp_path: Path, decomposed: str) -> None:
    model = Model(x=[1, 16, 8, 8], one=[])
    model.inputs.pop()
    model.constants.append(onnx.numpy_helper.from_array(np.array(3.0, np.float32), "k"))
    model.constants.append(onnx.numpy_helper.from_array(np.array(6.0, np.float32), "six"))
    model.add("Conv", ["x", model.constant("w", 16, 16, 1, 1)], "c")
    if decomposed == "silu":
        model.add("Sigmoid", ["c"], "a")
        model.add("Mul", ["c", "a"], "y")
    elif decomposed == "hard_swish":
        model.add("Add", ["c", "k"], "a")
        model.add("Clip", ["a", "", "six"], "b")
        model.add("Mul", ["c", "b"], "d")
        model.add("Div", ["d", "six"], "y")
    else:
        model.add("Div", ["c", "k"], "a")
        model.add("Erf", ["a"], "b")
        model.add("Add", ["b", "k"], "d")
        model.add("Mul", ["c", "d"], "e")
        model.add("Mul", ["e", "k"], "y")
    program = lower(model.save(tmp_path, "y"), MOBILE)
    assert ops(program) == ["Conv"]
    assert program.layers[0].vector_cycles > 0


def test_sum_of_two_convolutions_is_fused_once(tmp_path: Path) -> None:
    model = Model(x=[1, 16, 8, 8])
    model.add("Conv", ["x", model.constant("w", 16, 16, 1, 1)], "a")
    model.add("Conv", ["x", model.constant("v", 16, 16, 1, 1)], "b")
    model.add("Sum", ["a", "b"], "y")
    program = lower(model.save(tmp_path, "y"), MOBILE)
    assert ops(program) == ["Conv", "Conv"]
    stored = traffic(program, 0)[Op.STORE]
    assert set(stored) <= set(traffic(program, 1)[Op.LOAD]), "the second one adds the first one's result"


# -- views and data movement


@pytest.mark.parametrize(
    ("op", "attributes", "shape", "layers"),
    [
        ("Flatten", {"axis": 1}, [1, 16, 4, 4], []),
        ("Identity", {}, [1, 16, 4, 4], []),
        ("Dropout", {}, [1, 16, 4, 4], []),
        ("Transpose", {"perm": [0, 2, 3, 1]}, [1, 16, 4, 4], []),
        ("Transpose", {"perm": [0, 1, 3, 2]}, [1, 16, 4, 4], ["Transpose"]),
        ("Transpose", {"perm": [1, 0]}, [32, 16], ["Transpose"]),
        ("Transpose", {"perm": [1, 0]}, [1, 16], []),
    ],
)
def test_views_are_free_and_rearrangements_are_not(
    tmp_path: Path, op: str, attributes: dict[str, object], shape: list[int], layers: list[str]
) -> None:
    model = Model(x=shape)
    model.add("Relu", ["x"], "r")
    model.add(op, ["r"], "v", **attributes)
    model.add("Sigmoid", ["v"], "y")
    program = lower(model.save(tmp_path, "y"), MOBILE)
    # A node that does nothing disappears before fusion, so that the activations meet.
    expected = ["Relu"] if op in ("Identity", "Dropout") else ["Relu", *layers, "Sigmoid"]
    assert ops(program) == expected
    for index, layer in enumerate(layers, start=1):
        assert layer == "Transpose"
        size = math.prod(shape) * 2
        assert program.layers[index].load_bytes == size
        assert program.layers[index].store_bytes >= size


@pytest.mark.parametrize(
    ("source", "target", "order", "expected"),
    [
        ((1, 16, 4, 4), (1, 4, 4, 4, 4), (0, 2, 3, 1), (0, 3, 4, 1, 2)),
        ((2, 16, 4, 4), (2, 16, 16), (0, 2, 3, 1), (0, 2, 1)),
        ((2, 3, 4, 5), (6, 20), (0, 1, 2, 3), (0, 1)),
        ((2, 16, 4, 4), (2, 256), (0, 2, 3, 1), (0, 1)),
        ((2, 16, 4, 4), (32, 16), (0, 2, 3, 1), None),
        ((2, 16, 4, 4), (2, 4, 64), (0, 2, 3, 1), None),
    ],
)
def test_reshaped_order(
    source: tuple[int, ...], target: tuple[int, ...], order: tuple[int, ...], expected: tuple[int, ...] | None
) -> None:
    found = reshaped_order(source, target, order)
    if expected is None or found is None:
        assert found is expected
    else:
        assert [d for d in found if target[d] > 1] == [d for d in expected if target[d] > 1]


def test_reshaped_order_is_the_order_in_memory() -> None:
    """Where a reshape is a view, walking both tensors in physical order meets the same elements."""
    for source, target, order in (
        ((2, 12, 3, 4), (2, 3, 4, 3, 4), (0, 2, 3, 1)),
        ((2, 12, 3, 4), (2, 12, 12), (0, 2, 3, 1)),
        ((2, 3, 4), (6, 4), (0, 1, 2)),
    ):
        numbers = np.arange(math.prod(source))
        found = reshaped_order(source, target, order)
        assert found is not None
        before = numbers.reshape(source).transpose(order).ravel()
        after = numbers.reshape(target).transpose(found).ravel()
        assert (before == after).all()


def test_concat_copies_every_input_to_its_place(tmp_path: Path) -> None:
    model = Model(a=[1, 16, 4, 4], b=[1, 32, 4, 4])
    model.add("Concat", ["a", "b"], "y", axis=1)
    program = lower(model.save(tmp_path, "y"), MOBILE)
    size = 48 * 16 * 2
    assert program.layers[0].load_bytes == program.layers[0].store_bytes == size
    found = traffic(program, 0)
    assert set(found[Op.STORE].values()) == set(found[Op.LOAD].values()) == {1}
    stored = sorted(found[Op.STORE])
    assert stored == list(range(stored[0], stored[0] + size // REQUEST))


# -- vector layers


def test_elementwise_layers_read_and_write_everything_once(tmp_path: Path) -> None:
    model = Model(a=[1, 32, 24, 24], b=[1, 32, 24, 24])
    model.add("Mul", ["a", "b"], "y")
    program = lower(model.save(tmp_path, "y"), MOBILE)
    found, size = traffic(program, 0), 32 * 24 * 24 * 2
    assert set(found[Op.LOAD].values()) == set(found[Op.STORE].values()) == {1}
    assert len(found[Op.LOAD]) == 2 * size // REQUEST
    assert len(found[Op.STORE]) == size // REQUEST
    assert program.layers[0].vector_cycles >= size // (MOBILE.cores.vector_bits // 8)


def test_pooling_cost_and_traffic(tmp_path: Path) -> None:
    model = Model(x=[1, 16, 8, 8])
    model.add("MaxPool", ["x"], "p", kernel_shape=[2, 2], strides=[2, 2])
    model.add("GlobalAveragePool", ["p"], "y")
    program = lower(model.save(tmp_path, "y"), MOBILE)
    pool, average = program.layers
    assert (pool.load_bytes, pool.store_bytes) == (16 * 64 * 2, 16 * 16 * 2)
    assert (average.load_bytes, average.store_bytes) == (16 * 16 * 2, 16 * 2)


def test_a_global_pool_larger_than_the_scratchpad_keeps_partial_sums(tmp_path: Path) -> None:
    model = Model(x=[1, 16, 64, 64])
    model.add("GlobalAveragePool", ["x"], "y")
    program = lower(model.save(tmp_path, "y"), MOBILE)
    assert program.layers[0].load_bytes == 16 * 64 * 64 * 2
    assert program.layers[0].store_bytes == 32
    assert any(tile.accumulate for tile in expand(program))


def test_softmax_counts_every_row(tmp_path: Path) -> None:
    def cycles(rows: int) -> int:
        model = Model(x=[rows, 256])
        model.add("Softmax", ["x"], "y", axis=-1)
        return lower(model.save(tmp_path, "y"), MOBILE).layers[0].vector_cycles

    assert cycles(64) == 64 * cycles(1)


def test_matrix_products_of_any_rank(tmp_path: Path) -> None:
    model = Model(a=[2, 4, 16, 32], b=[2, 4, 32, 16], c=[16, 32])
    model.add("MatMul", ["a", "b"], "scores")
    model.add("MatMul", ["scores", "c"], "mixed")
    model.add("MatMul", ["mixed", model.constant("w", 32, 48)], "y")
    program = lower(model.save(tmp_path, "y"), MOBILE)
    assert [layer.macs for layer in program.layers] == [8 * 16 * 32 * 16, 8 * 16 * 16 * 32, 8 * 16 * 32 * 48]
    assert [layer.store_bytes for layer in program.layers] == [8 * 16 * 16 * 2, 8 * 16 * 32 * 2, 8 * 16 * 48 * 2]


def test_products_with_vectors(tmp_path: Path) -> None:
    model = Model(a=[24, 32], b=[32], c=[24])
    model.add("MatMul", ["a", "b"], "column")
    model.add("MatMul", ["c", "a"], "row")
    model.add("MatMul", ["b", model.constant("w", 32, 48)], "constant")
    program = lower(model.save(tmp_path, "column", "row", "constant"), MOBILE)
    assert [layer.macs for layer in program.layers] == [24 * 32, 24 * 32, 32 * 48]
    for index, outputs in enumerate((24, 32, 48)):
        assert len(traffic(program, index)[Op.STORE]) == math.ceil(outputs * 2 / REQUEST)


def test_one_dimensional_convolutions_and_automatic_padding(tmp_path: Path) -> None:
    model = Model(x=[1, 16, 40])
    model.add("Conv", ["x", model.constant("w", 32, 16, 5)], "c", auto_pad="SAME_UPPER", strides=[2])
    model.add("MaxPool", ["c"], "y", kernel_shape=[2], strides=[2])
    program = lower(model.save(tmp_path, "y"), MOBILE)
    assert program.layers[0].macs == 20 * 32 * 16 * 5
    assert program.layers[0].store_bytes == program.layers[1].load_bytes == 20 * 32 * 2
    assert program.layers[1].store_bytes == 10 * 32 * 2


def test_a_mapping_line_is_followed(tmp_path: Path) -> None:
    model = Model(x=[512, 768])
    model.add("MatMul", ["x", model.constant("w", 768, 512)], "y")
    line = "[T] N512 C768 M512 - [O] N13 C2 M13 - [I] N40 C384 M40"
    bytes_only = MOBILE.with_overrides({"precision_bytes": 1})
    program = lower(model.save(tmp_path, "y"), bytes_only, mapping=line)
    assert len(program.tiles) == 13 * 2 * 13


# -- errors


def test_open_dimensions_name_the_flag(tmp_path: Path) -> None:
    model = Model(x=["batch", "seq", 16])
    model.add("Relu", ["x"], "y")
    path = model.save(tmp_path, "y")
    with pytest.raises(ModelError, match=r"dimension 1 of input x is open; set it with --dim seq=SIZE"):
        lower(path, MOBILE)
    with pytest.raises(ModelError, match="did you mean 'seq'"):
        lower(path, MOBILE, dims={"sek": 4})
    assert lower(path, MOBILE, batch=3, dims={"seq": 5}).layers[0].store_bytes == 3 * 5 * 32


def test_a_batch_that_no_input_takes_is_refused(tmp_path: Path) -> None:
    model = Model(x=[256, 16])
    model.add("Relu", ["x"], "y")
    path = model.save(tmp_path, "y")
    with pytest.raises(ModelError, match=r"--batch 4: no input .* first dimension that is open or 1 \(x \[256, 16\]\)"):
        lower(path, MOBILE, batch=4)


def test_shape_arithmetic_is_folded(tmp_path: Path) -> None:
    model = Model(x=["n", 16, 4, 4])
    model.add("Shape", ["x"], "shape")
    model.add("Gather", ["shape", model.values("zero", [0])], "n_only")
    model.add("Concat", ["n_only", model.values("rest", [-1])], "target", axis=0)
    model.add("Reshape", ["x", "target"], "flat")
    model.add("Relu", ["flat"], "y")
    program = lower(model.save(tmp_path, "y"), MOBILE, batch=2)
    assert ops(program) == ["Relu"]
    assert program.layers[0].store_bytes == 2 * 256 * 2


def test_unknown_operators_are_refused_or_skipped(tmp_path: Path) -> None:
    model = Model(x=[4, 16])
    model.add("Bernoulli", ["x"], "c")
    model.add("Relu", ["c"], "y")
    path = model.save(tmp_path, "y")
    with pytest.raises(UnsupportedError, match=r"node n_c: operator Bernoulli .*--skip-unknown"):
        lower(path, MOBILE)
    program = lower(path, MOBILE, skip_unknown=True)
    assert ops(program) == ["Relu"]
    assert "Bernoulli" in program.warnings[0]


def test_files_that_are_no_models(tmp_path: Path) -> None:
    text = tmp_path / "model.onnx"
    text.write_text("this is not a model")
    empty = tmp_path / "empty.onnx"
    empty.write_bytes(b"")
    old = Model(opset=8, x=[1, 4])
    old.add("Relu", ["x"], "y")
    for path, message in (
        (text, "not an ONNX file"),
        (empty, "not an ONNX file"),
        (tmp_path / "absent.onnx", "no such file"),
        (tmp_path, "is a folder"),
        ("onnx:light_resnet5", "did you mean 'light_resnet50'"),
        (old.save(tmp_path, "y"), "operator set 8, vsim reads 9 and later"),
    ):
        with pytest.raises(ModelError, match=message):
            lower(path, MOBILE)


def test_a_network_that_cannot_fit_names_the_layer() -> None:
    tiny = MOBILE.with_overrides({"cores.spad_kib": 1, "cores.acc_kib": 1})
    with pytest.raises(MappingError, match=r"layer \S+ \(\w+\).* half of (it|them) is 512"):
        lower("onnx:light_vgg19", tiny)


def test_heterogeneous_cores_share_the_work() -> None:
    mixed = SERVER.with_overrides({"cores.overrides": {0: {"rows": 64, "cols": 64}}})
    program = lower("onnx:light_squeezenet", mixed)
    assert sum(layer.macs for layer in program.layers) == graph_macs("light_squeezenet")
