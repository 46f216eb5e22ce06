"""ONNXim configurations load as they are; what is wrong in them is named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hwconfigs import ConfigError, load_hw
from tests.conftest import DATA, SHARED

CONFIGS = json.loads((DATA / "onnxim_configs.json").read_text())
MOBILE = CONFIGS["E1_conv_n1_c16_h8_m16_k3_s1"]
SERVER = CONFIGS["S_partition_resnet18_64px_bert_tiny"]


def write(folder: Path, config: dict[str, Any]) -> Path:
    path = folder / "chip.json"
    path.write_text(json.dumps(config, indent=1))
    return path


def test_server_configuration(tmp_path: Path):
    hw = load_hw(write(tmp_path, SERVER))
    assert hw.name == "chip"
    assert (hw.clocks.core_mhz, hw.clocks.noc_mhz, hw.clocks.dram_mhz) == (1000, 1000, 1200)
    assert hw.cores.count == 4
    assert not hw.cores.overrides
    core = hw.core(3)
    assert (core.rows, core.cols, core.spad_kib, core.acc_kib, core.vector_bits) == (128, 128, 32768, 4096, 65536)
    assert core.latency.gelu == 1
    assert (hw.dram.standard, hw.dram.channels, hw.dram.request_bytes) == ("HBM2_ONNXIM", 16, 32)
    assert hw.dram.scheduler == "fr_fcfs_first_ready"
    assert (hw.noc.kind, hw.noc.latency_cycles, hw.noc.ports_per_core) == ("simple", 1, 16)
    assert hw.onnxim is not None
    assert (hw.onnxim.scheduler, hw.onnxim.layout, hw.onnxim.partition) == ("partition_cpu", "NHWC", (0, 1, 1, 1))
    hw.check_modelled()


def test_mobile_configuration(tmp_path: Path):
    hw = load_hw(write(tmp_path, MOBILE))
    assert (hw.cores.count, hw.core(0).rows, hw.dram.standard, hw.clocks.dram_mhz) == (1, 8, "DDR4_ONNXIM", 400)
    assert hw.noc.ports_per_core == 1, "ONNXim's default"


def test_cores_that_differ_become_overrides(tmp_path: Path):
    config = copy.deepcopy(SERVER)
    config["core_config"]["core_2"] |= {"core_height": 64, "exp_latency": 4}
    hw = load_hw(write(tmp_path, config))
    assert list(hw.cores.overrides) == [2]
    assert (hw.core(2).rows, hw.core(2).cols, hw.core(2).latency.exp, hw.core(2).latency.add) == (64, 128, 4, 1)
    assert hw.core(1) == hw.core(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"icnt_type": "booksim2"}, "booksim2"), ({"dram_type": "ramulator"}, "ramulator")],
)
def test_what_is_not_modelled_loads_and_is_refused_at_use(tmp_path: Path, change: dict[str, str], message: str):
    hw = load_hw(write(tmp_path, SERVER | change))
    with pytest.raises(ConfigError, match=f"{message}.*not modelled yet"):
        hw.check_modelled()


def _core(**change: object) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["core_config"]["core_0"].update(change)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda c: c.update(dram_chanels=3),
            r"chip.json:\d+: unknown key 'dram_chanels'; did you mean 'dram_channels'",
        ),
        (lambda c: c.pop("core_freq"), "key 'core_freq' is missing"),
        (lambda c: c.update(dram_channels=12), r"chip.json:\d+: dram.channels = 12 is not a power of two"),
        (lambda c: c.update(precision=3), r"chip.json:\d+: precision_bytes = 3"),
        (lambda c: c.update(num_cores=2), "core_config.core_1 is missing"),
        (lambda c: c.update(num_cores=0), "beyond num_cores = 0"),
        (lambda c: c.update(num_cores="one"), "num_cores must be a whole number"),
        (lambda c: c.update(dram_type="ramulatr2"), "did you mean 'ramulator2'"),
        (lambda c: c.update(dram_config_path="x/DDR5.yaml"), "did you mean 'DDR4'"),
        (_core(core_type="systolic_os"), "core_0.core_type = 'systolic_os' is not modelled; expected 'systolic_ws'"),
        (_core(add_latncy=1), "unknown key 'core_config.core_0.add_latncy'; did you mean 'add_latency'"),
        (_core(core_width=0), r"cores.cols = 0 is out of range: expected 1..1024"),
    ],
)
def test_errors_name_key_and_remedy(tmp_path: Path, spoil: Callable[[dict[str, Any]], object], message: str):
    config = copy.deepcopy(MOBILE)
    spoil(config)
    with pytest.raises(ConfigError, match=message) as caught:
        load_hw(write(tmp_path, config))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(SHARED is None, reason="the recorded reference data are not beside this clone")
def test_every_recorded_configuration_loads(shared: Path, tmp_path: Path):
    cases = json.loads((shared / "reference" / "onnxim" / "cases.json").read_text())
    distinct = {json.dumps(case["config"], sort_keys=True): case for case in cases}
    assert distinct
    for case in distinct.values():
        config = case["config"]
        hw = load_hw(write(tmp_path, config))
        assert hw.cores.count == config["num_cores"]
        assert hw.dram.channels == config["dram_channels"]
        assert hw.with_overrides({}) == hw


@pytest.mark.skipif(SHARED is None, reason="the recorded reference data are not beside this clone")
def test_copied_configurations_equal_their_origin(shared: Path):
    cases = json.loads((shared / "reference" / "onnxim" / "cases.json").read_text())
    origin = {case["id"]: case["config"] for case in cases}
    assert all(config == origin[name] for name, config in CONFIGS.items() if name != "provenance")
