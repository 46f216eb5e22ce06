"""Replay of recorded DRAM request traces through the controller of the cycle-level model, many traces as one batch.

Format and clock convention of the traces: `../shared/specs/dram.md` section 1. At clock t the oldest waiting request is
offered once if its `req_cycle` <= t; then the controller ticks to t + 1. Acceptance carries t, commands and completions
carry t + 1.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from numpy.typing import NDArray

from hwconfigs.errors import UserError
from vsim.npu import dram
from vsim.npu.fields import FAR, pick

COMMAND_NAMES = ("ACT", "PRE", "RD", "WR", "PREA", "REFab")
LEVEL_OF_NAME = {"channel": 0, "pseudochannel": 1, "rank": 1, "bankgroup": 2, "bank": 3}
TICKS_PER_CHUNK = 2048


@dataclass(frozen=True)
class Trace:
    """One recorded trace: requests in order, and what the recorded controller did with them."""

    path: Path
    request_cycle: NDArray[np.int32]
    block: NDArray[np.int32]
    is_write: NDArray[np.bool_]
    accept: NDArray[np.int32]
    complete: NDArray[np.int32]
    commands: list[tuple[int, str, int]]
    """(clock, command name, served request or -1) in order of issue."""


@dataclass(frozen=True)
class Replayed:
    """What vsim's controller did with a trace; same conventions as `Trace`. -1 where a request never got there."""

    accept: NDArray[np.int32]
    complete: NDArray[np.int32]
    commands: list[tuple[int, str, int]]
    row_hits: int
    row_misses: int
    row_conflicts: int


class _Traces(struct.PyTreeNode):
    """The traces on the device: [N, L], padded with requests that never come; count: int32[L]."""

    request_cycle: Array
    block: Array
    is_write: Array
    count: Array


def replay(paths: list[Path], *, check: bool = False) -> list[dict[str, Any]]:
    """Replay traces and report one dict per trace, in the given order.

    Each dict has `trace, requests, cycles, row_hits, row_misses, row_conflicts`; with `check` also `equal` and
    `first_difference` (None or one line).

    Raises UserError when a file is not a trace or its folder has no readable `timing.json`.
    """
    traces = [load_trace(path) for path in paths]
    groups: dict[Path, list[int]] = {}
    for index, trace in enumerate(traces):
        groups.setdefault(trace.path.parent.resolve(), []).append(index)
    reports: list[dict[str, Any]] = [{} for _ in traces]
    for folder, members in groups.items():
        shape, params = load_controller(folder / "timing.json")
        for index, replayed in zip(members, run_batch(shape, params, [traces[i] for i in members]), strict=True):
            reports[index] = _report(traces[index], replayed, check)
    return reports


def _report(trace: Trace, replayed: Replayed, check: bool) -> dict[str, Any]:
    report: dict[str, Any] = {
        "trace": str(trace.path),
        "requests": len(trace.block),
        "cycles": int(replayed.complete.max(initial=0)),
        "row_hits": replayed.row_hits,
        "row_misses": replayed.row_misses,
        "row_conflicts": replayed.row_conflicts,
    }
    if check:
        difference = first_difference(trace, replayed)
        report |= {"equal": difference is None, "first_difference": difference}
    return report


def load_trace(path: Path) -> Trace:
    """Read one `.npz` trace. Raises UserError when the file is missing, lacks a field or contradicts itself."""
    try:
        with np.load(path, allow_pickle=False) as data:
            fields = {name: data[name] for name in data.files}
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or 'not readable'}") from None
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        raise UserError(f"{path}: not a request trace: no .npz archive of arrays, or one that was cut off") from None
    needed = ("req_cycle", "req_addr", "req_write", "accept", "complete", "cmd_clk", "cmd_id", "cmd_req", "cmd_names")
    missing = [name for name in needed if name not in fields]
    if missing:
        raise UserError(f"{path}: no field {missing[0]!r}; a request trace has {', '.join(needed)}")
    for group in (needed[:5], needed[5:8]):
        lengths = {name: fields[name].size for name in group}
        if len(set(lengths.values())) > 1:
            raise UserError(f"{path}: fields of different lengths: {lengths}")
    if not fields["req_cycle"].size:
        raise UserError(f"{path}: the trace has no requests")
    names = [str(name) for name in fields["cmd_names"]]
    commands = zip(fields["cmd_clk"].tolist(), fields["cmd_id"].tolist(), fields["cmd_req"].tolist(), strict=True)
    return Trace(
        path=path,
        request_cycle=fields["req_cycle"].astype(np.int32),
        block=(fields["req_addr"] >> 5).astype(np.int32),
        is_write=fields["req_write"].astype(bool),
        accept=fields["accept"].astype(np.int32),
        complete=fields["complete"].astype(np.int32),
        commands=[(clock, names[command], request) for clock, command, request in commands],
    )


