"""Mapping files in ONNXim's format."""

from __future__ import annotations

import onnx
import pytest

from hwconfigs.errors import UserError
from lowering import MappingTable, lower
from lowering.emit import expand
from lowering.onnxim import lower_onnxim
from lowering.onnxim.tiling import Loops, read_mapping_file
from tests import models
from tests.golden.onnxim_reference import CONFIGURATIONS

SERVER = CONFIGURATIONS["server"]
LINE = "[T] N1 C64 M64 P56 Q56 S3 R3 - [O] N1 C1 M4 P3 Q3 S1 R1 - [I] N1 C64 M16 P23 Q22 S3 R3"


def test_sections_and_defaults(tmp_path):
    path = tmp_path / "model.mapping"
    path.write_text(f"{LINE}\n\n[T] N1 C512 M1000 - [O] N1 C1 M5 - [I] C512Y M124X - [I] M2\n")
    assert read_mapping_file(path) == {
        Loops(n=1, c=64, m=64, s=3, r=3, q=56, p=56): Loops(n=1, c=64, m=16, s=3, r=3, q=22, p=23),
        Loops(n=1, c=512, m=1000): Loops(n=1, c=512, m=248),
    }


def test_images_of_the_layer_are_those_of_the_tile_times_the_total(tmp_path):
    """ONNXim's parser multiplies the total N by the inner N, and finds the line by the product (`Mapping.cc`)."""
    path = tmp_path / "model.mapping"
    path.write_text("[T] N1 C768 M768 - [O] N1 C1 M6 - [I] N128 C768 M128\n")
    assert read_mapping_file(path) == {Loops(n=128, c=768, m=768): Loops(n=128, c=768, m=128)}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[T] N1 C64 - [I] N1 C64", r"expected \[T\] sizes - \[O\] counts - \[I\] sizes"),
        ("[T] N1 C64 - [O] N1 - [I] N1 C0", "'C0' is no size"),
        ("[T] N1 K64 - [O] N1 - [I] N1", "'K64' is no size"),
        ("[T] N1 C64 - [O] N1 C2 - [I] N1 C16", "2 tiles of C16 do not cover C64"),
        ("[T] N64 C64 - [O] N2 C4 - [I] N32 C16", r"2 tiles of N32 do not cover N2048 \(.* N64 by the inner N32\)"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    path = tmp_path / "model.mapping"
    path.write_text(f"{LINE}\n{line}\n")
    with pytest.raises(UserError, match=rf"model\.mapping:2: .*{message}"):
        read_mapping_file(path)


def test_the_file_beside_the_model_is_used(tmp_path):
    path = tmp_path / "cv.onnx"
    onnx.save(models.conv(64, 64, 3, 1, 1, 56), path)
    (tmp_path / "cv.mapping").write_text(LINE)
    program = lower_onnxim(path, SERVER)
    assert program.layers[0].notes == ("tile N1 C64 M16 S3 R3 Q22 P23",)
    assert len(list(expand(program))) == 4 * 3 * 3
    # Each tile stores whole blocks of 128 channels, also those of the tiles beside it, as far as there are any.
    assert program.layers[0].store_bytes == 56 * 56 * 2 * (64 + 48 + 32 + 16)


def test_a_file_elsewhere_is_named(tmp_path):
    """`vsim run --compat onnxim --mapping FILE`: in place of the one beside the model."""
    path, elsewhere = tmp_path / "cv.onnx", tmp_path / "tiles.mapping"
    onnx.save(models.conv(64, 64, 3, 1, 1, 56), path)
    elsewhere.write_text(LINE)
    (tmp_path / "cv.mapping").write_text("[T] C64 M64 P56 Q56 S3 R3 - [O] C1 - [I] C64 M64 P56 Q56 S3 R3")
    program = lower(path, SERVER, compat="onnxim", mapping=MappingTable.read(elsewhere))
    assert program.layers[0].notes == ("tile N1 C64 M16 S3 R3 Q22 P23",)
    elsewhere.write_text("[T] C64 M64 P56 Q56 S3 R3 - [O] M1 - [I] C64 M16 P56 Q56 S3 R3")
    with pytest.raises(UserError, match=r"tiles\.mapping:1: 1 tiles of M16 do not cover M64"):
        lower(path, SERVER, compat="onnxim", mapping=MappingTable.read(elsewhere))


def test_tiles_that_overfill_the_scratchpad_are_named(tmp_path):
    path = tmp_path / "cv.onnx"
    onnx.save(models.conv(64, 64, 3, 1, 1, 56), path)
    (tmp_path / "cv.mapping").write_text("[T] C64 M64 P56 Q56 S3 R3 - [O] N1 - [I] C64 M64 P56 Q56 S3 R3")
    with pytest.raises(UserError, match=r"node conv: a tile of N1 C64 M64 .* half a scratchpad"):
        lower_onnxim(path, SERVER.with_overrides({"cores.spad_kib": 512}))
