"""How long ONNXim's vector unit takes (`onnxim.md` section 2.6), faults included. Sizes in bytes, times in cycles."""

from __future__ import annotations

from dataclasses import dataclass

from hwconfigs.schema import CoreConfig


@dataclass(frozen=True)
class VectorUnit:
    """The vector unit of one core."""

    core: CoreConfig

    def passes(self, n_bytes: int) -> int:
        """Vectors in `n_bytes` >= 0 bytes."""
        return -(-n_bytes // (self.core.vector_bits // 8))

    def elementwise(self, op: str, n_bytes: int) -> int:
        """Any of add, mul, mac, div, exp, gelu, or comp (a comparison: one cycle a vector), over `n_bytes` bytes."""
        latency = 1 if op == "comp" else getattr(self.core.latency, op)
        return self.passes(n_bytes) * latency

    def adder_tree(self, n_bytes: int, rows: int) -> int:
        """Reduce `rows` rows of `n_bytes` bytes each to one value a row."""
        steps, left = 1, self.passes(n_bytes)
        while left > 1:
            steps += left
            left = self.passes(left)
        return steps * self.core.latency.add_tree * rows

    def softmax(self, n_bytes: int, rows: int, *, elementwise_rows: int = 1) -> int:
        """Two reductions a row; the elementwise part is of `elementwise_rows`, a single one in the original (Q6)."""
        latency = self.core.latency
        elementwise = self.passes(n_bytes * elementwise_rows) * (latency.add + latency.exp + latency.mul)
        return 2 * self.adder_tree(n_bytes, rows) + elementwise

    def layer_norm(self) -> int:
        """The original passes a size of 0: it takes as long for any number of rows and columns (Q5)."""
        latency = self.core.latency
        return 2 * latency.add_tree + 2 * latency.scalar_mul + latency.scalar_sqrt

    def layer_norm_rows(self, n_bytes: int, rows: int) -> int:
        """What the original's formula gives for its true sizes: two reductions, a root and the scaling of every row."""
        latency = self.core.latency
        scaling = self.passes(n_bytes * rows) * (2 * latency.add + 3 * latency.mul)
        return 2 * self.adder_tree(n_bytes, rows) + (2 * latency.scalar_mul + latency.scalar_sqrt) * rows + scaling
