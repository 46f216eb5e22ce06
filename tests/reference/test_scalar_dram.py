"""The scalar DRAM model equals the recorded runs of the Ramulator2 fork, command by command."""

from __future__ import annotations

import numpy as np
import pytest

from tests.reference.scalar_dram import COMMANDS, DramTiming, replay

TRACES = [
    "HBM2_fork/mix9010_seq",
    "HBM2_fork/raw_hazard_small_footprint",
    "HBM2_fork/write_watermark",
    "HBM2_fork/gemm_3streams",
    "HBM2_fork/conflict_same_bank_mix",
    "DDR4_fork/poisson_40pct",
    "DDR4_fork/gemm_tile_load_store",
    "DDR4_fork/long_mix_paced8",
]


@pytest.mark.parametrize("trace", TRACES)
def test_equals_recording(shared, trace):
    folder = shared / "reference" / "dram" / trace.split("/")[0]
    recorded = np.load(folder / f"{trace.split('/')[1]}.npz")
    timing = DramTiming.from_json(folder / "timing.json")
    result = replay(
        timing,
        recorded["req_cycle"].tolist(),
        recorded["req_addr"].tolist(),
        recorded["req_write"].tolist(),
        int(recorded["end_clk"]),
    )
    assert [a.accept for a in result.accesses] == recorded["accept"].tolist()
    assert [a.complete for a in result.accesses] == recorded["complete"].tolist()
    assert [a.tag for a in result.order] == recorded["completion_order"].tolist()
    names = [str(name).replace("REFab", "REF") for name in recorded["cmd_names"]]
    assert [(c.clk, COMMANDS[c.command], -1 if c.access is None else c.access.tag) for c in result.commands] == [
        (clk, names[command], request)
        for clk, command, request in zip(
            recorded["cmd_clk"].tolist(), recorded["cmd_id"].tolist(), recorded["cmd_req"].tolist(), strict=True
        )
    ]
