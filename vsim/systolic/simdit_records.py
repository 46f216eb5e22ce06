"""Recorded runs of SimDIT: layers (``layers.jsonl.gz``) and totals of networks (``networks.json``), each one batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hwconfigs.errors import UserError
from hwconfigs.systolic_schema import SystolicHw, load_systolic, systolic_preset_names
from hwconfigs.validation import build
from vsim.systolic.designs import KIB_BITS, stack
from vsim.systolic.evaluate import Totals, evaluate_pairs, totals_of_each
from vsim.systolic.layers import Layer, MatrixLayer, VectorLayer, split
from vsim.systolic.networks import MATRIX_OPERATORS, network
from vsim.systolic.report import Report, value_at

CLOCK_MHZ = 1250
LATENCIES = {
    "Inference": {"div_cycles": 9, "exp_cycles": 3, "rsqrt_cycles": 13},
    "Training": {"div_cycles": 5, "exp_cycles": 3, "rsqrt_cycles": 11},
}
"""Fixed point for inference, floating point for training."""

MATRIX_VALUES = {
    "compute": "compute_cycles",
    "stall": "stall_cycles",
    "dram.filter": "dram_filter_bits",
    "dram.ifmap": "dram_ifmap_bits",
    "dram.psum": "dram_psum_bits",
    "dram.ofmap": "dram_ofmap_bits",
    "dram.bias": "dram_bias_bits",
    "sram.filter": "sram_filter_bits",
    "sram.ifmap": "sram_ifmap_bits",
    "sram.psum": "sram_psum_bits",
    "sram.bias": "sram_bias_bits",
    "arith.mac": "macs",
    "DTile_ow": "width",
    "DTile_oh": "height",
    "DTile_oc": "out_channels",
    "DTile_kw": "kernel",
    "DTile_ic": "in_channels",
    "DTile_batch": "batch",
}
VECTOR_VALUES = {
    "compute": "compute_cycles",
    "stall": "stall_cycles",
    "dram.ifmap": "dram_in_bits",
    "dram.ofmap": "dram_out_bits",
    "sram.VMEM": "vector_memory_bits",
    "sram.IMM": "immediate_bits",
    "sram.InsMem": "instruction_bits",
}
"""Key of a record, and the field of the cost (or of the tile) that must equal it."""


def hardware(record: dict[str, Any], phase: str, where: str) -> SystolicHw:
    """The design of a record's ``hw``. Raises `UserError` for what the template cannot say."""

    def bits(key: str, memories: int = 1) -> int:
        size = value_at(record, key, where) * memories
        if size % KIB_BITS:
            raise UserError(f"{where}: {key} = {size} is not a whole number of KiB")
        return size // KIB_BITS

    if phase not in LATENCIES:
        raise UserError(f"{where}: phase {phase!r} is not known; valid: {', '.join(LATENCIES)}")
    data = {
        "name": where,
        "clock_mhz": CLOCK_MHZ,
        "array": {"rows": value_at(record, "ARRAY_N", where), "cols": value_at(record, "ARRAY_M", where)},
        "precision": {
            "activation_bits": value_at(record, "ACT_DATA_WIDTH", where),
            "weight_bits": value_at(record, "WGT_DATA_WIDTH", where),
            "bias_bits": value_at(record, "BIAS_WIDTH", where),
            "accumulator_bits": value_at(record, "ACC_WIDTH", where),
        },
        "buffers": {
            "weight_kib": bits("WBUF_CAPACITY_BITS"),
            "ifmap_kib": bits("IBUF_CAPACITY_BITS"),
            "ofmap_kib": bits("OBUF_CAPACITY_BITS", 2),
            "bias_kib": bits("BBUF_CAPACITY_BITS"),
            "vector_kib": bits("SIMD_VMEM_CAPACITY_BITS", 2),
        },
        "ports": {
            "weight_bits_per_cycle": value_at(record, "PARAMBUF_AXI_DATA_WIDTH", where),
            "ifmap_bits_per_cycle": value_at(record, "IBUF_AXI_DATA_WIDTH", where),
            "ofmap_bits_per_cycle": value_at(record, "OBUF_AXI_DATA_WIDTH", where),
            "vector_bits_per_cycle": value_at(record, "SIMD_AXI_DATA_WIDTH", where),
        },
        "vector_latency": LATENCIES[phase],
    }
    return build(SystolicHw, data, lambda _: where)


def layer(record: dict[str, Any], where: str) -> Layer:
    """The layer of a record, with the sizes it had before any tiling."""

    def size(*keys: str) -> int:
        for key in keys:
            if key in record:
                return record[key]
        raise UserError(f"{where}: key {keys[0]!r} is missing")

    operator = str(value_at(record, "op", where))
    fused = bool(record.get("fused", False))
    if operator in MATRIX_OPERATORS:
        return MatrixLayer(
            where,
            operator,
            size("OW"),
            size("OH"),
            size("OC"),
            size("IC"),
            size("KW"),
            size("Stride"),
            size("Batch"),
            fused,
        )
    narrow = size("bw_ofmap") != 32
    if "dims" in record:
        dims = record["dims"]
        width, height, channels, batch = dims.get("W", 1), dims.get("H", 1), dims["C"], dims.get("N", 1)
    else:
        width, height, channels, batch = size("OW", "IW"), size("OH", "IH"), size("OC"), size("Batch")
    return VectorLayer(
        where,
        operator,
        width,
        height,
        channels,
        batch,
        kernel=record.get("KW", 1),
        stride=record.get("Stride", 1),
        feeds_matrix=narrow,
        fused=fused,
    )


