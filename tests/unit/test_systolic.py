"""The closed-form systolic model: tiles against a scalar reference, costs by hand, 64 bits only inside."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwconfigs.errors import ConfigError, UserError
from hwconfigs.systolic_schema import SystolicHw, load_systolic, systolic_preset_names
from tests.reference import scalar_systolic
from vsim.systolic import evaluate as evaluation
from vsim.systolic.dataflow_traffic import Convolution, dram_reads, remembered_words
from vsim.systolic.dataflows import Sparsity, product_costs, products
from vsim.systolic.designs import stack
from vsim.systolic.evaluate import evaluate, evaluate_pairs, totals, totals_of_each
from vsim.systolic.layers import MatrixLayer, VectorLayer
from vsim.systolic.networks import network

BASE = load_systolic("simdit-inference-03")
LAYERS = 40
"""Layers a batch of the property test holds: one compilation."""


@st.composite
def layers(draw: st.DrawFn) -> MatrixLayer:
    size = st.integers(1, 64)
    return MatrixLayer(
        "layer",
        "conv",
        out_width=draw(size),
        out_height=draw(size),
        out_channels=draw(st.integers(1, 300)),
        in_channels=draw(st.integers(1, 300)),
        kernel=draw(st.sampled_from([1, 2, 3, 5, 7, 11])),
        stride=draw(st.sampled_from([1, 2, 4])),
        batch=draw(st.sampled_from([1, 2, 6, 8, 32])),
    )


@st.composite
def designs(draw: st.DrawFn) -> SystolicHw:
    sides = st.sampled_from([4, 16, 24])
    kib = st.integers(1, 64)
    return BASE.with_overrides(
        {
            "array.rows": draw(sides),
            "array.cols": draw(sides),
            "precision.weight_bits": draw(st.sampled_from([4, 8, 16])),
            "buffers.weight_kib": draw(kib),
            "buffers.ifmap_kib": draw(kib),
            "buffers.ofmap_kib": 2 * draw(kib),
            "buffers.bias_kib": draw(st.integers(1, 4)),
        }
    )


@given(st.lists(st.tuples(layers(), designs()), min_size=LAYERS, max_size=LAYERS))
def test_tiles_equal_the_scalar_reference(cases: list[tuple[MatrixLayer, SystolicHw]]):
    # The candidates of a fixed largest layer keep the shape, and with it the compiled program.
    widest = MatrixLayer("widest", "conv", 64, 63, 1, 1, 11, 1, 32)
    pairs = [*cases, (widest, BASE)]
    found = evaluate_pairs([layer for layer, _ in pairs], stack([hw for _, hw in pairs])).matrix_tile
    for index, (layer, hw) in enumerate(cases):
        expected = scalar_systolic.matrix_tile(layer, hw)
        assert found.fits[index] == (expected is not None)
        if expected is not None:
            assert tuple(int(column[index]) for column in found[:-1]) == expected


def test_convolution_by_hand():
    """A 1x1 convolution of 16x16 channels on 8x8 outputs, on a 16x16 array with 8-bit operands: one tile."""
    layer = MatrixLayer("layer", "conv", 8, 8, 16, 16, 1, 1, 1)
    found = evaluate([layer], stack([BASE]), faults=True)
    cost = {name: value[0, 0] for name, value in found.matrix._asdict().items()}
    assert cost["compute_cycles"] == 8 * 8 + 15 + 15
    # Weights and bias: 256 x 8 and 16 x 32 bits through 128; input 64 x 16 x 8 bits; output 64 x 16 x 32 bits.
    weights, ifmap, ofmap = 16 + 4, 64, 256
    first, second, before_last, last = max(weights, ifmap), 0, ofmap - 94, ofmap
    # One tile is taken for first and last at once; the class of steady tiles counts it -1 times.
    assert cost["stall_cycles"] == first + second + before_last + last - (ofmap - 94)
    assert cost["dram_filter_bits"] == 256 * 8
    assert cost["dram_ifmap_bits"] == 64 * 16 * 8
    assert cost["dram_ofmap_bits"] == 64 * 16 * 32
    assert cost["dram_psum_bits"] == 0
    assert cost["macs"] == 64 * 16 * 16


def test_relu_by_hand():
    """Two tiles of 28 x 28 x 16 words each (28 x 28 x 32 words exceed the 64 KiB of a vector memory)."""
    layer = VectorLayer("layer", "relu", 28, 28, 32, 1, feeds_matrix=True)
    found = evaluate([layer], stack([BASE]), faults=True).vector
    words = 28 * 28 * 16
    assert found.compute_cycles[0, 0] == 2 * (words // 16 + 5 + 15)
    assert found.stall_cycles[0, 0] == 2 * (words * 32 // 128 + words * 8 // 128)
    assert found.dram_in_bits[0, 0] == 2 * words * 32
    assert found.dram_out_bits[0, 0] == 2 * words * 8


def test_designs_and_layers_apart_equal_together():
    hardware = [load_systolic(f"simdit-inference-{design}") for design in ("01", "08", "14")]
    layers = network("ResNet18", "Inference", batch=1)
    together = totals(layers, stack(hardware))
    pairs = totals_of_each([layers] * 3, stack(hardware))
    np.testing.assert_allclose(pairs.cycles, together.cycles, rtol=1e-15)
    [alone] = totals(layers, stack(hardware[1:2])).cycles
    assert alone == together.cycles[1]


def test_sixty_four_bits_stay_inside():
    evaluate([VectorLayer("layer", "relu", 8, 8, 16, 1)], stack([BASE]))
    assert jnp.asarray(1.5).dtype == jnp.float32
    assert not jax.config.jax_enable_x64


def test_a_sweep_over_designs_compiles_once():
    layers = network("ResNet18", "Inference", batch=1)
    before = evaluation._totals._cache_size()
    for kib in (64, 128, 256):
        totals(layers, stack([BASE.with_overrides({"buffers.weight_kib": kib}), BASE]))
    assert evaluation._totals._cache_size() == before + 1


def test_a_design_too_small_says_so():
    small = BASE.with_overrides({"buffers.weight_kib": 1, "array.rows": 64, "array.cols": 64})
    sums = totals(network("ResNet18", "Inference", batch=1), stack([BASE, small]))
    assert sums.fits.tolist() == [True, False]


@pytest.mark.parametrize(("flow", "cycles"), [("os", 6 * (5 + 4 + 3 - 2)), ("ws", 4 * (8 + 3 + 9 - 2))])
def test_corrected_dataflows_count_cycles(flow: str, cycles: int):
    """M = 9, N = 6, K = 5 on a 4 x 3 array: 3 x 2 folds of outputs, 2 x 2 folds of weights."""
    cases = products([(9, 6, 5)], [flow], [(4, 3)])
    assert product_costs(cases).compute_cycles[0] == cycles
    assert product_costs(cases, faults=True).compute_cycles[0] == cycles - 1


def test_corrected_dataflows_read_partial_sums_back():
    cases = products([(9, 6, 5)] * 2, ["ws", "os"], [(4, 3)] * 2)
    assert product_costs(cases).ofmap_words.tolist() == [9 * 6 * 3, 9 * 6]
    assert product_costs(cases, faults=True).ofmap_words.tolist() == [9 * 6 * 2, 9 * 6 + 6 * 7]


@given(st.integers(1, 200), st.sampled_from([(1, 4), (2, 4), (4, 4), (3, 8)]))
def test_sparsity_keeps_n_of_every_m_rows(rows: int, sparsity: tuple[int, int]):
    kept, group = sparsity
    assert Sparsity(kept, group).rows_kept(rows) == sum(row % group < kept for row in range(rows))


def _reads_one_by_one(stream: list[int], remembered: int) -> int:
    known: set[int] = set()
    reads = 0
    for address in stream:
        if address not in known:
            known.add(address)
            reads += 1
            if len(known) == remembered:
                known = set()
    return reads


@given(st.integers(1, 40), st.integers(1, 90), st.integers(1, 12))
def test_dram_reads_equal_a_count_word_by_word(m: int, k: int, cols: int):
    """Weight stationary, one fold of rows: the input streams once for every fold of columns, lane after lane."""
    n = 20
    inputs, weights = np.arange(m * k).reshape(m, k), np.arange(k * n).reshape(k, n)
    stream = [inputs[step - lane, lane] for step in range(m + k - 1) for lane in range(k) if 0 <= step - lane < m]
    found, of_weights = dram_reads(inputs, weights, "ws", (k, cols), 1, 1)
    assert found == _reads_one_by_one(stream * math.ceil(n / cols), remembered_words(1))
    assert of_weights == k * n


def test_windows_beyond_the_picture_have_no_address():
    convolution = Convolution(4, 4, 1, 1, 2, 8, 2)
    assert convolution.sizes == (9, 8, 2)
    addresses = convolution.input_addresses().reshape(3, 3, 2)
    assert addresses[:2, :2].ravel().tolist() == [0, 1, 4, 5, 16, 17, 20, 21]
    assert (addresses[2] == -1).all()
    assert (addresses[:, 2] == -1).all()


def test_presets_are_complete():
    names = systolic_preset_names()
    assert len(names) == 21
    for name in names:
        hw = load_systolic(name)
        assert hw.name == name
        assert SystolicHw.model_validate(hw.to_data()) == hw


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"array.row": 3}, "unknown key 'array.row'"),
        ({"aray.rows": 3}, "did you mean 'array'?"),
        ({"array.rows": 0}, "array.rows"),
        ({"buffers.ofmap_kib": 3}, "two memories of whole KiB"),
    ],
)
def test_bad_hardware(overrides: dict[str, int], message: str):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        BASE.with_overrides(overrides)


def test_bad_layers():
    with pytest.raises(UserError, match="unknown operator 'rellu'; did you mean 'relu'"):
        VectorLayer("layer", "rellu", 1, 1, 1, 1)
    with pytest.raises(UserError, match="out_width = 0 is not a whole number"):
        MatrixLayer("layer", "conv", 0, 1, 1, 1, 1, 1, 1)
    with pytest.raises(UserError, match="goes with dataflow 'ws'"):
        products([(1, 1, 4)], ["os"], [(4, 4)], [Sparsity(2, 4)])


def test_many_designs_equal_few():
    """More designs than are evaluated together, and not a whole multiple of that."""
    hardware = [BASE.with_overrides({"buffers.ifmap_kib": kib}) for kib in range(32, 32 + 150)]
    layers = network("ResNet18", "Inference", batch=1)
    sums = totals(layers, stack(hardware))
    assert sums.cycles.shape == (150,)
    last = evaluate(layers, stack(hardware[-1:]))
    assert sums.matrix.stall_cycles[-1] == pytest.approx(last.matrix.stall_cycles.sum(), rel=1e-15)
    assert sums.vector.dram_in_bits[-1] == last.vector.dram_in_bits.sum()
