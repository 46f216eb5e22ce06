"""vsim: cycle-level simulation of many accelerator configurations at once, on JAX.

Importing this package checks that the installed JAX can be trusted; see `vsim.jax_pins`.
"""

import os

from vsim.jax_pins import check_jax_version

check_jax_version()

# XLA's loader of cached CPU programs prints pages of "machine feature not supported" for tuning hints that are no
# features of a machine (jax 0.10.1). Real failures raise all the same. Read once, when jaxlib is loaded.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
