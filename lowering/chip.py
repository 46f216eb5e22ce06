"""What lowering needs of a hardware description, read once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from hwconfigs.schema import CoreConfig, Dram, HwConfig


@dataclass(frozen=True)
class OpenRows:
    """How addresses become banks and rows, where the bank field of the address lies right below the row field.

    span_bytes: bytes of consecutive addresses with the same bank and row fields: one row of one bank of every bank
    group of every channel. banks: values of the bank field. hashed: the controller exchanges the banks of a group by
    the low bits of the row.
    """

    span_bytes: int
    banks: int
    hashed: bool

    @staticmethod
    def of(dram: Dram) -> OpenRows | None:
        """None: the memory has no rows, or its address has other fields between bank and row."""
        if not dram.is_table:
            return None
        organisation = dram.table().organisation
        fields = organisation.address_fields()
        if organisation.order[-2:] != ("bank", "row") or organisation.access_bytes != dram.request_bytes:
            return None
        span_bytes = dram.channels * dram.request_bytes << fields["bank"].shift
        return OpenRows(span_bytes, organisation.banks, dram.bank_hash)

    def bank_field(self, bank: int, row: int) -> int:
        """The bank field of the addresses that lie in bank number `bank` of their group, in row number `row`."""
        return bank ^ (row & (self.banks - 1)) if self.hashed else bank


@dataclass(frozen=True)
class Chip:
    """Cores and data sizes of one chip.

    cores: in order. element_bytes: bytes of an operand element. request_bytes: size of a memory block. open_rows: how
    the DRAM's rows lie in the address space; None: not known.
    """

    cores: tuple[CoreConfig, ...]
    element_bytes: int
    request_bytes: int
    open_rows: OpenRows | None = None

    @staticmethod
    def of(hw: HwConfig) -> Chip:
        """The chip that `hw` describes."""
        cores = tuple(hw.core(index) for index in range(hw.cores.count))
        return Chip(cores, hw.precision_bytes, hw.dram.request_bytes, OpenRows.of(hw.dram))

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
