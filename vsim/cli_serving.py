"""`vsim serve`: servers of language models, iteration by iteration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from vsim import cli_tables

_COLUMNS = {
    "chip": "chip", "policy": "policy", "rate": "rate/s", "seed": "seed", "completed": "served",
    "tokens_per_s": "tokens/s", "goodput_per_s": "good/s", "ttft_p50_s": "TTFT p50", "ttft_p95_s": "p95",
    "tpot_p50_s": "TPOT p50", "latency_p50_s": "latency p50", "latency_p99_s": "p99", "mean_batch": "batch",
    "peak_kv_share": "KV peak", "evictions": "evicted", "status": "status",
}  # fmt: skip


def serve(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="Model, chips, policies, arrivals and limits.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Write tables and figures there.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> int:
    """Serve a language model: Poisson or recorded requests, batching policies; sweeps/serving_spec.py explains it."""
    from sweeps.serving_spec import lanes_of, load_serving
    from sweeps.serving_store import content_of, write_serving
    from vsim.serving.api import serve as serve_points
    from vsim.serving.costs import default_store

    wanted = load_serving(spec)
    with cli_tables.stderr().status("tables of costs") as status:
        lanes = lanes_of(spec, wanted, default_store())
        status.update(f"serving {len(lanes)} lanes")
        results = serve_points([lane.point for lane in lanes])
    content = content_of(wanted, lanes, results)
    if as_json:
        print(json.dumps(content, indent=1))
    else:
        _print(content)
    if out is not None:
        from figures.serving import draw_serving

        write_serving(out, content, results)
        files, remarks = draw_serving(out, out)
        for line in [*remarks, *(f"wrote {file}" for file in files)]:
            cli_tables.stderr().print(f"vsim: {line}")
    return 0 if all(result.status == "ok" for result in results) else 1


def _print(content: Mapping[str, Any]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(title=f"{content['spec']['name']}: times in seconds", box=box.SIMPLE)
    for name in _COLUMNS.values():
        table.add_column(name, justify="right")
    for lane in content["lanes"]:
        table.add_row(*(_text(lane[key]) for key in _COLUMNS))
    cli_tables.stdout().print(table)


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
