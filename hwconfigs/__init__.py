"""Hardware descriptions: validated schema, presets, importers and DRAM timing tables. Knows nothing of NumPy or JAX."""

from hwconfigs.dram_table import Command, DramStandard, Level, load_standard, standard_names
from hwconfigs.errors import ConfigError, UserError, nearest
from hwconfigs.load import load_hw, preset_names
from hwconfigs.schema import CoreConfig, HwConfig, OpLatency, dotted_keys

__all__ = [
    "Command",
    "ConfigError",
    "CoreConfig",
    "DramStandard",
    "HwConfig",
    "Level",
    "OpLatency",
    "UserError",
    "dotted_keys",
    "load_hw",
    "load_standard",
    "nearest",
    "preset_names",
    "standard_names",
]
