"""The faults of ONNXim by name, and which of them a switch repairs (`onnxim.md` section 13).

`--compat onnxim` has all of them. `lower_onnxim`, `lower_language` and `vsim.api.SimPoint` take a set of faults to
repair, each by itself: everything else stays as the original does it, so that what a fault costs can be measured
(`vsim explain-compat`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum

SECTION = "onnxim.md section 13"


class Fault(StrEnum):
    """A row of the table in section 13."""

    Q1 = "Q1"
    Q2 = "Q2"
    Q3 = "Q3"
    Q4 = "Q4"
    Q5 = "Q5"
    Q6 = "Q6"
    Q7 = "Q7"
    Q8 = "Q8"
    Q9 = "Q9"
    Q10 = "Q10"
    Q11 = "Q11"
    Q12 = "Q12"
    Q13 = "Q13"
    Q14 = "Q14"
    Q15 = "Q15"
    Q16 = "Q16"
    Q17 = "Q17"
    Q18 = "Q18"
    Q19 = "Q19"
    Q20 = "Q20"
    Q21 = "Q21"


Repairs = frozenset[Fault]
NONE: Repairs = frozenset()


class Place(Enum):
    """Where a repair acts."""

    LOWERING = "lowering"
    """Other tiles, instructions or addresses."""
    ENGINE = "engine"
    """Other parameters, or another shape, of the cycle model."""
    HARDWARE = "hardware"
    """Another hardware description."""
    NOWHERE = "nowhere"
    """There is no switch; the description says why."""


@dataclass(frozen=True)
class Description:
    """behaviour: what the original does. repair: what is done instead, or why there is no switch.

    kept: the default mode does the same as the original, so the fault is no part of the difference between the two.
    """

    behaviour: str
    repair: str
    place: Place
    kept: bool = False


FAULTS: Mapping[Fault, Description] = {
    Fault.Q1: Description(
        "all output channels of a weight block of a convolution share one address",
        "every output channel loads its own weights",
        Place.LOWERING,
    ),
    Fault.Q2: Description(
        "the input window of a convolution starts at the output's index and has every stride-th pixel",
        "it starts at index x stride - padding and has every pixel that the kernel touches",
        Place.LOWERING,
    ),
    Fault.Q3: Description(
        "the tile size of a matrix product can come out as 0: the original divides by zero and aborts",
        "a tile of one block. Compatibility mode always does so: the baseline has this fault repaired",
        Place.NOWHERE,
    ),
    Fault.Q4: Description(
        "matrix products with as many rows as columns are not divided among cores, and the remainder is added to the "
        "number of tiles",
        "the tile counts that load the busiest core least, sizes rounded up to whole blocks",
        Place.LOWERING,
    ),
    Fault.Q5: Description(
        "a layer normalisation takes 5 cycles, its addition none; scale and shift are not read; the result overwrites "
        "the input",
        "addition, two reductions, and scaling of every row; scale, shift and bias are read; the result has its place",
        Place.LOWERING,
    ),
    Fault.Q6: Description(
        "the fused Attention computes its projection twice, one pass for all keys, and the softmax of one row; all "
        "heads read the layer's inputs in place of the projections",
        "one projection, a pass for each block of keys and features, all rows, each head's own part of the projections",
        Place.LOWERING,
    ),
    Fault.Q7: Description(
        "partial sums continue in the wrong accumulator half when the core was empty, and tiles of a chain overtake",
        "they continue where the tile before left them, in order",
        Place.ENGINE,
    ),
    Fault.Q8: Description(
        "every pass of a matrix product loads its weights anew, which is free in an idle but not empty array",
        "all blocks of rows stream through weights that stay; loading hides behind the pass before only",
        Place.LOWERING,
    ),
    Fault.Q9: Description(
        "HBM2 never refreshes and has too short timings; 32-byte requests pay a whole 64-byte burst of DDR4, which "
        "runs at half its clock",
        "the JEDEC-like table of the same device at its rated clock, requests as large as an access",
        Place.HARDWARE,
    ),
    Fault.Q10: Description(
        "the DRAM scheduler closes rows that younger requests would hit",
        "row hits go first",
        Place.ENGINE,
    ),
    Fault.Q11: Description(
        "the next layer starts while stores of this one are under way",
        "a layer ends when its stores are acknowledged",
        Place.ENGINE,
        kept=True,
    ),
    Fault.Q12: Description(
        "pooling, concatenation, elementwise and unknown operators, cache appends, and bias, residual and activation "
        "of a convolution cost nothing",
        "they load their operands, occupy the vector unit and store their results, each by itself",
        Place.LOWERING,
    ),
    Fault.Q13: Description(
        "attention counts scores in accumulators at the operands' width instead of 4 bytes",
        "4 bytes each: fewer queries a tile (the sizes of other tiles keep the limit in any case)",
        Place.LOWERING,
    ),
    Fault.Q14: Description(
        "attention of the language mode restarts its sums and its keys in every tile, reads the wrong key head, and "
        "products of a head wait for each other",
        "sums and keys go on from tile to tile, each head reads its own, results have accumulators of their own",
        Place.LOWERING,
    ),
    Fault.Q15: Description(
        "a gated feed-forward stores twice its result, the cache counts one token too many, RMS norms and their "
        "products have biases",
        "the gated half is stored, the cache has its tokens, no biases in gated models",
        Place.LOWERING,
    ),
    Fault.Q16: Description(
        "queues of cores, NoC and DRAM are unbounded, or 257 deep whatever the description says",
        "the bounded queues of the default mode, which stall their producers",
        Place.ENGINE,
    ),
    Fault.Q17: Description(
        "the first tile sizes computed for the shape of a convolution hold for all strides and paddings",
        "every stride and padding has its own",
        Place.LOWERING,
    ),
    Fault.Q18: Description("printed statistics are wrong", "no effect on timing", Place.NOWHERE),
    Fault.Q19: Description(
        "operators and shapes that the original aborts on",
        "nothing to compare with: only the default mode runs them",
        Place.NOWHERE,
    ),
    Fault.Q20: Description(
        "graph inputs reserve 16 times their size, addresses wrap above 512 MB a channel",
        "other addresses, no other behaviour",
        Place.NOWHERE,
    ),
    Fault.Q21: Description(
        "latencies of the array come from Gemmini's pipeline; no bank conflicts of scratchpads",
        "an assumption that the default mode shares",
        Place.NOWHERE,
    ),
}

SWITCHES = tuple(fault for fault, text in FAULTS.items() if text.place is not Place.NOWHERE)
"""Faults that can be repaired one by one."""
IN_DEFAULT: Repairs = frozenset(fault for fault in SWITCHES if not FAULTS[fault].kept)
"""Those that the default mode does not have."""