def replay_layers(runs: list[dict[str, Any]], path: Path) -> Report:
    """Every layer of every run on the run's design, all as one batch."""
    report = Report(str(path), "simdit", "layers")
    layers, designs, records = [], [], []
    for number, run in enumerate(runs, start=1):
        where = f"{path}:{number}"
        phase = str(value_at(run, "phase", where))
        design = hardware(value_at(run, "hw", where), phase, where)
        for recorded in value_at(run, "layers", where):
            name = f"{run.get('net')} {phase} design {run.get('design')} batch {run.get('batch')}"
            name += f"{' fused' if run.get('fusion') else ''}, layer {recorded.get('i')} {recorded.get('op')}"
            layers.append(layer(recorded, name))
            designs.append(design)
            records.append(recorded)
    found = evaluate_pairs(layers, stack(designs), faults=True)
    kinds = (
        (MATRIX_VALUES, found.matrix_tile._asdict() | found.matrix._asdict()),
        (VECTOR_VALUES, found.vector._asdict()),
    )
    for positions, (values, fields) in zip(split(layers), kinds, strict=True):
        computed = np.stack([fields[name] for name in values.values()], axis=-1)
        for position, row in zip(positions, computed, strict=True):
            where = layers[position].name
            recorded = [float(value_at(records[position], key, where)) for key in values]
            report.add(where, list(values), recorded, row.tolist())
    return report


def replay_networks(runs: list[dict[str, Any]], path: Path) -> Report:
    """Totals of every run: the layers of all networks, each on the design of its run, are one batch."""
    report = Report(str(path), "simdit", "networks")
    names, networks, designs = [], [], []
    for index, run in enumerate(runs):
        net, phase, design, batch, fusion = (
            value_at(run, name, f"{path}: run {index}") for name in ("net", "phase", "design", "batch", "fusion")
        )
        preset = f"simdit-{phase.lower()}-{design}"
        if preset not in systolic_preset_names():
            raise UserError(f"{path}: run {index}: design {preset!r} is none of the presets of hwconfigs/systolic")
        names.append(f"{net} {phase} design {design} batch {batch}{' fused' if fusion else ''}")
        networks.append(network(net, phase, batch=batch, fusion=fusion))
        designs.append(load_systolic(preset))
    computed = network_totals(totals_of_each(networks, stack(designs), faults=True), designs)
    for index, (name, run) in enumerate(zip(names, runs, strict=True)):
        keys = [key for key in computed if key in run]
        report.add(name, keys, [float(run[key]) for key in keys], [float(computed[key][index]) for key in keys])
    return report


def network_totals(sums: Totals, hardware: list[SystolicHw]) -> dict[str, Any]:
    """The totals that SimDIT prints, by its names: cycles, operations, and traffic in KB of 8192 bits."""
    matrix, vector = sums.matrix, sums.vector
    latency = {
        name: np.array([getattr(hw.vector_latency, f"{name}_cycles") for hw in hardware], float)
        for name in ("div", "exp", "rsqrt")
    }
    kb = {
        "WBUF": matrix.sram_filter_bits,
        "IBUF": matrix.sram_ifmap_bits,
        "OBUF": matrix.sram_psum_bits,
        "BBUF": matrix.sram_bias_bits,
        "VMEM": vector.vector_memory_bits,
        "IMM": vector.immediate_bits,
        "InsMem": vector.instruction_bits,
        "D_filter": matrix.dram_filter_bits,
        "D_ifmap": matrix.dram_ifmap_bits + vector.dram_in_bits,
        "D_psum": matrix.dram_psum_bits,
        "D_ofmap": matrix.dram_ofmap_bits + vector.dram_out_bits,
        "D_bias": matrix.dram_bias_bits,
    }
    result: dict[str, Any] = {name: np.asarray(bits) / KIB_BITS for name, bits in kb.items()}
    result["SRAM_SA"] = result["WBUF"] + result["IBUF"] + result["OBUF"] + result["BBUF"]
    result["SRAM_SIMD"] = result["VMEM"] + result["IMM"] + result["InsMem"]
    result["DRAM_SIMD"] = (vector.dram_in_bits + vector.dram_out_bits) / KIB_BITS
    result["D_total"] = sum(result[f"D_{name}"] for name in ("filter", "ifmap", "psum", "ofmap", "bias"))
    result["DRAM_SA"] = result["D_total"] - result["DRAM_SIMD"]
    result["ops_SA"] = 2 * np.asarray(matrix.macs)
    result["ops_SIMD"] = (
        vector.simple_operations
        + vector.divides * latency["div"]
        + vector.exps * latency["exp"]
        + vector.rsqrts * latency["rsqrt"]
    )
    return result | {
        "SA_comp": matrix.compute_cycles,
        "SA_stall": matrix.stall_cycles,
        "SA_total": matrix.compute_cycles + matrix.stall_cycles,
        "SIMD_comp": vector.compute_cycles,
        "SIMD_stall": vector.stall_cycles,
        "SIMD_total": vector.compute_cycles + vector.stall_cycles,
        "total": sums.cycles,
        "ops": result["ops_SA"] + result["ops_SIMD"],
    }
