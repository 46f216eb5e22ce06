"""What the recorded runs of ONNXim say, as data for tests: golden rows, cases, event logs.

The rows are those of `onnxim.md` section 16 (ONNXim commit a1e8629, Release build, Ramulator2 fork); they need no
files. Cases and event logs are read from `../shared/reference/onnxim`.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from hwconfigs import HwConfig, load_hw
from lowering.onnxim.language import LanguageModel, Request
from tests import models


def _hw(name: str, clocks: tuple[int, int, int], precision: int, cores: dict, dram: dict, ports: int) -> HwConfig:
    core_mhz, noc_mhz, dram_mhz = clocks
    return HwConfig.from_data(
        {
            "name": name,
            "clocks": {"core_mhz": core_mhz, "noc_mhz": noc_mhz, "dram_mhz": dram_mhz},
            "precision_bytes": precision,
            "cores": cores,
            "dram": {"request_bytes": 32, "scheduler": "fr_fcfs_first_ready"} | dram,
            "noc": {"latency_cycles": 1, "ports_per_core": ports},
        }
    )


_BIG = {"rows": 128, "cols": 128, "spad_kib": 32768, "acc_kib": 4096, "vector_bits": 65536, "count": 4}
_SMALL = {"rows": 8, "cols": 8, "spad_kib": 64, "acc_kib": 16, "vector_bits": 2048}
_DDR4 = {"standard": "DDR4_ONNXIM", "channels": 2}

CONFIGURATIONS = {
    "server": _hw("server", (1000, 1000, 1200), 2, _BIG, {"standard": "HBM2_ONNXIM", "channels": 16}, 16),
    "mobile_c4": _hw("mobile_c4", (1000, 2000, 400), 2, _SMALL | {"count": 4}, _DDR4, 1),
    "mobile_c1": _hw("mobile_c1", (1000, 2000, 400), 1, _SMALL | {"count": 1}, _DDR4, 1),
}
"""128x128_c4_simple_noc_tpuv4, 8x8_c4_simple_noc_transformer and 8x8_c1_simple_noc_transformer."""


@dataclass(frozen=True)
class GoldenRow:
    """One run. finishes: cycle at which each layer finished. row_states: hits, misses, conflicts over all channels."""

    configuration: str
    workload: str
    finishes: tuple[int, ...]
    total: int
    row_states: tuple[int, int, int] = (0, 0, 0)
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def hw(self) -> HwConfig:
        """The configuration with the row's overrides."""
        return CONFIGURATIONS[self.configuration].with_overrides(self.overrides)

    @property
    def model(self) -> onnx.ModelProto:
        """The row's graph."""
        kind, *sizes = self.workload.split("_")
        build = {"mm": models.mm, "mlp": models.mlp, "cv": models.conv, "block": models.transformer_block}[kind]
        return build(*map(int, sizes))

    def __str__(self) -> str:
        changed = "".join(f"-{key}={value}" for key, value in self.overrides.items())
        return f"{self.configuration}{changed}-{self.workload}"


_SIMPLE_30 = {"dram.standard": "simple", "dram.latency_cycles": 30}
_NOC_7 = {"noc.latency_cycles": 7}

