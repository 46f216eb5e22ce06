"""Energy and area: one layer by hand, scaling by its rule, sources everywhere, overrides."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hwconfigs.energy_schema import Constant, Curve, Technology, load_technology, technology_names
from hwconfigs.errors import ConfigError
from hwconfigs.systolic_schema import load_systolic
from vsim.cli import main
from vsim.energy import Activity, Memory, area_mm2, energy
from vsim.systolic.bridge import Bridged
from vsim.systolic.layers import MatrixLayer, VectorLayer
from vsim.systolic.run import run

TABLE = load_technology("horowitz-45nm")


def test_every_unit_energy_has_a_source():
    for name in technology_names():
        table = load_technology(name)
        entries = [entry for _, entry in table if isinstance(entry, Curve | Constant)]
        entries += table.dram_pj_per_bit_of.values()
        assert len(entries) == len(Technology.model_fields) - 4 + len(table.dram_pj_per_bit_of)
        assert all(len(entry.source) >= 8 for entry in entries)
        assumed = [entry for entry in entries if entry.source.startswith("assumption")]
        assert assumed == [table.leakage_mw], "an energy or area of an operation or access must have been published"


def test_one_layer_by_hand():
    """A 1x1 convolution of 16 to 16 channels on 8x8 outputs, 8-bit operands, 32-bit sums, on a 16x16 array."""
    hw = load_systolic("simdit-inference-03")
    layers = [MatrixLayer("conv", "conv", 8, 8, 16, 16, 1, 1, 1), VectorLayer("relu", "relu", 8, 8, 16, 1)]
    report = run("hand", Bridged(list(layers)), hw, technology=TABLE)
    macs, outputs = 64 * 16 * 16, 64 * 16
    # Buffers: 32 KiB weights and input, 128 KiB sums, 2 KiB bias; the vector memories together 128 KiB.
    per_bit_32, per_bit_128 = 20 / 64, 20 * (128 / 32) ** (np.log(5) / np.log(32)) / 64
    per_bit_2 = 10 * (2 / 8) ** (np.log(2) / np.log(4)) / 64
    picojoules = {
        "mac": macs * (0.2 + 0.1),
        "vector": outputs * 0.1,
        "weight_buffer": macs * 8 * per_bit_32,
        "ifmap_buffer": 64 * 16 * 8 * per_bit_32,
        "ofmap_buffer": outputs * 32 * per_bit_128,
        "bias_buffer": outputs * 32 * per_bit_2,
        "vector_memory": outputs * 64 * per_bit_128,
        "dram": 20 * (256 * 8 + 16 * 32 + outputs * 8 + outputs * 32 + 2 * outputs * 32),
    }
    found = report["energy"]["microjoules"]
    seconds = report["cycles"] / 1.25e9
    picojoules["leakage"] = seconds * 1e9 * 100 * sum(dict(hw.buffers).values()) / 1024
    assert found == pytest.approx({name: value * 1e-6 for name, value in picojoules.items()}, rel=1e-12)
    total = sum(picojoules.values()) * 1e-12
    assert report["energy"]["average_watts"] == pytest.approx(total / seconds)
    assert report["energy"]["joule_seconds"] == pytest.approx(total * seconds)


def test_every_part_counts():
    activity = Activity(
        cycles=np.array([1e6]),
        macs=2,
        operand_bits=16,
        arithmetic="float",
        simple_operations=3,
        divides=5,
        exps=7,
        rsqrts=11,
        multiplications=17,
        memories={"spad": (Memory(640, 8),)},
        dram_bits=13,
        memory_kib=512,
    )
    found = energy(activity, TABLE.with_overrides({"leakage_mw": 250.0}), 1000)
    assert found.picojoules["mac"] == 2 * (1.1 + 0.9)
    assert found.picojoules["vector"] == pytest.approx(3 * 0.9 + 3.7 * (17 + 7.1 * 5 + 1.0 * 7 + 4.5 * 11))
    assert found.picojoules["spad"] == 100
    assert found.picojoules["dram"] == 260
    assert found.picojoules["leakage"] == pytest.approx((250e-3 + 50e-3) * 1e-3 * 1e12)
    assert found.watts == pytest.approx(found.joules / 1e-3)


def test_widths_between_the_tabulated_follow_a_power_law():
    assert TABLE.integer_multiply_pj.at(8) == 0.2
    assert TABLE.integer_multiply_pj.at(32) == pytest.approx(3.1)
    assert TABLE.integer_multiply_pj.at(16) == pytest.approx((0.2 * 3.1) ** 0.5)
    assert TABLE.integer_add_um2.at(16) == pytest.approx(67)
    assert TABLE.sram_64_bit_access_pj.at(2048) == pytest.approx(100 * 2 ** (np.log(5) / np.log(32)))


def test_scaling_is_the_documented_rule():
    scaled = TABLE.at(node_nm=22.5, supply_v=0.45)
    assert scaled.integer_add_pj.at(32) == pytest.approx(0.1 / 8)
    assert scaled.sram_64_bit_access_pj.at(8) == pytest.approx(10 / 8)
    assert scaled.sram_um2_per_bit.value == pytest.approx(0.346 / 4)
    assert scaled.integer_multiply_um2.at(8) == pytest.approx(282 / 4)
    assert scaled.dram_pj_per_bit == TABLE.dram_pj_per_bit
    assert "scaled from 45 nm, 0.9 V to 22.5 nm, 0.45 V" in scaled.integer_add_pj.source


def test_dram_is_priced_by_its_standard():
    assert [TABLE.dram(name).value for name in ("HBM2_2400", "HBM2_ONNXIM", "LPDDR4_3200")] == [3.97, 3.97, 8.0]
    assert TABLE.dram("DDR4_2400") == TABLE.dram("") == TABLE.dram_pj_per_bit
    scaled = TABLE.at(node_nm=7, supply_v=0.7)
    assert scaled.dram_pj_per_bit_of == TABLE.dram_pj_per_bit_of
    assert scaled.sram_leakage_mw_per_mib == TABLE.sram_leakage_mw_per_mib


def test_area_by_hand():
    found = area_mm2(TABLE, macs=256, operand_bits=8, sum_bits=32, lanes=16, vector_bits=32, memory_kib=100)
    assert found == pytest.approx(
        {"array": 256 * (282 + 137) * 1e-6, "vector": 16 * (3495 + 137) * 1e-6, "memory": 100 * 8192 * 0.346e-6}
    )


def test_overrides_say_where_they_come_from():
    changed = TABLE.with_overrides({"dram_pj_per_bit": 3.9})
    assert changed.dram_pj_per_bit == Constant(value=3.9, source="given")
    with pytest.raises(ConfigError, match="did you mean 'dram_pj_per_bit'"):
        TABLE.with_overrides({"dram_pj_per_bits": 1})
    with pytest.raises(ConfigError, match="must be above 0"):
        TABLE.at(node_nm=0, supply_v=1)
    with pytest.raises(ConfigError, match="did you mean 'horowitz-45nm'"):
        load_technology("horowitz-45")


def test_command_line(capsys: pytest.CaptureFixture[str]):
    arguments = ["systolic", "run", "simdit:ResNet18", "--hw", "simdit-inference-03"]
    assert main([*arguments, "--energy", "horowitz-45nm", "--node-nm", "22.5", "--supply-v", "0.45", "--json"]) == 0
    scaled = json.loads(capsys.readouterr().out)["energy"]["microjoules"]
    assert main([*arguments, "--energy", "horowitz-45nm", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)["energy"]["microjoules"]
    assert scaled["mac"] == pytest.approx(plain["mac"] / 8)
    assert scaled["dram"] == plain["dram"]
    assert main([*arguments, "--node-nm", "7"]) == 2
    assert "give it with --energy" in capsys.readouterr().err
