"""Hardware descriptions: validated schema, presets, importers and DRAM timing tables. Knows nothing of NumPy or JAX."""
