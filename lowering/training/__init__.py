"""Training iterations: the graph of one, derived from an inference graph, and its lowering. Start at `derive`."""
