"""Reading ONNXim's JSON configuration files as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

from hwconfigs.errors import ConfigError, nearest
from hwconfigs.schema import RAMULATOR1_DRAM, SIMPLE_DRAM, HwConfig, OpLatency
from hwconfigs.validation import build
from hwconfigs.yaml_file import Document

_REQUIRED = ("num_cores", "core_freq", "core_config", "dram_type", "dram_freq", "dram_channels", "dram_req_size")
_REQUIRED += ("icnt_type", "icnt_freq", "precision", "layout", "scheduler")
# The print intervals only steer ONNXim's log.
_OPTIONAL = ("core_print_interval", "dram_print_interval", "icnt_print_interval", "dram_latency", "dram_nbl")
_OPTIONAL += ("dram_size", "dram_config_path", "icnt_latency", "icnt_injection_ports_per_core", "icnt_config_path")
_OPTIONAL += ("partition",)

_CORE_FIELDS = {
    "core_height": "rows",
    "core_width": "cols",
    "spad_size": "spad_kib",
    "accum_spad_size": "acc_kib",
    "vector_process_bit": "vector_bits",
}
_CORE_KEYS = ("core_type", "sram_width", *_CORE_FIELDS, *(f"{op}_latency" for op in OpLatency.model_fields))

_DRAM_TABLES = {"HBM2": "HBM2_ONNXIM", "HBM2_2Gbps": "HBM2_2GBPS_ONNXIM", "DDR4": "DDR4_ONNXIM"}
"""Standard for each of ONNXim's Ramulator2 files, by file name without suffix."""

_SCHEMA_KEYS = {
    "clocks.core_mhz": "core_freq",
    "clocks.noc_mhz": "icnt_freq",
    "clocks.dram_mhz": "dram_freq",
    "precision_bytes": "precision",
    "cores.count": "num_cores",
    "dram.channels": "dram_channels",
    "dram.request_bytes": "dram_req_size",
    "dram.latency_cycles": "dram_latency",
    "dram.size_gib": "dram_size",
    "noc.latency_cycles": "icnt_latency",
    "noc.ports_per_core": "icnt_injection_ports_per_core",
}
"""Where a schema key comes from, so that a range error can point at the line of the original key."""


def is_onnxim(data: object) -> bool:
    """True if the contents of a file look like an ONNXim configuration."""
    return isinstance(data, Mapping) and "num_cores" in data


def import_onnxim(document: Document) -> HwConfig:
    """Translate an ONNXim configuration. Raises `ConfigError` for unknown or missing keys and unusable values.

    ``dram_type: ramulator`` and ``icnt_type: booksim2`` are accepted here; `HwConfig.check_modelled` refuses them.
    """
    config = document.data
    _check_keys(config, (*_REQUIRED, *_OPTIONAL), _REQUIRED, lambda key: f"{document.where([key])}: ", "")
    where = f"{document.where(['core_config'])}: "
    cores = _cores(config, where)
    data = {
        "name": document.path.stem,
        "source": f"ONNXim configuration {document.path.name}",
        "clocks": {
            "core_mhz": config["core_freq"],
            "noc_mhz": config["icnt_freq"],
            "dram_mhz": config["dram_freq"],
        },
        "precision_bytes": config["precision"],
        "cores": cores,
        "dram": _dram(config, f"{document.where(['dram_config_path'])}: "),
        "noc": {
            "kind": config["icnt_type"],
            "latency_cycles": config.get("icnt_latency", 1),
            "ports_per_core": config.get("icnt_injection_ports_per_core", 1),
        },
        "onnxim": _options(config, f"{document.where(['partition'])}: "),
    }
    return build(HwConfig, data, lambda loc: document.where([_SCHEMA_KEYS.get(".".join(map(str, loc)), "")]))


def _check_keys(
    given: object,
    known: tuple[str, ...],
    required: tuple[str, ...],
    where: Callable[[str], str],
    prefix: str,
) -> None:
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where('')}{prefix.rstrip('.')} must be an object")
    for key in given:
        if key not in known:
            raise ConfigError(f"{where(key)}unknown key '{prefix}{key}'{nearest(key, known)}")
    for key in required:
        if key not in given:
            raise ConfigError(f"{where('')}key '{prefix}{key}' is missing")


def _cores(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    count, described = config["num_cores"], config["core_config"]
    if not isinstance(count, int) or not isinstance(described, Mapping):
        raise ConfigError(f"{where}num_cores must be a whole number and core_config an object")
    names = [f"core_{index}" for index in range(count)]
    for name in described:
        if name not in names:
            raise ConfigError(f"{where}core_config.{name} describes a core beyond num_cores = {count}")
    cores = []
    for name in names:
        if name not in described:
            raise ConfigError(f"{where}core_config.{name} is missing; num_cores is {count}")
        cores.append(_core(described[name], f"core_config.{name}.", where))
    if not cores:
        raise ConfigError(f"{where}num_cores = {count} is out of range: expected at least 1")
    overrides = {index: _difference(core, cores[0]) for index, core in enumerate(cores) if core != cores[0]}
    return cores[0] | {"count": count, "overrides": overrides}


def _core(core: Mapping[str, Any], prefix: str, where: str) -> dict[str, Any]:
    required = tuple(key for key in _CORE_KEYS if key != "sram_width")
    _check_keys(core, _CORE_KEYS, required, lambda _: where, prefix)
    if core["core_type"] != "systolic_ws":
        raise ConfigError(f"{where}{prefix}core_type = {core['core_type']!r} is not modelled; expected 'systolic_ws'")
    fields = {ours: core[theirs] for theirs, ours in _CORE_FIELDS.items()}
    return fields | {"latency": {op: core[f"{op}_latency"] for op in OpLatency.model_fields}}


def _difference(core: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    own = {key: value for key, value in core.items() if key != "latency" and value != base[key]}
    latency = {op: cycles for op, cycles in core["latency"].items() if cycles != base["latency"][op]}
    return own | ({"latency": latency} if latency else {})


def _dram(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    return {
        "standard": _standard(config, where),
        "channels": config["dram_channels"],
        "request_bytes": config["dram_req_size"],
        "latency_cycles": config.get("dram_latency", 1),
        "size_gib": config.get("dram_size", 0),
        "scheduler": "fr_fcfs_first_ready",
    }


def _standard(config: Mapping[str, Any], where: str) -> str:
    kind = config["dram_type"]
    if kind == "simple":
        return SIMPLE_DRAM
    if kind == "ramulator":
        return RAMULATOR1_DRAM
    if kind != "ramulator2":
        known = ("simple", "ramulator", "ramulator2")
        raise ConfigError(f"{where}dram_type = {kind!r} is unknown{nearest(kind, known)}")
    path = config.get("dram_config_path")
    if not isinstance(path, str):
        raise ConfigError(f"{where}key 'dram_config_path' is missing; dram_type ramulator2 needs it")
    stem = PurePosixPath(path).stem
    if stem not in _DRAM_TABLES:
        raise ConfigError(f"{where}dram_config_path names {stem!r}, which has no table{nearest(stem, _DRAM_TABLES)}")
    return _DRAM_TABLES[stem]


def _options(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    keys = ("scheduler", "layout", "dram_type", "icnt_type", "dram_config_path", "icnt_config_path", "dram_nbl")
    options = {key: config[key] for key in keys if key in config}
    partition = config.get("partition")
    if partition is not None:
        names = tuple(f"core_{index}" for index in range(config["num_cores"]))
        _check_keys(partition, ("nr_partition", *names), names, lambda _: where, "partition.")
        options["partition"] = [partition[name] for name in names]
    return options
