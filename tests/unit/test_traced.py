"""Traced programs that outlive the process which traced them."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import Array

from vsim import traced


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of our own."""
    monkeypatch.setattr(traced, "_folder", lambda: tmp_path / "traced")
    return tmp_path / "traced"


class Doubling:
    """Counts how often it is traced."""

    def __init__(self) -> None:
        self.traces = 0

    def __call__(self, x: Array) -> list[Array]:
        self.traces += 1
        return [2 * x]

    def run(self, name: str, size: int) -> list[int]:
        """As a new process would: JAX has not seen the function object before."""
        return jax.jit(lambda x: traced.call(lambda y: self(y), name, [x]))(jnp.arange(size))[0].tolist()


def test_traced_once_per_name_and_shape(folder: Path) -> None:
    doubling = Doubling()
    for _ in range(2):
        assert doubling.run("a", 3) == [0, 2, 4]
    assert doubling.traces == 1
    assert doubling.run("a", 2) == [0, 2]
    assert doubling.run("b", 2) == [0, 2]
    assert doubling.traces == len(list(folder.iterdir())) == 3


def test_damaged_program_is_made_anew(folder: Path) -> None:
    doubling = Doubling()
    doubling.run("a", 3)
    [path] = folder.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    assert doubling.run("a", 3) == [0, 2, 4]
    assert doubling.traces == 2


def test_a_cache_that_cannot_be_written_is_no_failure(folder: Path) -> None:
    folder.write_text("a file where the folder should be")
    assert Doubling().run("a", 3) == [0, 2, 4]
