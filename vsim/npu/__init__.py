"""The cycle-level multi-core NPU: cores, DMA, NoC and DRAM as one step over the fixed-shape state of a lane."""
