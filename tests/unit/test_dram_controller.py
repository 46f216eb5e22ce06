"""The DRAM controller against closed forms, an independent checker of command streams, and the scalar model.

Closed forms follow from the timing table alone. Conventions (`vsim.npu.replay`): a request of cycle t is offered at
clock t, the controller ticks to t + 1; commands and completions carry the clock after the tick.
"""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwconfigs import ConfigError, HwConfig, dram_table, load_hw
from hwconfigs.dram_table import Command, DramStandard, load_standard, standard_names
from tests.reference import scalar_dram
from tests.reference.dram_checker import DramCommand, check, rules_from_standard
from vsim.npu.compile import ProgramNeeds, params_of, shape_of
from vsim.npu.dram import DramParams
from vsim.npu.replay import Replayed, Trace, run_batch

LANES, LONGEST = 8, 2048
"""Every batch has this many lanes and one stream of this length: nothing but a new organisation compiles."""
STANDARDS = standard_names()
ACT, PRE, RD, WR, PREA, REF = Command


@dataclass(frozen=True)
class Stream:
    """Requests of one channel in order: earliest cycle, in-channel block, direction."""

    cycles: list[int]
    blocks: list[int]
    writes: list[bool]

    @staticmethod
    def at_once(blocks: list[int], write: bool = False) -> Stream:
        """Requests that all wait from cycle 0 on."""
        return Stream([0] * len(blocks), blocks, [write] * len(blocks))

    def trace(self) -> Trace:
        """As the replay takes it; nothing is recorded."""
        nothing = np.zeros(0, np.int32)
        columns = np.asarray(self.cycles, np.int32), np.asarray(self.blocks, np.int32), np.asarray(self.writes, bool)
        return Trace(Path(), *columns, accept=nothing, complete=nothing, commands=[])


