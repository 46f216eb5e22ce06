"""Mapping files: reading, writing, and the errors of what is no mapping line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowering.mapping import LETTERS, Mapping, MappingError
from lowering.mapping_file import (
    MappingEntry,
    check_cover,
    counts,
    format_entry,
    parse_entry,
    read_mapping_file,
    write_mapping_file,
)
from tests.conftest import DATA

PUBLISHED = [case["mapping"] for case in json.loads((DATA / "gemmini_rtl.json").read_text())["cases"]]

sizes = st.builds(Mapping, **{letter: st.integers(1, 5000) for letter in LETTERS})


@pytest.mark.parametrize("line", PUBLISHED)
def test_published_lines_are_read_written_and_cover_their_layers(line: str):
    entry = parse_entry(line)
    check_cover(entry)
    assert entry.inner.exact
    # Sizes of 1 that the writer leaves out are the only difference.
    words = [word for word in line.split() if not (word[0] in "SRPQ" and word[1:] == "1")]
    assert format_entry(entry).split() == words


def test_what_the_letters_mean():
    entry = parse_entry("[T] N1 C64 M128 P28 Q27 S3 R2 - [O] M16 C3 P2 Q2 - [I] N1 C24 M8 P15 Q17 S3 R2")
    assert entry.total == Mapping(N=1, C=64, M=128, S=3, R=2, P=28, Q=27)
    assert entry.outer_order == ("M", "C", "P", "Q")
    assert entry.inner == Mapping(C=24, M=8, S=3, R=2, P=15, Q=17, exact=True)


def test_several_inner_sections_multiply_and_spatial_marks_are_skipped():
    entry = parse_entry("[T] N4 C64 M64 - [O] N2 C2 M4 - [I] N2 C4 M2 - [I] C8Y M8X")
    assert entry.inner == Mapping(N=2, C=32, M=16, exact=True)
    # ONNXim multiplies the total by the inner N (`Mapping.cc`).
    assert entry.onnxim_total == Mapping(N=8, C=64, M=64)


@given(
    total=sizes,
    inner=sizes,
    exact=st.booleans(),
    layer=st.none() | st.text(st.characters(blacklist_categories=["Cs"]), min_size=1),
    cores=st.none() | st.lists(st.integers(0, 99), min_size=1, unique=True).map(tuple),
)
def test_what_is_written_is_read_back(
    total: Mapping, inner: Mapping, exact: bool, layer: str | None, cores: tuple[int, ...] | None
):
    values = {letter: getattr(inner, letter) for letter in LETTERS}
    tile = Mapping(**values, exact=exact)
    entry = MappingEntry(total, counts(total, tile), tile, layer=layer, cores=cores if layer else None)
    line = format_entry(entry)
    assert line.count("-") == 2, "ONNXim splits a line at every hyphen"
    assert parse_entry(line) == entry
    check_cover(parse_entry(line))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("hello", r"expected \[T\] sizes"),
        ("[T] N1 C64", r"expected \[T\] sizes"),
        ("[T] N1 - [I] N1 - [O] N1", r"expected \[T\] sizes"),
        ("[T] N1 C0 - [O] N1 - [I] N1", "'C0' is no size"),
        ("[T] N1 K5 - [O] N1 - [I] N1", "'K5' is no size"),
        ("[T] N1 N2 - [O] N1 - [I] N1", "N is given twice"),
        ("[T@0] N1 - [O] N1 - [I] N1", "names its layer"),
        ("[T:a@x] N1 - [O] N1 - [I] N1", "no list of core numbers"),
        ("[T] N1 - [O] N1 - [I:odd] N1", r"\[I\] or \[I:even\]"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, line: str, message: str):
    path = tmp_path / "bad.mapping"
    path.write_text(f"# a comment\n\n{line}\n")
    with pytest.raises(MappingError, match=message) as caught:
        read_mapping_file(path)
    assert str(caught.value).startswith(f"{path}:3: ")


@pytest.mark.parametrize(
    ("outer", "message"),
    [
        ("M7", r"7 tiles of M8 do not cover M64 of the layer; \[O\] M8 would"),
        ("M9", "9 tiles of M8 are more than fill"),
    ],
)
def test_tiles_that_do_not_cover_the_layer(outer: str, message: str):
    with pytest.raises(MappingError, match=f"f:1: {message}"):
        check_cover(parse_entry(f"[T] N1 C8 M64 - [O] {outer} - [I] N1 C8 M8", "f:1"))


def test_files(tmp_path: Path):
    path = tmp_path / "m.mapping"
    entries = tuple(parse_entry(line) for line in PUBLISHED)
    write_mapping_file(path, entries)
    assert read_mapping_file(path) == entries
    assert read_mapping_file(path)[4].origin == f"{path}:5"
    with pytest.raises(MappingError, match="No such file"):
        read_mapping_file(tmp_path / "none.mapping")
    with pytest.raises(MappingError, match="cannot be written"):
        write_mapping_file(tmp_path / "none" / "m.mapping", entries)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MappingError, match="not a text file"):
        read_mapping_file(tmp_path / "binary")