ROWS = (
    GoldenRow("server", "mm_128_128_128", (810,), 907, (2856, 144, 72)),
    GoldenRow("server", "mm_256_256_256", (1851,), 1936, (11496, 512, 280)),
    GoldenRow("server", "mm_512_512_512", (9283,), 9393, (42984, 512, 5656)),
    GoldenRow("server", "mm_1_512_512", (2100,), 2105, (14561, 712, 1271)),
    GoldenRow("server", "mm_256_4096_1024", (42687,), 42892, (500870, 6692, 33110)),
    GoldenRow("server", "mm_1024_1024_1024", (25379,), 25776, (281812, 2317, 43551)),
    GoldenRow("server", "mlp_512_512_512_512", (9284, 9286, 18645), 18755, (85794, 546, 12028)),
    GoldenRow("mobile_c4", "mm_64_64_64", (6702,), 9739, (1528, 8, 0)),
    GoldenRow("mobile_c4", "mm_128_128_128", (56138,), 59357, (10190, 42, 14)),
    GoldenRow("mobile_c4", "mm_1_512_512", (97391,), 97672, (17271, 665, 92)),
    GoldenRow("mobile_c4", "mm_100_300_200", (198319,), 199322, (36229, 249, 46)),
    GoldenRow("mobile_c4", "mlp_64_128_256_100", (66518, 66520, 130580), 131474, (22914, 140, 28)),
    GoldenRow("mobile_c1", "mm_64_64_64", (4867,), 6474, (1020, 4, 0)),
    GoldenRow("mobile_c1", "mm_128_128_128", (36389,), 37077, (6084, 20, 44)),
    GoldenRow("mobile_c1", "mlp_64_128_256_100", (36440, 36441, 65543), 65649, (10660, 62, 0)),
    GoldenRow("server", "mm_256_256_256", (1825,), 1920, overrides=_SIMPLE_30),
    GoldenRow("server", "mm_1_512_512", (1963,), 1993, overrides=_SIMPLE_30),
    GoldenRow("mobile_c4", "mm_64_64_64", (6708,), 9750, (1528, 8, 0), _NOC_7),
    GoldenRow("mobile_c4", "mm_100_300_200", (198335,), 199337, (36229, 249, 46), _NOC_7),
    GoldenRow("server", "cv_64_64_3_1_1_28", (7811,), 8044, (5876, 288, 144)),
    GoldenRow("server", "cv_64_128_3_2_1_28", (2366,), 2498, (2052, 224, 112)),
    GoldenRow("server", "cv_64_128_1_2_0_28", (797,), 939, (2048, 196, 112)),
    GoldenRow("server", "cv_3_64_7_2_3_56", (38980,), 39207, (3205, 288, 0)),
    GoldenRow("server", "cv_64_64_3_1_1_56", (29587,), 30428, (23516, 512, 1096)),
    GoldenRow("server", "cv_128_256_3_2_1_28", (4218,), 4327, (4248, 384, 216)),
    GoldenRow("server", "cv_3_64_7_2_3_224", (198572,), 201606, (51489, 519, 5196)),
    GoldenRow("server", "cv_64_64_3_1_1_28", (7798,), 8023, overrides=_SIMPLE_30),
    GoldenRow("mobile_c4", "cv_64_64_3_1_1_28", (292226,), 292872, (52222, 311, 143)),
    GoldenRow("mobile_c4", "cv_64_128_3_2_1_28", (88564,), 90482, (16642, 112, 88)),
    GoldenRow("mobile_c4", "cv_64_128_1_2_0_28", (101046,), 103137, (18764, 110, 98)),
    GoldenRow("mobile_c1", "cv_3_64_7_2_3_56", (309445,), 310189, (10098, 204, 0)),
)
"""Every mm_*, mlp_* and cv_* row of section 16 that ran to its end on the simple NoC."""

TRANSFORMER_BLOCK = (179718, 194346, 218968, 227282, 294788, 301390, 355173, 363676)
"""Layer finishes of the transformer block of section 16 on `mobile_c4`: the hidden projection first. Total 364584."""


SMALL_LLAMA = LanguageModel("T", "swish", 16, 8, 512, 768, 1000, 256, 2, 2, True, 1)
"""Test model T of section 16."""
OPT_125M = LanguageModel("opt-125m", "relu", 12, 12, 768, 3072, 50272, 2048, 1, 1, False, 1)
"""The decoder of its row in section 16."""


@dataclass(frozen=True)
class LanguageRow:
    """A run of the language mode on `server`. finishes: of every layer, or of the last layer of every iteration."""

    name: str
    requests: tuple[Request, ...]
    scheduler: str
    finishes: tuple[int, ...]
    total: int
    model: LanguageModel = SMALL_LLAMA


