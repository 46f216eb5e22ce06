"""vsim: cycle-level simulation of many accelerator configurations at once, on JAX.

Importing this package checks that the installed JAX can be trusted; see `vsim.jax_pins`.
"""

from vsim.jax_pins import check_jax_version

check_jax_version()