@dataclass(frozen=True)
class Memory:
    """One channel of a standard, with default or compat parameters."""

    hw: HwConfig
    compat: bool = False

    @staticmethod
    def of(standard: str, compat: bool = False, **changed: Any) -> Memory:
        """changed: keys of the `dram` section."""
        data = {
            "name": standard,
            "clocks": {"core_mhz": 500, "noc_mhz": 500, "dram_mhz": 500},
            "precision_bytes": 1,
            "cores": {"rows": 8, "cols": 8, "spad_kib": 64, "acc_kib": 16, "vector_bits": 64, "count": 1},
            "dram": {
                "standard": standard,
                "channels": 1,
                "request_bytes": load_standard(standard).organisation.access_bytes,
            }
            | changed,
        }
        return Memory(HwConfig.from_data(data), compat)

    @cached_property
    def table(self) -> DramStandard:
        return self.hw.dram.table()

    @property
    def params(self) -> DramParams:
        return params_of(self.hw, compat=self.compat, max_cycles=None, idle_skip=True).dram

    def distance(self, before: Command, after: Command) -> int:
        """Least distance of two commands to the same bank."""
        return max(level[before][after] for level in self.table.constraint_table())

    def place(self, block: int) -> tuple[int, int, int, int]:
        """(rank, bank group, bank, row) of a block, from the organisation."""
        finer = self.table.organisation.access_bytes // self.hw.dram.request_bytes
        fields = self.table.organisation.address_fields()
        order = ("rank", "bank_group", "bank", "row")
        rank, group, bank, row = ((block // finer >> fields[n].shift) % (1 << fields[n].bits) for n in order)
        if self.hw.dram.bank_hash and not self.compat:
            bank ^= row % self.table.organisation.banks
        return rank, group, bank, row

    def row_step(self) -> int:
        """Blocks from one row of a bank to the next one that the exchange of banks leaves in the same bank."""
        organisation = self.table.organisation
        return (
            organisation.banks * (organisation.access_bytes // self.hw.dram.request_bytes)
            << organisation.address_fields()["row"].shift
        )

    def run(self, streams: list[Stream]) -> list[Replayed]:
        """The streams side by side; the last lane, and lanes to spare, read `LONGEST` blocks in sequence."""
        shape = shape_of(self.hw, ProgramNeeds(1, 1, 1, 1), compat=self.compat).dram
        filled = [*streams, *[SEQUENCE] * (LANES - len(streams))]
        assert len(filled) == LANES
        assert filled[-1] is SEQUENCE
        return run_batch(shape, self.params, [stream.trace() for stream in filled])

    def commands(self, stream: Stream, replayed: Replayed) -> list[DramCommand]:
        """The commands with their places; an all-bank command once for every rank, as it reaches all of them."""
        placed = []
        for clock, name, request in replayed.commands:
            if request >= 0:
                placed.append(DramCommand(clock, name, *self.place(stream.blocks[request])))
            else:
                short = {"REFab": "REF"}.get(name, name)
                placed += [DramCommand(clock, short, rank) for rank in range(self.table.organisation.ranks)]
        return placed


SEQUENCE = Stream.at_once(list(range(LONGEST)))


@pytest.mark.parametrize("standard", STANDARDS)
def test_closed_forms_without_refresh(standard: str):
    """Unloaded latencies and the row cycle exactly; a sequence of reads at 90 to 100 % of the burst-limited rate."""
    memory = Memory.of(standard, refresh=False)
    rows = [memory.row_step() * row for row in range(64)]
    read, write, conflicts, sequence, *_ = memory.run(
        [Stream.at_once([5]), Stream.at_once([5], write=True), Stream.at_once(rows), SEQUENCE]
    )
    assert read.accept.tolist() == write.accept.tolist() == [0]
    assert read.complete.tolist() == [1 + memory.distance(ACT, RD) + memory.table.read_latency_cycles]
    assert write.complete.tolist() == [1 + memory.distance(ACT, WR)]
    assert (read.row_hits, read.row_misses, read.row_conflicts) == (0, 1, 0)

    precharge = memory.distance(PRE, ACT)
    row_cycle = max(
        memory.distance(ACT, ACT),
        memory.distance(ACT, PRE) + precharge,
        memory.distance(ACT, RD) + memory.distance(RD, PRE) + precharge,
    )
    assert np.unique(np.diff(conflicts.complete)).tolist() == [row_cycle]
    assert (conflicts.row_hits, conflicts.row_misses, conflicts.row_conflicts) == (0, 1, 63)

    assert 0.9 * sustained_rate(memory) <= rate(sequence) <= peak_rate(memory)


def peak_rate(memory: Memory) -> float:
    """Reads per clock: one burst after the other in every rank; one command a clock, with one ACT for every row."""
    spacing = memory.table.constraint_table()[1][RD][RD]
    columns = 1 << memory.table.organisation.column_bits
    return min(columns / (columns + 1), memory.table.organisation.ranks / spacing)


def sustained_rate(memory: Memory) -> float:
    """What a sequence reaches: the peak where it alternates between bank groups, else the rate of one bank group."""
    organisation = memory.table.organisation
    if organisation.bank_groups == 1 or organisation.order[0] in ("rank", "bank_group"):
        return peak_rate(memory)
    return 1 / memory.distance(RD, RD)


def rate(replayed: Replayed, skip: int = 128) -> float:
    """Completions per clock, start and end left out."""
    times = np.sort(replayed.complete)
    return (len(times) - 2 * skip) / (times[-1 - skip] - times[skip - 1])


@pytest.mark.parametrize("standard", [name for name in STANDARDS if load_standard(name).refreshable])
def test_refresh_takes_its_share(standard: str):
    """Of every interval a sequence loses the refresh, and closing and reopening rows around it; within 3 %."""
    interval, duration = 1000, 150
    quiet = Memory.of(standard, refresh=False).run([SEQUENCE])[0]
    memory = Memory.of(standard, timing={"nREFI": interval, "nRFC": duration})
    refreshed = memory.run([SEQUENCE])[0]
    around = memory.distance(RD, PREA) + memory.distance(PREA, REF) + memory.distance(ACT, RD)
    whole = np.sort(refreshed.complete)
    intervals = whole[-1] // interval
    assert intervals >= 2
    served = np.sum((whole > interval) & (whole <= intervals * interval)) / ((intervals - 1) * interval)
    assert served / rate(quiet) == pytest.approx(1 - (duration + around) / interval, abs=0.03)
    refreshes = [clock for clock, name, _ in refreshed.commands if name == "REFab"]
    assert np.all(np.diff(refreshes[: intervals - 1]) <= interval + around + duration)


def random_stream(memory: Memory, seed: int, length: int) -> Stream:
    """Sequences, strides, fights for a bank and random blocks, in bursts with gaps; reads and writes mixed."""
    rng = random.Random(seed)
    cycles, blocks, writes = [], [], []
    clk = 0
    while len(blocks) < length:
        base = rng.randrange(1 << 24)
        stride = rng.choice([0, 1, 1, 1, 2, 16, 128, memory.row_step(), memory.row_step() // 2])
        write_share = rng.choice([0.0, 0.1, 0.5, 1.0])
        scattered = rng.choice([0.0, 0.1, 1.0])
        for i in range(rng.randrange(4, 60)):
            cycles.append(clk)
            blocks.append(rng.randrange(1 << 24) if rng.random() < scattered else (base + i * stride) % (1 << 24))
            writes.append(rng.random() < write_share)
            clk += rng.choice([0, 0, 1, 3])
        clk += rng.choice([0, 0, 40, 400])
    return Stream(cycles[:length], blocks[:length], writes[:length])


@pytest.mark.parametrize("standard", STANDARDS)
@settings(max_examples=3)
@given(
    seed=st.integers(0, 2**32 - 1),
    scheduler=st.sampled_from(["fr_fcfs", "fr_fcfs_first_ready"]),
    queue=st.sampled_from([4, 16, 64]),
    interval=st.sampled_from([None, 3, 6]),
)
def test_random_streams_keep_every_rule(
    standard: str, seed: int, scheduler: str, queue: int, interval: int | None
) -> None:
    """interval: of refresh, in refresh durations; None: no refresh. queue: entries of the read queue."""
    timing = {} if interval is None else {"nREFI": interval * load_standard(standard).timing["nRFC"]}
    changed = {"refresh": interval is not None, "timing": timing, "read_queue": queue, "scheduler": scheduler}
    memory = Memory.of(standard, **changed)
    streams = [random_stream(memory, seed + lane, 400) for lane in range(LANES - 1)]
    rules = rules_from_standard(memory.table)
    for stream, replayed in zip(streams, memory.run(streams), strict=False):
        commands = memory.commands(stream, replayed)
        report = check(commands, rules, commands_per_clk=memory.table.organisation.ranks)
        assert [str(violation) for violation in report.violations[:3]] == []
        clocks = [clock for clock, _, _ in replayed.commands]
        assert np.all(np.diff(clocks) > 0), "two commands in one clock"
        check_conservation(memory, stream, replayed)


def check_conservation(memory: Memory, stream: Stream, replayed: Replayed) -> None:
    """Every request is accepted in order and completes once, by its own access or from a queued write."""
    accept, complete = replayed.accept, replayed.complete
    assert np.all(accept >= np.asarray(stream.cycles))
    assert np.all(np.diff(accept) >= 1)
    assert np.all(complete > accept)
    accesses = [(clock, name, request) for clock, name, request in replayed.commands if name in ("RD", "WR")]
    served = {request: clock for clock, _, request in accesses}
    assert len(served) == len(accesses), "a request was served twice"
    assert all((name == "WR") == stream.writes[request] for _, name, request in accesses)
    latency = memory.table.read_latency_cycles
    for request, (block, write) in enumerate(zip(stream.blocks, stream.writes, strict=True)):
        if write:
            assert complete[request] == served[request]
        elif request in served:
            assert complete[request] >= served[request] + latency
        else:
            queued = [
                earlier
                for earlier in range(request)
                if stream.writes[earlier] and stream.blocks[earlier] == block and complete[earlier] > accept[request]
            ]
            assert queued, f"read {request} completed without data"
    refreshes = sum(name == "REFab" for _, name, _ in replayed.commands)
    counted = replayed.row_hits + replayed.row_misses + replayed.row_conflicts
    # A refresh that has begun by closing the rows has been counted.
    assert counted - len(served) - refreshes in (0, 1)


@pytest.mark.parametrize("standard", ["HBM2_ONNXIM", "DDR4_ONNXIM", "LPDDR4_3200"])
@settings(max_examples=4)
@given(seed=st.integers(0, 2**32 - 1), interval=st.sampled_from([3, 8]))
def test_compat_equals_the_scalar_model(standard: str, seed: int, interval: int):
    timing = {"nREFI": interval * load_standard(standard).timing["nRFC"]}
    memory = Memory.of(standard, compat=True, request_bytes=32, timing=timing)
    streams = [random_stream(memory, seed + lane, 700) for lane in range(LANES - 1)]
    scalar_timing = scalar_dram.DramTiming.from_hw(memory.hw)
    for stream, ours in zip(streams, memory.run(streams), strict=False):
        end = int(ours.complete.max())
        addresses = [block * 32 for block in stream.blocks]
        scalar = scalar_dram.replay(scalar_timing, stream.cycles, addresses, [int(w) for w in stream.writes], end)
        assert ours.accept.tolist() == [access.accept for access in scalar.accesses]
        assert ours.complete.tolist() == [access.complete for access in scalar.accesses]
        names = [*scalar_dram.COMMANDS[:5], "REFab"]
        expected = [(c.clk, names[c.command], -1 if c.access is None else c.access.tag) for c in scalar.commands]
        assert [command for command in ours.commands if command[0] <= end] == expected


def test_lanes_do_not_disturb_each_other():
    """The same streams in another order give the same outcomes in that order."""
    memory = Memory.of("HBM2_2400")
    streams = [random_stream(memory, seed, 300) for seed in range(LANES - 1)]
    forward, backward = memory.run(streams), memory.run(streams[::-1])
    for one, other in zip(forward[: LANES - 1], backward[: LANES - 1][::-1], strict=True):
        assert one.commands == other.commands
        assert one.complete.tolist() == other.complete.tolist()


def test_row_hits_first_keeps_a_row_open():
    """Two rows of a bank asked for in turn, reads too far apart to hide a PRE: with hits first each row opens once."""

    def memory(scheduler: str) -> Memory:
        return Memory.of("DDR4_2400", refresh=False, scheduler=scheduler, timing={"nCCDL": 60, "nCCDS": 60})

    step = memory("fr_fcfs").row_step()
    turns = Stream.at_once([step * (i % 2) + i // 2 * 4 for i in range(32)])
    hits_first, oldest_first = (memory(name).run([turns])[0] for name in ("fr_fcfs", "fr_fcfs_first_ready"))
    assert (hits_first.row_hits, hits_first.row_misses, hits_first.row_conflicts) == (30, 1, 1)
    assert oldest_first.row_conflicts > 10
    assert hits_first.complete.max() <= oldest_first.complete.max()


def test_more_bank_groups_than_a_word_has_bits_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Sets of bank groups are one word: a standard of 16 ranks of 4 groups would be simulated wrong."""
    shutil.copy(dram_table.TABLES / "HBM2_2400.yaml", tmp_path)
    (tmp_path / "MANY.yaml").write_text("extends: HBM2_2400\nsource: a test\norganisation: {ranks: 16}\n")
    monkeypatch.setattr(dram_table, "TABLES", tmp_path)
    hw = load_hw("npu-server-128x128x4").with_overrides({"dram.standard": "MANY"})
    with pytest.raises(ConfigError, match="64 bank groups"):
        shape_of(hw, ProgramNeeds(1, 1, 1, 1), compat=False)
