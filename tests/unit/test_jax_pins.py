"""The JAX version check, and that the packaging pins agree with it."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError

import pytest
from packaging.requirements import Requirement

from tests.conftest import REPO_ROOT
from vsim.jax_pins import OLDEST, REFUSED, JaxVersionError, check_jax_version, release


def _text(number: tuple[int, int, int]) -> str:
    return ".".join(map(str, number))


def test_the_installed_version_is_accepted():
    check_jax_version()


@pytest.mark.parametrize("text", ["0.10.1", "0.11.2", "0.12.0", "1.0", "0.11.2.dev20260901"])
def test_sound_versions_are_accepted(text: str):
    check_jax_version(lambda _: text)


@pytest.mark.parametrize("number", REFUSED)
@pytest.mark.parametrize("package", ["jax", "jaxlib"])
def test_unsound_versions_are_refused_with_reason_and_advice(number: tuple[int, int, int], package: str):
    with pytest.raises(JaxVersionError) as caught:
        check_jax_version(lambda name: _text(number) if name == package else "0.10.1")
    message = str(caught.value)
    assert f"{package} {_text(number)} is refused" in message
    assert REFUSED[number] in message
    assert "0.11.2" in message
    assert "\n" not in message


def test_too_old_missing_and_unreadable_versions_are_refused():
    def missing(package: str) -> str:
        raise PackageNotFoundError(package)

    for installed in (lambda _: "0.9.9", missing, lambda _: "unknown"):
        with pytest.raises(JaxVersionError, match=r"0\.10\.1"):
            check_jax_version(installed)


def test_release_reads_the_numeric_part():
    assert release("0.11.2.dev3+g12ab") == (0, 11, 2)
    assert release("1") == (1, 0, 0)


@pytest.mark.parametrize("package", ["jax", "jaxlib"])
def test_pins_admit_no_refused_version(package: str):
    project = tomllib.loads((REPO_ROOT / "pyproject.toml").read_text())["project"]
    pins = [req for req in map(Requirement, project["dependencies"]) if req.name == package]
    for python in ("3.11", "3.12", "3.13", "3.14"):
        active = [pin for pin in pins if pin.marker is None or pin.marker.evaluate({"python_version": python})]
        assert len(active) == 1, f"Python {python} needs one pin of {package}"
        for number in REFUSED:
            assert _text(number) not in active[0].specifier
        assert _text(OLDEST if python == "3.11" else (0, 11, 2)) in active[0].specifier
