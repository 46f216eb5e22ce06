"""The step of a lone lane on a CPU as one compiled kernel.

`vsim.npu.step` is the model: a JAX program, for any number of lanes on any device. On a CPU it computes everything in
every tick for the sake of the lanes that need it. The kernel advances one lane and does only what the lane's state
asks for. It is equal in every part of the state but times that have passed (`tests/unit/test_kernel.py`), and runs
where Numba is installed; nothing depends on it.

The modules mirror those of `vsim.npu`, name by name. A rule of the model is explained there; whoever changes one,
changes it in both, and the tests tell if not.
"""
