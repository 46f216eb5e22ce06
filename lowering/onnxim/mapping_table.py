"""Tile sizes of all layers of one model: from its mapping file, or from the heuristics (`onnxim.md` section 5.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hwconfigs.schema import HwConfig
from lowering.onnxim.conv_mapping import conv_mapping
from lowering.onnxim.faults import NONE, Fault, Repairs
from lowering.onnxim.mapping import GemmMapping, gemm_mapping
from lowering.onnxim.tiling import Loops


@dataclass
class MappingTable:
    """Tile extents by layer extents. given: those of the mapping file. repaired: Q4 and Q17 count."""

    hw: HwConfig
    given: Mapping[Loops, Loops] = field(default_factory=dict)
    repaired: Repairs = NONE
    _chosen: dict[tuple[Loops, int, int], Loops] = field(default_factory=dict)

    def gemm(self, n: int, m: int, k: int) -> GemmMapping:
        """Tile sizes of a matrix product of n rows, m columns and depth k."""
        tile = self.given.get(Loops(n=n, c=k, m=m))
        return gemm_mapping(self.hw, n, m, k, self.repaired) if tile is None else GemmMapping(tile.n, tile.m, tile.c)

    def conv(self, layer: Loops, stride: int, pad: int) -> Loops:
        """Tile extents of a convolution.

        The first one computed for a shape holds for all its strides and paddings (Q17), and a 1x1 kernel on one pixel
        is tiled as a matrix product.
        """
        if layer in self.given:
            return self.given[layer]
        key = (layer, stride, pad) if Fault.Q17 in self.repaired else (layer, 0, 0)
        if key not in self._chosen:
            if layer.s == layer.r == layer.q == layer.p == 1:
                tile = gemm_mapping(self.hw, layer.n, layer.m, layer.c, self.repaired)
                self._chosen[key] = Loops(n=tile.n, c=tile.k, m=tile.m)
            else:
                self._chosen[key] = conv_mapping(self.hw, layer, stride, pad)
        return self._chosen[key]
