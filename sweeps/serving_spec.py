"""Serving specifications: which model is served on which chips, under which load and policy.

.. code-block:: yaml

    name: my-serving
    model: config.json                  # from this file's folder; a decoder
    costs: closed_form                  # or measured: cycle-level runs of one layer (vsim/serving/costs.py)
    chips:                              # each a lane of every combination
      - {name: hbm2, hw: npu-server-128x128x4, kv_tokens: 100000}
      - {name: fast, hw: npu-server-128x128x4, set: {clocks.dram_mhz: 1200}, kv_gib: 16}
    policies:                           # by default one: {name: continuous}
      - {name: continuous, max_batch: 32}
      - {name: chunked, max_batch: 32, token_budget: 512}
      - {name: static, batching: static, max_batch: 8}
      - {name: careful, admission: conservative}
    arrivals: {poisson: [1, 2, 4], requests: 500, seeds: [1, 2]}
                                        # requests per second; or {interval: [...], requests: N},
                                        # {onnxim: TRACE.csv} or {azure: TRACE.csv}, each with requests: the first N
    prompt: {mean: 512, variation: 0.5, longest: 2048}   # tokens, log-normal; a number: always so many
    output: 128
    slo: {ttft_s: 1.0, tpot_s: 0.05}    # limits of a good request
    queue: 10000                        # places for requests in the system; more end a lane with overflow_queue
    horizon_s: 600                      # time limit, ends a lane with status horizon
    grid: {tokens: [1, 64, 256, 1024], sequences: [1, 8, 64], context: 1023}   # where operators are tabled
    dram_efficiency: 0.82               # closed forms: share of the bus's peak

Every chip with every policy, rate and seed is a lane; all run in one batch. Generated traces of one seed are the same
requests at scaled times, so that lanes differ by what is compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from hwconfigs import HwConfig, load_hw
from hwconfigs.errors import UserError
from hwconfigs.validation import Frozen, build, within
from hwconfigs.yaml_file import read_document
from lowering.llm.configs import model_name, read_config
from lowering.models import ModelError
from sweeps.identity import simulator_digest
from vsim.serving.api import MAX_BATCH, NO_BUDGET, Policy, ServePoint
from vsim.serving.costs import DRAM_EFFICIENCY, Costs, Grid, check_decoder, kv_tokens_in, stored_costs
from vsim.serving.requests import (
    MAX_REQUESTS,
    MAX_TOKENS,
    Lengths,
    Requests,
    at_intervals,
    poisson,
    read_azure,
    read_onnxim,
)
from vsim.serving.results import Slo

MAX_LANES = 4096
Rate = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1)]
TokenCount = Annotated[int, within(1, MAX_TOKENS)]


class ChipSpec(Frozen):
    """A chip and the room for keys and values: kv_tokens, or kv_gib of its DRAM, which must hold one token or more."""

    name: Name
    hw: str
    set: dict[str, Any] = {}
    kv_tokens: Annotated[int, within(1, NO_BUDGET)] | None = None
    kv_gib: Annotated[float, Field(gt=0, le=1 << 16)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.kv_tokens is None) == (self.kv_gib is None):
            raise ValueError("expected either kv_tokens or kv_gib, the room for keys and values")
        return self


class PolicySpec(Frozen):
    """See `vsim.serving.api.Policy`."""

    name: Name = "continuous"
    batching: Literal["continuous", "static"] = "continuous"
    max_batch: Annotated[int, within(1, MAX_BATCH)] = 32
    token_budget: Annotated[int, within(1, NO_BUDGET)] | None = None
    admission: Literal["optimistic", "conservative"] = "optimistic"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.token_budget is not None and self.token_budget < self.max_batch:
            raise ValueError(f"token_budget = {self.token_budget} is less than max_batch = {self.max_batch}")
        return self

    def policy(self) -> Policy:
        """For the machine."""
        return Policy(self.batching, self.max_batch, self.token_budget, self.admission)


class ArrivalsSpec(Frozen):
    """Exactly one of poisson and interval (requests per second, one lane each), onnxim and azure (trace files)."""

    poisson: tuple[Rate, ...] | None = None
    interval: tuple[Rate, ...] | None = None
    onnxim: str | None = None
    azure: str | None = None
    requests: Annotated[int, within(1, MAX_REQUESTS)] | None = None
    seeds: Annotated[tuple[Annotated[int, within(0, 2**31 - 1)], ...], Field(min_length=1)] = (0,)

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [name for name in ("poisson", "interval", "onnxim", "azure") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("expected exactly one of poisson, interval, onnxim and azure")
        if given[0] in ("poisson", "interval"):
            if not getattr(self, given[0]):
                raise ValueError(f"{given[0]} names no rate")
            if self.requests is None:
                raise ValueError(f"{given[0]} needs requests, their number")
        elif self.seeds != (0,):
            raise ValueError("seeds go with poisson and interval")
        return self

    @property
    def rates(self) -> tuple[float, ...] | None:
        """Requests per second; None of trace files."""
        return self.poisson or self.interval


class LengthsSpec(Frozen):
    """See `vsim.serving.requests.Lengths`; a plain number stands for the mean."""

    mean: Annotated[float, Field(ge=1, le=MAX_TOKENS)]
    variation: Annotated[float, Field(ge=0, le=10)] = 0.0
    longest: TokenCount = MAX_TOKENS // 4

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, data: Any) -> Any:
        return {"mean": data} if isinstance(data, int | float) and not isinstance(data, bool) else data

    def lengths(self) -> Lengths:
        """For drawing."""
        return Lengths(self.mean, self.variation, self.longest)


class SloSpec(Frozen):
    """See `vsim.serving.results.Slo`."""

    ttft_s: Seconds | None = None
    tpot_s: Seconds | None = None


class GridSpec(Frozen):
    """See `vsim.serving.costs.Grid`."""

    tokens: tuple[TokenCount, ...] = Grid().tokens
    sequences: tuple[Annotated[int, within(1, MAX_BATCH)], ...] = Grid().sequences
    context: TokenCount = Grid().context

    @field_validator("tokens", "sequences")
    @classmethod
    def _rises(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if len(sizes) < 2 or list(sizes) != sorted(set(sizes)):
            raise ValueError("expected two or more rising sizes")
        return sizes

    def grid(self) -> Grid:
        """For the tables."""
        return Grid(self.tokens, self.sequences, self.context)


class ServingSpec(Frozen):
    """See the top of this module."""

    name: Name
    model: str
    costs: Literal["closed_form", "measured"] = "closed_form"
    chips: Annotated[tuple[ChipSpec, ...], Field(min_length=1)]
    policies: Annotated[tuple[PolicySpec, ...], Field(min_length=1)] = (PolicySpec(),)
    arrivals: ArrivalsSpec
    prompt: LengthsSpec | None = None
    output: LengthsSpec | None = None
    slo: SloSpec = SloSpec()
    queue: Annotated[int, within(1, MAX_REQUESTS)] = MAX_REQUESTS
    horizon_s: Seconds | None = None
    window_s: Seconds | None = None
    grid: GridSpec = GridSpec()
    dram_efficiency: Annotated[float, Field(gt=0, le=1)] = DRAM_EFFICIENCY

    @model_validator(mode="after")
    def _check(self) -> Self:
        generated = self.arrivals.rates is not None
        for key in ("prompt", "output"):
            if (getattr(self, key) is not None) != generated:
                raise ValueError(f"{key} goes with arrivals.poisson and arrivals.interval, which need it")
        for key in ("chips", "policies"):
            names = [entry.name for entry in getattr(self, key)]
            if len(set(names)) < len(names):
                raise ValueError(f"{key} has two entries of one name: {', '.join(names)}")
        if self.lanes > MAX_LANES:
            raise ValueError(f"{self.lanes:,} lanes; at most {MAX_LANES:,} are run")
        return self

    @property
    def lanes(self) -> int:
        """Combinations."""
        return len(self.chips) * len(self.policies) * len(self.arrivals.rates or (0,)) * len(self.arrivals.seeds)


@dataclass(frozen=True)
class Lane:
    """A point with the values that tell it from the others."""

    values: Mapping[str, Any]
    point: ServePoint


def load_serving(path: Path) -> ServingSpec:
    """Read a specification. Raises UserError with file, line and key."""
    document = read_document(path)
    return build(ServingSpec, document.data, document.where)


def lanes_of(path: Path, spec: ServingSpec, store: Path) -> list[Lane]:
    """Every combination, chips slowest. path: of the specification; store: folder that keeps tables of costs,
    those of other sources of vsim apart.

    Raises UserError for models, chips and traces that cannot be used.
    """
    model = path.parent / spec.model
    try:
        check_decoder(model)
        chips = [_chip(path, spec, chip, model, store) for chip in spec.chips]
    except UserError as error:
        raise type(error)(f"{path}: {error}") from error
    lanes = []
    for chip, hw, costs, tokens in chips:
        traces = _traces(path, spec, hw)
        for policy in spec.policies:
            for values, requests in traces:
                named = {"chip": chip.name, "policy": policy.name, **values}
                lanes.append(Lane(named, _point(spec, hw, costs, tokens, policy, requests, named)))
    _check_positions(path, model, lanes)
    return lanes


def _point(
    spec: ServingSpec,
    hw: HwConfig,
    costs: Costs,
    tokens: int,
    policy: PolicySpec,
    requests: Requests,
    values: Mapping[str, Any],
) -> ServePoint:
    return ServePoint(
        costs=costs,
        core_mhz=hw.clocks.core_mhz,
        requests=requests,
        policy=policy.policy(),
        kv_capacity=tokens,
        queue_capacity=spec.queue,
        horizon_s=spec.horizon_s,
        window_s=spec.window_s,
        slo=Slo(spec.slo.ttft_s, spec.slo.tpot_s),
        label=", ".join(f"{key} {value}" for key, value in values.items() if value is not None),
    )


def _chip(
    path: Path, spec: ServingSpec, chip: ChipSpec, model: Path, store: Path
) -> tuple[ChipSpec, HwConfig, Costs, int]:
    beside = path.parent / chip.hw
    hw = load_hw(str(beside) if beside.is_file() else chip.hw).with_overrides(chip.set)
    hw.check_modelled()
    tokens = chip.kv_tokens or kv_tokens_in(model, hw, chip.kv_gib or 0.0)
    costs = stored_costs(
        store / simulator_digest()[:16], model, hw, spec.costs, grid=spec.grid.grid(), efficiency=spec.dram_efficiency
    )
    return chip, hw, costs, tokens


def _traces(path: Path, spec: ServingSpec, hw: HwConfig) -> list[tuple[dict[str, Any], Requests]]:
    """(values, requests) of every load on a chip."""
    arrivals = spec.arrivals
    if arrivals.rates is None:
        read = read_onnxim(path.parent / arrivals.onnxim, hw.clocks.core_mhz) if arrivals.onnxim else None
        requests = read or read_azure(path.parent / (arrivals.azure or ""))
        return [({"rate": None, "seed": None}, requests.first(arrivals.requests or len(requests)))]
    assert spec.prompt is not None and spec.output is not None and arrivals.requests is not None
    generate = poisson if arrivals.poisson else at_intervals
    prompt, output = spec.prompt.lengths(), spec.output.lengths()
    return [
        ({"rate": rate, "seed": seed}, generate(rate, arrivals.requests, prompt, output, seed))
        for rate in arrivals.rates
        for seed in arrivals.seeds
    ]


def _check_positions(path: Path, model: Path, lanes: list[Lane]) -> None:
    """Raise ModelError for requests that are longer than the model can be."""
    most = read_config(model).architecture(model_name(model), str(model)).max_positions
    longest = max(int(lane.point.requests.tokens.max()) for lane in lanes)
    if longest > most:
        raise ModelError(f"{path}: a request of {longest:,} tokens is longer than the {most:,} positions of {model}")
