"""A scalar model of one DRAM channel: the Ramulator2 fork's controller as described in `dram.md` section 2.

Plain Python, one object per channel, one call per DRAM cycle. It is an oracle: written for reading, and sharing no
code with the JAX model. Timing comes either from a recorded `timing.json` or from a `HwConfig`.

Open-page policy, one command per cycle, the oldest request whose next command is ready goes first.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hwconfigs.dram_table import DramStandard
from hwconfigs.schema import HwConfig

COMMANDS = ("ACT", "PRE", "RD", "WR", "PREA", "REF")
ACT, PRE, RD, WR, PREA, REF = range(6)
CHANNEL, RANK, GROUP, BANK = range(4)
NEVER = 1 << 60


@dataclass(frozen=True)
class DramTiming:
    """Organisation and timing of one channel. Level RANK is the pseudo-channel for HBM.

    constraints: (level, preceding command, following command, latency, window); the window counts preceding
    commands (1: since the last one, 4: since the fourth last).
    shifts, widths: of column, rank, group, bank, row in the in-channel byte address.
    interval: refresh interval in cycles, 0 when the channel is never refreshed.
    """

    counts: tuple[int, int, int]
    constraints: tuple[tuple[int, int, int, int, int], ...]
    shifts: dict[str, int]
    widths: dict[str, int]
    read_latency: int
    interval: int
    read_queue: int = 257
    write_queue: int = 257
    watermark_entries: int = 256

    @staticmethod
    def from_json(path: Path) -> DramTiming:
        """The timing of a recorded trace folder."""
        data = json.loads(path.read_text())
        level_index = {name: index for index, name in enumerate(data["levels"][:4])}
        command_index = {name: index for index, name in enumerate(COMMANDS)} | {"REFab": REF}
        names = {data["levels"][RANK]: "rank", "bankgroup": "group", "bank": "bank", "row": "row", "column": "column"}
        slices = {names[s["field"]]: s for s in data["address_mapper"]["slices_lsb_first"] if s["field"] in names}
        controller = data["controller"]
        return DramTiming(
            counts=tuple(data["counts"][1:4]),
            constraints=tuple(
                (
                    level_index[c["level"]],
                    command_index[c["preceding"]],
                    command_index[c["following"]],
                    c["latency"],
                    c["window"],
                )
                for c in data["constraints"]
                if c["preceding"] in command_index and c["following"] in command_index and not c["sibling"]
            ),
            shifts={name: s["lsb"] for name, s in slices.items()},
            widths={name: s["bits"] for name, s in slices.items()},
            read_latency=data["read_latency"],
            interval=data["timing"]["nREFI"] if controller["refresh_active"] else 0,
            read_queue=controller["queue_capacity"],
            write_queue=controller["queue_capacity"],
            watermark_entries=controller["queue_max_size"],
        )

    @staticmethod
    def from_hw(hw: HwConfig) -> DramTiming:
        """The timing of one channel of `hw`, with the fixed queue sizes of the fork."""
        return DramTiming.from_standard(hw.dram.table(), refresh=hw.dram.refresh)

    @staticmethod
    def from_standard(table: DramStandard, refresh: bool = True) -> DramTiming:
        """The timing of one channel of a standard, with the fixed queue sizes of the fork."""
        organisation = table.organisation
        fields = {name.replace("bank_group", "group"): f for name, f in organisation.address_fields().items()}
        distances = [
            (level, before, after, latency, 1)
            for level, rows in enumerate(table.constraint_table())
            for before, row in enumerate(rows)
            for after, latency in enumerate(row)
            if latency
        ]
        if table.faw:
            distances.append((RANK, ACT, ACT, table.faw, 4))
        return DramTiming(
            counts=(organisation.ranks, organisation.bank_groups, organisation.banks),
            constraints=tuple(distances),
            shifts={name: f.shift + organisation.offset_bits for name, f in fields.items()},
            widths={name: f.bits for name, f in fields.items()},
            read_latency=table.read_latency_cycles,
            interval=table.refresh_interval_cycles if table.refreshable and refresh else 0,
        )

    def place(self, address: int) -> dict[str, int]:
        """Column, rank, group, bank and row of an in-channel byte address."""
        return {name: address >> self.shifts[name] & ((1 << self.widths[name]) - 1) for name in self.shifts}


@dataclass(eq=False)
class Access:
    """One request and what became of it. `tag` is the caller's."""

    address: int
    write: bool
    tag: object = None
    accept: int = -1
    complete: int = -1
    bank: int = 0
    row: int = 0
    column: int = 0
    counted: bool = False


@dataclass(frozen=True)
class Issued:
    """One command on the bus. place: (rank, group, bank, row, column), -1 where the command has none."""

    clk: int
    command: int
    access: Access | None
    place: tuple[int, int, int, int, int]


