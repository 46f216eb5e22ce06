"""Where tensors live in DRAM."""

from __future__ import annotations

from dataclasses import dataclass

ALIGNMENT_BYTES = 256


@dataclass
class AddressSpace:
    """A bump allocator from address 0: tensors never move and are never freed.

    Every tensor starts on a multiple of 256 bytes and is followed by 1 to 256 bytes of padding, so that two tensors
    never share a memory block. Source: `onnxim.md` section 3.
    """

    next_byte: int = 0

    def allocate(self, n_bytes: int) -> int:
        """Reserve `n_bytes` >= 0 bytes; returns the first byte's address, a multiple of 256."""
        if n_bytes < 0:
            raise ValueError(f"cannot reserve {n_bytes} bytes")
        address = self.next_byte
        self.next_byte = (address + n_bytes) // ALIGNMENT_BYTES * ALIGNMENT_BYTES + ALIGNMENT_BYTES
        return address