LANGUAGE_ROWS = (
    LanguageRow(
        "static batch", (Request(0, 20, 2, 0), Request(0, 30, 1, 5)), "simple",
        (
            3861, 3863, 5114, 6414, 6415, 8956, 9336, 15624, 16280, 19797, 20154,
            24024, 24026, 25285, 26591, 26592, 29137, 29545, 35760, 36516, 39989, 40407,
            43902, 43904, 44934, 44936, 47050, 47093, 51604, 51647, 54420, 54463,
            57917, 57919, 58957, 58958, 61078, 61121, 65527, 65582, 68360, 68403,
        ),
        68409,
    ),
    LanguageRow(
        "iteration-level", (Request(0, 12, 3, 0), Request(100, 9, 1, 0)), "iter", (30152, 62269, 90406), 90412
    ),
    LanguageRow(
        "opt-125m", (Request(0, 32, 2, 0),), "simple",
        (
            11197, 11199, 13569, 13570, 17545, 17851, 30751, 31530, 48126, 48422,
            59604, 59606, 61429, 61430, 65035, 65079, 76408, 76475, 90593, 90635,
        ),
        90642,
        OPT_125M,
    ),
)  # fmt: skip
"""Runs of `SMALL_LLAMA` (layers of the first, ends of iterations of the second) and of the first layer of OPT-125m."""


@dataclass(frozen=True)
class Case:
    """One entry of `cases.json`."""

    name: str
    data: Mapping[str, Any]
    model_path: Path

    def hw(self, folder: Path) -> HwConfig:
        """The case's configuration, read through the importer; `folder` is a scratch folder."""
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(self.data["config"]))
        return load_hw(path)

    @property
    def model_paths(self) -> list[Path]:
        """Graphs of all entries of its list."""
        folder = self.model_path.parents[2]
        return [folder / name for name in self.data["model_files"]]

    @property
    def batch(self) -> int:
        """Size of a symbolic first dimension."""
        return self.data["models_list"][0].get("batch_size", 1)

    @property
    def dims(self) -> dict[str, int]:
        """Sizes of symbolic dimensions by name."""
        return {key: value for key, value in self.data["models_list"][0].items() if isinstance(value, int)}

    @property
    def open_dims(self) -> dict[str, int]:
        """Those of `dims` that the graph has; the list of models also says other things."""
        graph = onnx.load(self.model_path, load_external_data=False).graph
        names = {dim.dim_param for value in graph.input for dim in value.type.tensor_type.shape.dim}
        return {name: size for name, size in self.dims.items() if name in names}

    @property
    def finishes(self) -> list[int]:
        """Finish cycle of every layer."""
        return [layer["finish_cycle"] for layer in self.data["layers"]]


EXACT, ABORTS = "exact", "the original aborts; vsim must run it"
"""What `cases.json` expects of a case."""


def load_cases(shared: Path, expect: str = EXACT, mode: str = "default") -> dict[str, Case]:
    """The single-model cases of a mode ("default", "language") on the `simple` scheduler, by id.

    expect: what is expected of them.
    """

    def is_single(data: Mapping[str, Any]) -> bool:
        return data["mode"] == mode and data["scheduler"] == "simple" and len(data["models_list"]) == 1

    return {name: case for name, case in _all_cases(shared, expect).items() if is_single(case.data)}


def mix_cases(shared: Path, expect: str = EXACT) -> dict[str, Case]:
    """The cases of several models on one chip, by id; expect: what is expected of them."""
    return {name: case for name, case in _all_cases(shared, expect).items() if len(case.data["models_list"]) > 1}


def _all_cases(shared: Path, expect: str) -> dict[str, Case]:
    folder = shared / "reference" / "onnxim"
    cases = {}
    for line in (folder / "cases.json").read_text().splitlines():
        line = line.strip().rstrip(",")
        if line.startswith("{"):
            data = json.loads(line)
            if data["expect"] == expect:
                cases[data["id"]] = Case(data["id"], data, folder / data["model_files"][0])
    return cases


@dataclass(frozen=True)
class LoggedEvent:
    """One line of an event log: kind, core, core cycle, and the named numbers of the rest.

    details: as named in the log; `a` is the first byte address (a0), `dst` the local address, `L` the layer.
    """

    kind: str
    core: int
    cycle: int
    details: Mapping[str, int]


def read_events(path: Path) -> list[LoggedEvent]:
    """All lines of an event log (`README.md`, onnxim/events), in order."""
    events = []
    with gzip.open(path, "rt") as lines:
        for line in lines:
            kind, core, cycle, *rest = line.split()
            text = " ".join(rest)
            details = {name: int(value) for name, value in re.findall(r"\b([a-zL]+)(-?\d+)\b", text)}
            details |= {name: int(value, 16) for name, value in re.findall(r"\b(a|dst)0?=?([0-9a-f]+)\b", text)}
            events.append(LoggedEvent(kind, int(core), int(cycle), details))
    return events
