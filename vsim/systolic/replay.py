"""Which recording a file is, and its replay."""

from __future__ import annotations

from pathlib import Path

from hwconfigs.errors import UserError
from vsim.systolic.report import Report, read_records
from vsim.systolic.scalesim_records import replay_cases
from vsim.systolic.simdit_records import replay_layers, replay_networks


def replay_file(path: Path, compat: str) -> Report:
    """Replay recorded runs of ``compat`` ("simdit" or "scalesim"). Raises `UserError` that names what is wrong."""
    records = read_records(path)
    kinds = {"layers": replay_layers, "total": replay_networks} if compat == "simdit" else {"dataflow": replay_cases}
    for key, replay in kinds.items():
        if key in records[0]:
            return replay(records, path)
    raise UserError(f"{path}: is no recording of {compat}; expected records with the key {' or '.join(kinds)}")
