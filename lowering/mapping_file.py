"""Mapping files: one line a layer, in ONNXim's format (`onnxim.md` section 5.4, and its source, ``Mapping.cc``).

    [T] N1 C64 M128 P28 Q28 S3 R3 - [O] N1 C3 M16 P2 Q2 S1 R1 - [I] N1 C24 M8 P15 Q17 S3 R3

``[T]`` holds the sizes of a whole layer, ``[O]`` how many tiles each is cut into (in the order of the loops, outermost
first), ``[I]`` the sizes of one tile: images N, input channels C, output channels M, kernel rows S and columns R,
output rows P and columns Q. Missing letters are 1. A matrix product writes its rows as N. Several ``[I]`` sections
multiply. An X or Y behind a number marks a spatial loop and has no effect. ONNXim ignores the tag of a section, so vsim
says there what ONNXim has no words for, in forms that ONNXim still reads:

* ``[T:conv1]`` the line is for the layer of that name only (``%XX`` for spaces and hyphens);
* ``[T:conv1@0,1]`` the line is for these cores only, and ``[T]`` the part of the layer that they compute: the lines of
  a layer equal it in all sizes but one, in which they add up to it, in the order of the lines;
* ``[I:even]`` the tiles of a dimension are as equal as possible, and layers are treated as vsim does on its own: 1x1
  convolutions are products over all pixels, small groups and kernel positions share array passes. Plain ``[I]`` cuts
  exactly these sizes, leaves the remainder to the last tile and takes one kernel position and group at a time, as
  ONNXim does.

Blank lines and lines that begin with ``#`` are skipped; ONNXim does not know comments, so vsim writes none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote, unquote

from lowering.mapping import LETTERS, Mapping, MappingError

_TAG = re.compile(r"\[([A-Z])(?::([^\]@\s]*))?(?:@([^\]\s]*))?\]")
_TOKEN = re.compile(r"([A-Z])(\d+)[XY]?")
_FORM = "[T] sizes - [O] counts - [I] sizes, such as [T] N1 C64 M64 - [O] N1 C1 M8 - [I] N1 C64 M8"


@dataclass(frozen=True)
class MappingEntry:
    """One line of a mapping file.

    total, outer, inner: the sections; a matrix product has its rows in N. inner.exact: see ``[I:even]`` above.
    outer_order: letters of ``[O]`` as written, outermost loop first.
    layer, cores: whom the line is for; None for any. origin: "FILE:LINE", or empty.
    """

    total: Mapping
    outer: Mapping
    inner: Mapping
    outer_order: tuple[str, ...] = field(default=(), compare=False)
    layer: str | None = None
    cores: tuple[int, ...] | None = None
    origin: str = field(default="", compare=False)

    @property
    def onnxim_total(self) -> Mapping:
        """The sizes under which ONNXim files the line: its parser multiplies the total N by every inner N."""
        return replace(self.total, N=self.total.N * self.inner.N)


def read_mapping_file(path: Path | str) -> tuple[MappingEntry, ...]:
    """The lines of a mapping file, in order. Where lines are for the same layer, ONNXim takes the last one.

    Raises MappingError that names file and line of what cannot be read. `check_cover` is left to who uses a line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise MappingError(f"mapping file {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise MappingError(f"mapping file {path}: not a text file") from error
    entries = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            entries.append(parse_entry(line, f"{path}:{number}"))
    return tuple(entries)


def write_mapping_file(path: Path | str, entries: Iterable[MappingEntry]) -> None:
    """Write the lines; `read_mapping_file` gives equal entries back. Raises MappingError where that is impossible."""
    text = "".join(format_entry(entry) + "\n" for entry in entries)
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise MappingError(f"mapping file {path}: cannot be written: {error.strerror or error}") from error


def parse_entry(line: str, origin: str = "") -> MappingEntry:
    """Read one line. Raises MappingError, with `origin` in front, for what is no mapping line."""
    where = f"{origin}: " if origin else ""
    sections = [section.split() for section in line.split("-")]
    tags = [_TAG.fullmatch(section[0]) if section else None for section in sections]
    letters = [tag.group(1) if tag else "?" for tag in tags]
    if letters[:2] != ["T", "O"] or set(letters[2:]) != {"I"}:
        raise MappingError(f"{where}mapping {line.strip()!r}: expected {_FORM}")
    total, outer, *inners = (_sizes(section[1:], line, where) for section in sections)
    kinds = {tag.group(2) for tag in tags[2:] if tag}
    if not kinds <= {None, "even"} or len(kinds) > 1:
        raise MappingError(
            f"{where}mapping {line.strip()!r}: the inner tag is [I] or [I:even], the same in all sections"
        )
    product = dict.fromkeys(LETTERS, 1)
    for inner in inners:
        product = {letter: size * inner.get(letter, 1) for letter, size in product.items()}
    head = tags[0]
    if head and head.group(3) is not None and not head.group(2):
        raise MappingError(f"{where}mapping {line.strip()!r}: a line for single cores names its layer, [T:LAYER@CORES]")
    return MappingEntry(
        replace(Mapping(), **total),
        replace(Mapping(), **outer),
        replace(Mapping(exact=kinds == {None}, origin=origin), **product),
        outer_order=tuple(outer),
        layer=unquote(head.group(2)) if head and head.group(2) else None,
        cores=_cores(head.group(3), line, where) if head and head.group(3) is not None else None,
        origin=origin,
    )


def format_entry(entry: MappingEntry) -> str:
    """The line of an entry."""
    layer = f":{quote(entry.layer, safe='/:.').replace('-', '%2D')}" if entry.layer is not None else ""
    cores = "@" + ",".join(map(str, entry.cores)) if entry.cores is not None else ""
    inner = "[I]" if entry.inner.exact else "[I:even]"
    return (
        f"[T{layer}{cores}] {_words(entry.total)} - [O] {_words(entry.outer, entry.outer_order)} - {inner} "
        f"{_words(entry.inner)}"
    )


def counts(total: Mapping, inner: Mapping) -> Mapping:
    """Tiles along each dimension: the `[O]` section that belongs to these totals and inner sizes."""
    sizes = {letter: -(-getattr(total, letter) // getattr(inner, letter)) for letter in LETTERS}
    return replace(Mapping(), **sizes)


def _words(sizes: Mapping, first: Sequence[str] = ()) -> str:
    """Sizes in the order of `first`, then N, C, M and what is not 1."""
    letters = [*first, *(letter for letter in LETTERS if letter not in first)]
    shown = [letter for letter in letters if letter in "NCM" or getattr(sizes, letter) > 1]
    return " ".join(f"{letter}{getattr(sizes, letter)}" for letter in shown)


def _sizes(tokens: Sequence[str], line: str, where: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for token in tokens:
        match = _TOKEN.fullmatch(token)
        if match is None or match.group(1) not in LETTERS or int(match.group(2)) < 1:
            raise MappingError(
                f"{where}mapping {line.strip()!r}: {token!r} is no size; expected one of {' '.join(LETTERS)} and "
                "a number above 0"
            )
        if match.group(1) in sizes:
            raise MappingError(f"{where}mapping {line.strip()!r}: {match.group(1)} is given twice in one section")
        sizes[match.group(1)] = int(match.group(2))
    return sizes


def _cores(text: str, line: str, where: str) -> tuple[int, ...]:
    numbers = text.split(",")
    if not all(number.isascii() and number.isdigit() for number in numbers):
        raise MappingError(f"{where}mapping {line.strip()!r}: '@{text}' is no list of core numbers, such as @0,1")
    return tuple(int(number) for number in numbers)


def check_cover(entry: MappingEntry) -> None:
    """Raise MappingError unless outer counts times inner sizes cover the layer and no tile lies beyond it."""
    where = f"{entry.origin}: " if entry.origin else ""
    needed = counts(entry.total, entry.inner)
    for letter in LETTERS:
        total, outer, inner = (getattr(part, letter) for part in (entry.total, entry.outer, entry.inner))
        if outer != getattr(needed, letter):
            what = "do not cover" if outer * inner < total else "are more than fill"
            raise MappingError(
                f"{where}{outer} tiles of {letter}{inner} {what} {letter}{total} of the layer; "
                f"[O] {letter}{getattr(needed, letter)} would"
            )