def load_controller(path: Path) -> tuple[dram.DramShape, dram.DramParams]:
    """Shape and parameters from a recording's `timing.json`. Raises UserError for controllers not modelled."""
    try:
        spec = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: the traces' timing table is missing or not JSON ({error})") from None
    try:
        _check_modelled(path, spec)
        return _controller_shape(spec), _controller_params(spec)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not the timing table of a recording ({error!r})") from None


def _check_modelled(path: Path, spec: dict[str, Any]) -> None:
    levels, counts = spec["levels"][:4], spec["counts"][:4]
    if [LEVEL_OF_NAME.get(name) for name in levels] != [0, 1, 2, 3] or spec["controller"].get("impl") != "Generic":
        raise UserError(f"{path}: controller {spec['controller'].get('impl')!r} with levels {levels} is not modelled")
    if (levels[1] == "rank" and counts[1] > 1) or "completions_per_tick" not in spec["controller"]:
        raise UserError(f"{path}: multi-rank and upstream Ramulator controllers are not modelled")


def _controller_shape(spec: dict[str, Any]) -> dram.DramShape:
    _, ranks, groups, banks = spec["counts"][:4]
    return dram.DramShape(
        channels=1, ranks=ranks, groups=ranks * groups, banks=ranks * groups * banks,
        queue=spec["controller"]["queue_capacity"], pending=64,
    )  # fmt: skip


def _controller_params(spec: dict[str, Any]) -> dram.DramParams:
    timing = np.zeros((dram.N_LEVELS, dram.N_COMMANDS, dram.N_COMMANDS), np.int32)
    window = 0
    for rule in spec["constraints"]:
        before, after = rule["preceding"], rule["following"]
        if before not in COMMAND_NAMES or after not in COMMAND_NAMES or rule["sibling"]:
            continue
        level = LEVEL_OF_NAME[rule["level"]]
        if rule["window"] == 4:
            window = rule["latency"]
            continue
        at = level, COMMAND_NAMES.index(before), COMMAND_NAMES.index(after)
        timing[at] = max(timing[at], rule["latency"])
    slices = {entry["field"]: entry for entry in spec["address_mapper"]["slices_lsb_first"]}
    controller = spec["controller"]
    capacity = controller["queue_capacity"]
    values = {
        "four_activate_window": window,
        "read_latency": spec["read_latency"],
        "refresh_interval": spec["timing"]["nREFI"] if controller["refresh_active"] else FAR,
        "write_high": controller["enter_write_mode_when_writes_ge"],
        "write_low": controller["leave_write_mode_when_writes_le"],
        "read_capacity": capacity,
        "write_capacity": capacity,
        "rank_shift": slices[spec["levels"][1]]["lsb"] - 5,
        "group_shift": slices["bankgroup"]["lsb"] - 5,
        "bank_shift": slices["bank"]["lsb"] - 5,
        "row_shift": slices["row"]["lsb"] - 5,
        "row_mask": (1 << slices["row"]["bits"]) - 1,
        "bank_hash": 0,
        "hit_first": 0,
    }
    return dram.DramParams(timing=jnp.asarray(timing), **{k: jnp.int32(v) for k, v in values.items()})


def run_batch(shape: dram.DramShape, params: dram.DramParams, traces: list[Trace]) -> list[Replayed]:
    """Replay traces of one controller side by side, until each has completed its requests (or 2**20 ticks idle)."""
    longest = max(len(trace.block) for trace in traces)

    def padded(values: NDArray[Any], fill: int) -> NDArray[np.int32]:
        return np.pad(values.astype(np.int32), (0, longest - len(values)), constant_values=fill)

    lanes = _Traces(
        request_cycle=jnp.asarray(np.stack([padded(t.request_cycle, FAR) for t in traces], axis=-1)),
        block=jnp.asarray(np.stack([padded(t.block, 0) for t in traces], axis=-1)),
        is_write=jnp.asarray(np.stack([padded(t.is_write, 0) for t in traces], axis=-1) > 0),
        count=jnp.asarray([len(t.block) for t in traces], jnp.int32),
    )
    params = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[..., None], (*leaf.shape, len(traces))), params)
    state = dram.init(shape, params)
    position = jnp.zeros(len(traces), jnp.int32)
    completed = np.zeros(len(traces), int)
    last_request = max(int(t.request_cycle.max(initial=0)) for t in traces)
    log: list[dict[str, NDArray[Any]]] = []
    while np.any(completed < [len(t.block) for t in traces]) and len(log) * TICKS_PER_CHUNK < last_request + 2**20:
        state, position, events = _run_chunk(params, lanes, state, position)
        log.append({name: np.asarray(value) for name, value in events.items()})
        completed = completed + np.sum(log[-1]["read_done"], axis=0) + np.sum(log[-1]["write_done"], axis=0)
    events = {name: np.concatenate([chunk[name] for chunk in log]) for name in log[0]}
    return [_collect(events, lane, len(trace.block), state) for lane, trace in enumerate(traces)]


