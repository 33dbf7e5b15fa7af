"""One thread for every test process, unless the environment says otherwise: several of them share the cores."""

from __future__ import annotations

import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # before torch is imported; processes that tests start inherit it
    os.environ.setdefault(name, "1")
