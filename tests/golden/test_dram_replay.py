"""`vsim dram replay`: the NPU's DRAM controller equals recorded runs of the Ramulator2 fork, command by command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hwconfigs.errors import UserError
from tests.conftest import DATA
from vsim.cli import main
from vsim.npu.replay import replay

TRACES = DATA / "dram"
HBM2 = [
    TRACES / "HBM2_fork" / f"{name}.npz"
    for name in ("raw_hazard_small_footprint", "burst_idle_mix", "conflict_same_bank_mix")
]
DDR4 = [TRACES / "DDR4_fork" / f"{name}.npz" for name in ("single_latency", "conflict_same_bank_mix")]

Fields = dict[str, NDArray]


def rewrite(trace: Path, folder: Path, change: Callable[[Fields], None]) -> Path:
    """A changed copy of a trace in `folder`, its timing table beside it."""
    with np.load(trace) as recorded:
        fields = {name: recorded[name].copy() for name in recorded.files}
    change(fields)
    np.savez(folder / trace.name, **fields)
    shutil.copy(trace.parent / "timing.json", folder)
    return folder / trace.name


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Path]:
    """Makes a changed copy of the shortest recording (`single_latency` has one request at a time)."""
    return lambda change: rewrite(DDR4[0], tmp_path, change)


@pytest.mark.parametrize("traces", [HBM2, DDR4], ids=["HBM2", "DDR4"])
def test_equals_recordings(traces: list[Path]):
    reports = replay(traces, check=True)
    assert [(report["equal"], report["first_difference"]) for report in reports] == [(True, None)] * len(traces)
    assert [report["trace"] for report in reports] == [str(trace) for trace in traces]
    for report, trace in zip(reports, traces, strict=True):
        with np.load(trace) as recorded:
            assert report["requests"] == len(recorded["req_addr"])
            assert report["cycles"] == recorded["complete"].max()
            # Forwarded reads have no command and no row state; refreshes count as misses.
            states = report["row_hits"] + report["row_misses"] + report["row_conflicts"]
            refreshes = np.sum(recorded["cmd_names"][recorded["cmd_id"]] == "REFab")
            assert report["requests"] // 2 < states <= report["requests"] + refreshes


@pytest.mark.parametrize("standard", ["HBM2_fork", "DDR4_fork"])
def test_equals_every_shared_recording(shared: Path, standard: str):
    traces = sorted((shared / "reference" / "dram" / standard).glob("*.npz"))
    assert len(traces) >= 9
    differences = {r["trace"]: r["first_difference"] for r in replay(traces, check=True) if not r["equal"]}
    assert differences == {}


def test_without_check_nothing_is_compared():
    [report] = replay(DDR4[:1])
    assert "equal" not in report


def test_folders_are_grouped_and_order_is_kept():
    mixed = [DDR4[0], *HBM2, DDR4[1]]
    assert [report["trace"] for report in replay(mixed, check=True) if report["equal"]] == [str(path) for path in mixed]


def test_changed_recordings_are_reported_with_the_first_difference(tmp_path: Path):
    """Each change is named with both values; of several, the earliest in time; an unchanged neighbour stays equal."""

    def change_accept(fields: Fields) -> None:
        fields["accept"][100] += 3

    def change_command(fields: Fields) -> None:
        # A later acceptance is wrong too: the command comes first in time.
        names = fields["cmd_names"].tolist()
        fields["cmd_id"][200] = names.index("PRE" if fields["cmd_id"][200] != names.index("PRE") else "ACT")
        fields["accept"][-1] += 1

    originals = HBM2[0], HBM2[1], HBM2[2]
    changes = change_accept, change_command, lambda fields: None
    copies = [rewrite(trace, tmp_path, change) for trace, change in zip(originals, changes, strict=True)]
    accept, command, untouched = replay(copies, check=True)

    with np.load(originals[0]) as recorded:
        true_accept = int(recorded["accept"][100])
    assert not accept["equal"]
    assert accept["first_difference"] == f"request 100 accepted at {true_accept + 3}, here {true_accept}"

    with np.load(originals[1]) as recorded:
        clock, served = int(recorded["cmd_clk"][200]), int(recorded["cmd_req"][200])
        name = str(recorded["cmd_names"][recorded["cmd_id"][200]])
    wrong = "PRE" if name != "PRE" else "ACT"
    assert not command["equal"]
    assert command["first_difference"] == f"command 200 is {(clock, wrong, served)}, here {(clock, name, served)}"
    assert untouched["equal"]


def test_changed_completion_is_reported(small: Callable[..., Path]):
    def change(fields: Fields) -> None:
        fields["complete"][7] -= 1

    [report] = replay([small(change)], check=True)
    assert not report["equal"]
    assert report["first_difference"].startswith("request 7 completed at ")


def test_bad_files_are_one_line(tmp_path: Path, small: Callable[..., Path]):
    def message(path: Path) -> str:
        with pytest.raises(UserError) as error:
            replay([path])
        assert "\n" not in str(error.value)
        assert str(path.parent) in str(error.value)
        return str(error.value)

    message(tmp_path / "absent.npz")
    text = tmp_path / "text.npz"
    text.write_text("not a trace")
    assert "not a request trace" in message(text)
    text.write_bytes(HBM2[0].read_bytes()[:-100])
    assert "cut off" in message(text)
    assert "accept" in message(small(lambda fields: fields.pop("accept")))
    assert "lengths" in message(small(lambda fields: fields.update(accept=fields["accept"][:-1])))
    requests = ("req_cycle", "req_addr", "req_write", "accept", "complete")
    assert "no requests" in message(small(lambda fields: fields.update({name: fields[name][:0] for name in requests})))
    trace = small(lambda fields: None)
    table = tmp_path / "timing.json"
    spec = json.loads(table.read_text())
    for text in ("{", "[]", "{}"):
        table.write_text(text)
        assert "timing.json" in message(trace)
    table.write_text(json.dumps(spec | {"counts": [1, 2, *spec["counts"][2:]]}))
    assert "multi-rank" in message(trace)
    table.unlink()
    assert "timing.json" in message(trace)


def test_upstream_controllers_are_refused(shared: Path):
    with pytest.raises(UserError, match="not modelled"):
        replay(sorted((shared / "reference" / "dram" / "HBM2_upstream").glob("*.npz"))[:1])


def test_command_line(small: Callable[..., Path], capsys: pytest.CaptureFixture[str]):
    assert main(["dram", "replay", *map(str, DDR4), "--check", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [(entry["trace"], entry["equal"], entry["first_difference"]) for entry in printed] == [
        (str(trace), True, None) for trace in DDR4
    ]

    def change(fields: Fields) -> None:
        fields["accept"][3] += 1

    wrong = str(small(change))
    assert main(["dram", "replay", wrong, "--check", "--json"]) == 1
    [entry] = json.loads(capsys.readouterr().out)
    assert "request 3 accepted" in entry["first_difference"]
    assert main(["dram", "replay", wrong, "--check"]) == 1
    assert "request 3 accepted" in " ".join(capsys.readouterr().out.split())
    assert main(["dram", "replay", wrong, "--json"]) == 0
    assert main(["dram", "replay", "absent.npz"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "absent.npz" in line
