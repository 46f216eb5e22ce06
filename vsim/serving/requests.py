"""Requests that a server gets: generated ones, and trace files."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import numpy as np

from hwconfigs.errors import UserError
from lowering.onnxim.language import read_trace

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
"""Of the Azure LLM inference traces of 2023 and 2024 (github.com/Azure/AzurePublicDataset; Splitwise, Patel et al.,
ISCA 2024, and DynamoLLM, Stojkovic et al., HPCA 2025)."""
MAX_TOKENS = 1 << 20
"""Of one request, all together."""
MAX_REQUESTS = 1 << 17


@dataclass(frozen=True)
class Requests:
    """A trace, by arrival. seconds: float64[N], rising, from 0. prompt, output >= 1, cached >= 0: int64[N], tokens."""

    seconds: np.ndarray
    prompt: np.ndarray
    output: np.ndarray
    cached: np.ndarray

    def __post_init__(self) -> None:
        count = len(self.seconds)
        if not 1 <= count <= MAX_REQUESTS:
            raise UserError(f"{count} requests; expected 1 to {MAX_REQUESTS:,}")
        if any(len(column) != count for column in (self.prompt, self.output, self.cached)):
            raise UserError("arrivals, prompts, outputs and cached tokens differ in number")
        if np.any(np.diff(self.seconds) < 0) or self.seconds[0] < 0 or not np.isfinite(self.seconds).all():
            raise UserError("arrivals must rise from 0")
        if self.prompt.min() < 1 or self.output.min() < 1 or self.cached.min() < 0:
            raise UserError("a request needs at least one prompt and one output token")
        if self.tokens.max() > MAX_TOKENS:
            raise UserError(f"a request of {self.tokens.max():,} tokens; at most {MAX_TOKENS:,} are simulated")

    def __len__(self) -> int:
        return len(self.seconds)

    def first(self, count: int) -> Requests:
        """The first requests of the trace."""
        return Requests(self.seconds[:count], self.prompt[:count], self.output[:count], self.cached[:count])

    @property
    def tokens(self) -> np.ndarray:
        """Tokens of each request, prompt, cached ones and output together."""
        return self.prompt + self.output + self.cached


@dataclass(frozen=True)
class Lengths:
    """Distribution of lengths in tokens: mean, and, unless 0, the coefficient of variation of a log-normal one.

    Lengths are rounded and kept within 1..longest.
    """

    mean: float
    variation: float = 0.0
    longest: int = MAX_TOKENS

    def draw(self, random: np.random.Generator, count: int) -> np.ndarray:
        """int64[count]."""
        sigma = np.sqrt(np.log1p(self.variation**2))
        drawn = random.lognormal(np.log(self.mean) - sigma**2 / 2, sigma, count) if sigma else np.full(count, self.mean)
        return np.clip(np.round(drawn), 1, self.longest).astype(np.int64)


def poisson(rate: float, count: int, prompt: Lengths, output: Lengths, seed: int) -> Requests:
    """Exponential gaps at `rate` requests per second. Rates of one seed share their random numbers: gaps are scaled."""
    random = np.random.default_rng(seed)
    seconds = np.cumsum(random.exponential(1.0, count)) / rate
    return _drawn(seconds, prompt, output, random)


def at_intervals(rate: float, count: int, prompt: Lengths, output: Lengths, seed: int) -> Requests:
    """One request every 1 / `rate` seconds, the first at 0."""
    return _drawn(np.arange(count) / rate, prompt, output, np.random.default_rng(seed))


def _drawn(seconds: np.ndarray, prompt: Lengths, output: Lengths, random: np.random.Generator) -> Requests:
    count = len(seconds)
    return Requests(seconds, prompt.draw(random, count), output.draw(random, count), np.zeros(count, np.int64))


def read_onnxim(path: Path, core_mhz: int) -> Requests:
    """ONNXim's language-mode trace, whose times are core cycles. Raises UserError for another form."""
    rows = read_trace(path)
    return _named(
        path,
        ((row.arrival_cycle / (core_mhz * 1e6), row.prompt, row.target, row.cached) for row in rows),
    )


def read_azure(path: Path) -> Requests:
    """An Azure trace; its first request arrives at 0. Raises UserError with file and line for another form."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            lines = list(csv.reader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"trace {path}: cannot be read ({error})") from error
    if not lines or tuple(field.strip() for field in lines[0]) != AZURE_COLUMNS:
        raise UserError(f"{path}:1: expected the columns {', '.join(AZURE_COLUMNS)}")
    rows = [_azure_row(path, number, fields) for number, fields in enumerate(lines[1:], start=2) if fields]
    if not rows:
        raise UserError(f"trace {path}: no request")
    if any(later[0] < earlier[0] for earlier, later in pairwise(rows)):
        raise UserError(f"{path}: TIMESTAMP falls from one line to the next; expected requests by arrival")
    start = rows[0][0]
    return _named(path, (((moment - start).total_seconds(), prompt, output, 0) for moment, prompt, output in rows))


def _azure_row(path: Path, number: int, fields: list[str]) -> tuple[datetime, int, int]:
    try:
        moment, prompt, output = (field.strip() for field in fields)
        return datetime.fromisoformat(moment), int(prompt), int(output)
    except ValueError:
        raise UserError(f"{path}:{number}: expected a time and two numbers of tokens, not {fields}") from None


def _named(path: Path, rows: Iterable[tuple[float, int, int, int]]) -> Requests:
    seconds, *tokens = zip(*rows, strict=True)
    try:
        return Requests(np.array(seconds, float), *(np.array(column, np.int64) for column in tokens))
    except UserError as error:
        raise UserError(f"trace {path}: {error}") from None
