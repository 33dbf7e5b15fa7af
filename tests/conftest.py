"""One thread for every test process, unless the environment says otherwise: several of them share the cores.

What the program remembers of its user goes to a folder of the tests.
"""

from __future__ import annotations

import os
import tempfile

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # before torch is imported; processes that tests start inherit it
    os.environ.setdefault(name, "1")

_state = tempfile.TemporaryDirectory(prefix="mlp_lab-state-")  # it lives as long as this process
os.environ["XDG_STATE_HOME"] = _state.name
