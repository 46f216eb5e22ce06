"""What lowering needs of a hardware description, read once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from hwconfigs.schema import CoreConfig, HwConfig


@dataclass(frozen=True)
class Chip:
    """Cores and data sizes of one chip.

    cores: in order. element_bytes: bytes of an operand element. request_bytes: size of a memory block.
    """

    cores: tuple[CoreConfig, ...]
    element_bytes: int
    request_bytes: int

    @staticmethod
    def of(hw: HwConfig) -> Chip:
        """The chip that `hw` describes."""
        cores = tuple(hw.core(index) for index in range(hw.cores.count))
        return Chip(cores, hw.precision_bytes, hw.dram.request_bytes)

    @property
    def n_cores(self) -> int:
        """Number of cores."""
        return len(self.cores)

    @cached_property
    def spad_bytes(self) -> int:
        """Half of the smallest scratchpad: what one tile may fill."""
        return min(core.spad_kib for core in self.cores) * 1024 // 2

    @cached_property
    def acc_bytes(self) -> int:
        """Half of the smallest accumulator memory."""
        return min(core.acc_kib for core in self.cores) * 1024 // 2

    @cached_property
    def array_rows(self) -> int:
        """Rows of the smallest array."""
        return min(core.rows for core in self.cores)

    @cached_property
    def array_cols(self) -> int:
        """Columns of the smallest array."""
        return min(core.cols for core in self.cores)
