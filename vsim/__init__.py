"""vsim: cycle-level simulation of many accelerator configurations at once, on JAX.

Importing this package checks that the installed JAX can be trusted; see `vsim.jax_pins`.
"""

import os

from vsim.jax_pins import check_jax_version

__version__ = "0.1.0"

check_jax_version()

# XLA's loader of cached CPU programs prints pages of "machine feature not supported" for tuning hints that are no
# features of a machine (jax 0.10.1). Real failures raise all the same. Read once, when jaxlib is loaded.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# A loop over a single lane becomes one kernel (see `vsim.devices.lanes_side_by_side`). XLA reads its flags once, when
# JAX first compiles; flags that the user chose stand.
_ONE_KERNEL = "--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=2000000000"
_flags = os.environ.get("XLA_FLAGS", "")
if "xla_backend_extra_options" not in _flags:
    os.environ["XLA_FLAGS"] = f"{_flags} {_ONE_KERNEL}".strip()