@partial(jax.jit, donate_argnums=(2, 3))
def _run_chunk(
    params: dram.DramParams, traces: _Traces, state: dram.DramState, position: Array
) -> tuple[dram.DramState, Array, dict[str, Array]]:
    def one_tick(carry: tuple[dram.DramState, Array], _: None) -> tuple[Any, dict[str, Array]]:
        state, position, events = _tick(params, traces, *carry)
        return (state, position), events

    (state, position), events = jax.lax.scan(one_tick, (state, position), None, length=TICKS_PER_CHUNK)
    return state, position, events


def _tick(
    params: dram.DramParams, traces: _Traces, state: dram.DramState, position: Array
) -> tuple[dram.DramState, Array, dict[str, Array]]:
    at = jnp.minimum(position, traces.block.shape[0] - 1)
    cycle, block = pick(traces.request_cycle, at), pick(traces.block, at)
    valid = (position < traces.count) & (cycle <= state.clock)
    always = jnp.ones((1, position.size), bool)
    room = dram.Room(always, always)
    offer = dram.Offer(valid[None], pick(traces.is_write, at)[None], block[None], at[None])
    state, accepted = dram.accept(params, state, offer, room)
    state, outcome = dram.tick(params, state, room, always[0])
    events = {
        "clock": state.clock,
        "accepted": jnp.where(accepted[0], position, -1),
        "read_done": outcome.read_done[0],
        "read": outcome.read_meta[0],
        "write_done": outcome.write_done[0],
        "write": outcome.write_meta[0],
        "command": jnp.where(outcome.issued[0], outcome.command[0], -1),
        "served": outcome.command_meta[0],
    }
    return state, position + accepted[0], events


def _collect(events: dict[str, NDArray[Any]], lane: int, requests: int, state: dram.DramState) -> Replayed:
    of = {name: values[:, lane] for name, values in events.items()}
    accept = np.full(requests, -1, np.int32)
    complete = np.full(requests, -1, np.int32)
    taken = of["accepted"] >= 0
    accept[of["accepted"][taken]] = of["clock"][taken] - 1
    for done, request in (("read_done", "read"), ("write_done", "write")):
        complete[of[request][of[done]]] = of["clock"][of[done]]
    issued = np.flatnonzero(of["command"] >= 0)
    commands = [(int(of["clock"][i]), COMMAND_NAMES[of["command"][i]], int(of["served"][i])) for i in issued]
    rows = [
        int(np.asarray(counter)[:, lane].sum()) for counter in (state.row_hits, state.row_misses, state.row_conflicts)
    ]
    return Replayed(accept, complete, commands, *rows)


def first_difference(trace: Trace, replayed: Replayed) -> str | None:
    """One line naming the first thing that differs from the recording, in order of time; None when all is equal."""
    found: list[tuple[int, str]] = []
    for what, recorded, ours in (
        ("accepted", trace.accept, replayed.accept),
        ("completed", trace.complete, replayed.complete),
    ):
        different = np.flatnonzero(recorded != ours)
        if different.size:
            request = int(different[np.argmin(recorded[different])])
            found.append(
                (int(recorded[request]), f"request {request} {what} at {recorded[request]}, here {ours[request]}")
            )
    # The recording goes on for some time after the last completion: refreshes there are beyond the comparison.
    horizon = int(max(trace.complete.max(initial=0), 0))
    recorded_commands = [c for c in trace.commands if c[0] <= horizon]
    our_commands = [c for c in replayed.commands if c[0] <= horizon]
    for index in range(max(len(recorded_commands), len(our_commands))):
        recorded_command = recorded_commands[index] if index < len(recorded_commands) else None
        our_command = our_commands[index] if index < len(our_commands) else None
        if recorded_command != our_command:
            when = min(c[0] for c in (recorded_command, our_command) if c is not None)
            found.append((when, f"command {index} is {recorded_command}, here {our_command}"))
            break
    return min(found)[1] if found else None