class _Queue:
    """Requests in order of arrival, with the oldest candidate of every (bank, next command)."""

    def __init__(self) -> None:
        self.by_bank: dict[int, list[Access]] = {}
        self.size = 0

    def push(self, access: Access) -> None:
        self.by_bank.setdefault(access.bank, []).append(access)
        self.size += 1

    def remove(self, access: Access) -> None:
        requests = self.by_bank[access.bank]
        requests.remove(access)
        self.size -= 1
        if not requests:
            del self.by_bank[access.bank]

    def candidates(self, open_row: list[int]) -> Iterable[tuple[Access, int]]:
        """For every bank the oldest request of each next command: the only ones that can win."""
        for bank, requests in self.by_bank.items():
            row = open_row[bank]
            if row < 0:
                yield requests[0], ACT
                continue
            hit = conflict = None
            for access in requests:
                if access.row == row:
                    hit = hit or access
                else:
                    conflict = conflict or access
                if hit and conflict:
                    break
            if hit:
                yield hit, WR if hit.write else RD
            if conflict:
                yield conflict, PRE


@dataclass
class _Refresh:
    rank: int
    counted: bool = False


class DramChannel:
    """The controller of one channel. Per cycle: at most one `offer`, then `tick`.

    `completed` collects finished accesses (reads when their data arrives, writes when WR issues); the caller empties
    it. `log`, when a list, receives every command. hits, misses, conflicts count requests by the row state that
    their first command met; a refresh counts as a miss, likewise at its first command.
    """

    def __init__(self, timing: DramTiming, log: list[Issued] | None = None) -> None:
        self.timing = timing
        self.log = log
        self.clk = 0
        self.completed: list[Access] = []
        self.hits = self.misses = self.conflicts = 0
        ranks, groups, banks = timing.counts
        self.banks_per_rank = groups * banks
        self.open_row = [-1] * (ranks * groups * banks)
        self._reads, self._writes, self._active = _Queue(), _Queue(), _Queue()
        self._write_addresses: Counter[int] = Counter()
        self._pending: deque[tuple[int, Access]] = deque()
        self._refreshes: deque[_Refresh] = deque()
        self._write_mode = False
        # ready[level][node][command]: first cycle at which the command may issue.
        self._ready = [[[0] * 6 for _ in range(n)] for n in (1, ranks, ranks * groups, ranks * groups * banks)]
        self._activates: list[deque[int]] = [deque(maxlen=4) for _ in range(ranks)]
        self._rules = [[[] for _ in range(6)] for _ in range(4)]
        for level, before, after, latency, window in timing.constraints:
            if window > 1 and (level, before, window) != (RANK, ACT, 4):
                raise ValueError("windows other than four activates of a rank are not modelled")
            self._rules[level][before].append((after, latency, window))
        self._quiet_until = 0

    @property
    def busy(self) -> bool:
        """Whether any request is inside the controller."""
        return bool(self._reads.size or self._writes.size or self._active.size or self._pending)

    def offer(self, access: Access) -> bool:
        """Try to hand over a request; False when its queue is full. A read of a queued write's address is forwarded."""
        place = self.timing.place(access.address)
        _, groups, banks = self.timing.counts
        access.bank = (place["rank"] * groups + place["group"]) * banks + place["bank"]
        access.row, access.column = place["row"], place["column"]
        if not access.write and self._write_addresses[access.address]:
            access.accept = self.clk
            self._pending.append((self.clk + 1, access))
            return True
        queue, capacity = (
            (self._writes, self.timing.write_queue) if access.write else (self._reads, self.timing.read_queue)
        )
        if queue.size >= capacity:
            return False
        access.accept = self.clk
        queue.push(access)
        if access.write:
            self._write_addresses[access.address] += 1
        self._quiet_until = 0
        return True

    def tick(self) -> None:
        """One DRAM cycle: one completion, refresh arrival, one command."""
        self.clk += 1
        if self._pending and self._pending[0][0] <= self.clk:
            self._complete(self._pending.popleft()[1])
        interval = self.timing.interval
        if interval and self.clk % interval == 0:
            self._refreshes.extend(_Refresh(rank) for rank in range(self.timing.counts[0]))
            self._quiet_until = 0
        if self.clk >= self._quiet_until:
            self._choose_and_issue()

    # -- choosing

    def _choose_and_issue(self) -> None:
        access, command, ready_at = self._best(self._active)
        if access is None and self._refreshes:
            self._try_refresh()
            return
        if access is None:
            self._update_write_mode()
            access, command, queue_ready_at = self._best(self._writes if self._write_mode else self._reads)
            ready_at = min(ready_at, queue_ready_at)
        if access is None:
            # Nothing can be ready earlier, unless a request arrives: skip the search until then.
            self._quiet_until = ready_at
        elif command != PRE or access.bank not in self._active.by_bank:
            self._issue(access, command)
        # else: the row is still wanted by an activated request; the slot is lost.

    def _best(self, queue: _Queue) -> tuple[Access | None, int, int]:
        """The oldest request whose next command is ready, or None; that command; when the next one gets ready."""
        best, best_command, earliest = None, -1, NEVER
        for access, command in queue.candidates(self.open_row):
            ready_at = self._ready_at(access.bank, command)
            if ready_at > self.clk:
                earliest = min(earliest, ready_at)
            elif best is None or access.accept < best.accept:
                best, best_command = access, command
        return best, best_command, earliest

    def _update_write_mode(self) -> None:
        if not self._write_mode:
            self._write_mode = self._writes.size > 0.8 * self.timing.watermark_entries or not self._reads.size
        elif self._writes.size < 0.2 * self.timing.watermark_entries and self._reads.size:
            self._write_mode = False

    def _try_refresh(self) -> None:
        refresh = self._refreshes[0]
        rank = refresh.rank
        banks = range(rank * self.banks_per_rank, (rank + 1) * self.banks_per_rank)
        command = PREA if any(self.open_row[bank] >= 0 for bank in banks) else REF
        if max(self._ready[CHANNEL][0][command], self._ready[RANK][rank][command]) > self.clk:
            return
        if command == PREA and any(bank in self._active.by_bank for bank in banks):
            return
        self._apply_timing(command, (0, rank))
        self.misses += not refresh.counted
        refresh.counted = True
        if self.log is not None:
            self.log.append(Issued(self.clk, command, None, (rank, -1, -1, -1, -1)))
        if command == PREA:
            for bank in banks:
                self.open_row[bank] = -1
        else:
            self._refreshes.popleft()

    # -- issuing

    def _path(self, bank: int) -> tuple[int, int, int, int]:
        return 0, bank // self.banks_per_rank, bank // self.timing.counts[2], bank

    def _ready_at(self, bank: int, command: int) -> int:
        return max(self._ready[level][node][command] for level, node in enumerate(self._path(bank)))

    def _apply_timing(self, command: int, path: Sequence[int]) -> None:
        if command == ACT:
            self._activates[path[RANK]].append(self.clk)
        for level, node in enumerate(path):
            ready = self._ready[level][node]
            for after, latency, window in self._rules[level][command]:
                start = self.clk
                if window == 4:
                    history = self._activates[node]
                    if len(history) < 4:
                        continue
                    start = history[0]
                ready[after] = max(ready[after], start + latency)

    def _issue(self, access: Access, command: int) -> None:
        path = self._path(access.bank)
        queue = self._active
        if access not in queue.by_bank.get(access.bank, ()):
            queue = self._writes if access.write else self._reads
        self._count(access, command)
        self._apply_timing(command, path)
        if self.log is not None:
            group = path[GROUP] % self.timing.counts[1]
            bank = access.bank % self.timing.counts[2]
            self.log.append(Issued(self.clk, command, access, (path[RANK], group, bank, access.row, access.column)))
        if command == PRE:
            self.open_row[access.bank] = -1
            return
        queue.remove(access)
        if access.write and queue is self._writes:
            self._write_addresses[access.address] -= 1
        if command == ACT:
            self.open_row[access.bank] = access.row
            self._active.push(access)
        elif command == RD:
            self._pending.append((self.clk + self.timing.read_latency, access))
        else:
            self._complete(access)

    def _count(self, access: Access, command: int) -> None:
        if not access.counted:
            access.counted = True
            self.hits += command in (RD, WR)
            self.misses += command == ACT
            self.conflicts += command == PRE

    def _complete(self, access: Access) -> None:
        access.complete = self.clk
        self.completed.append(access)


@dataclass
class Replay:
    """What happened to a request trace: accesses in request order, the commands, accesses in completion order."""

    accesses: list[Access]
    commands: list[Issued] = field(default_factory=list)
    order: list[Access] = field(default_factory=list)


def replay(
    timing: DramTiming, cycles: Sequence[int], addresses: Sequence[int], writes: Sequence[int], end: int
) -> Replay:
    """Offer the requests in order, each not before its cycle and one per cycle, until `end` cycles have passed."""
    result = Replay([Access(int(a), bool(w), i) for i, (a, w) in enumerate(zip(addresses, writes, strict=True))])
    channel = DramChannel(timing, result.commands)
    head = 0
    while channel.clk < end:
        if head < len(cycles) and cycles[head] <= channel.clk and channel.offer(result.accesses[head]):
            head += 1
        channel.tick()
    result.order = channel.completed
    return result
