"""What the benchmarks share: MNIST as arrays, a clock of epochs, pinned worker processes, and result files.

Nothing here imports a framework: a worker loads the one that it measures, and the process that starts the workers stays
small (Linux counts a parent's memory into its child's peak).
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
VALIDATION_ROWS = 6_000
SGEMM_SIZE = 2048
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)
PACKAGES = (
    *("mlp_lab", "torch", "lightning", "torchmetrics", "torchvision", "numpy"),
    *("keras", "tensorflow-cpu", "jax", "scikit-learn", "skorch", "optuna"),
)

Array = NDArray[np.generic]


class Split(NamedTuple):
    """MNIST's published training images in two parts; pixels are standardised by the training part."""

    x: Array  # (N, 784) float32
    y: Array  # (N,) int64
    x_val: Array  # (M, 784) float32
    y_val: Array  # (M,) int64


def mnist_root() -> Path:
    """Returns the folder that holds `MNIST/raw`, as `mlp_lab` finds it."""
    return Path(os.environ.get("MLP_LAB_DATA") or ROOT / "data")


def require_mnist() -> None:
    """Ends the program where MNIST's training images are absent."""
    if not any((mnist_root() / "MNIST/raw").glob("train-images-idx3-ubyte*")):
        raise SystemExit(
            f"MNIST is not in {mnist_root()}/MNIST/raw: set MLP_LAB_DATA, or let "
            "`python -m mlp_lab fit --config configs/mnist.yaml` download it"
        )


def split_indices(rows: int = 60_000, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the rows of the training and of the validation part."""
    order = np.random.default_rng(seed).permutation(rows)
    return order[VALIDATION_ROWS:], order[:VALIDATION_ROWS]


def load_mnist(train_rows: int | None = None) -> Split:
    """Reads MNIST from its IDX files.

    Args:
        train_rows: Keeps that many training rows (for a quick look); None keeps all 54,000.
    """
    raw = mnist_root() / "MNIST/raw"
    pixels = _read_idx(raw / "train-images-idx3-ubyte", header=16).reshape(-1, 784)  # (60000, 784) uint8
    labels = _read_idx(raw / "train-labels-idx1-ubyte", header=8).astype(np.int64)  # (60000,)
    train, val = split_indices(len(pixels))
    train = train[:train_rows]
    mean, std = _pixel_statistics(pixels[train])
    x, x_val = (pixels[rows].astype(np.float32) for rows in (train, val))
    for part in (x, x_val):  # in place: the benchmark reports memory
        part -= mean
        part /= std
    return Split(x, labels[train], x_val, labels[val])


def _pixel_statistics(pixels: NDArray[np.uint8]) -> tuple[float, float]:
    """Returns mean and standard deviation, exactly, from the pixels' histogram."""
    shares = sum(np.bincount(chunk.ravel(), minlength=256) for chunk in np.array_split(pixels, 60)) / pixels.size
    levels = np.arange(256)
    mean = float(shares @ levels)
    return mean, float(np.sqrt(shares @ (levels - mean) ** 2))


def _read_idx(path: Path, *, header: int) -> NDArray[np.uint8]:
    packed = path.with_name(f"{path.name}.gz")
    content = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
    return np.frombuffer(content, np.uint8, offset=header)


class EpochClock:
    """Reads the time as epochs begin, end their training and end; the first epoch is warm-up and is not counted."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.begins: list[float] = []
        self.trained_at: list[float] = []
        self.ended = 0.0

    def begin(self) -> None:
        """An epoch begins, and everything that the epoch before it did has ended."""
        self.begins.append(time.perf_counter())

    def trained(self) -> None:
        """The epoch's last optimizer step is done; a second call within an epoch counts for nothing."""
        if len(self.trained_at) < len(self.begins):
            self.trained_at.append(time.perf_counter())

    def finish(self) -> None:
        """The last epoch has ended."""
        self.ended = time.perf_counter()

    def rates(self, rows: int) -> dict[str, float]:
        """Returns what was measured.

        Args:
            rows: Training rows of an epoch.

        Returns:
            `samples_per_s`: training rows per second of wall time, from the end of the first epoch to the end of the
            fit: validation, logging and checkpoints are in it. `train_samples_per_s`: the same over the training
            phases alone. `warm_up_s`: from the worker's start to the end of the first epoch: imports, reading,
            compiling.
        """
        begins, trained = self.begins[1:], self.trained_at[1:]
        training = sum(end - begin for begin, end in zip(begins, trained, strict=True))
        return {
            "samples_per_s": rows * len(begins) / (self.ended - begins[0]),
            "train_samples_per_s": rows * len(begins) / training,
            "warm_up_s": begins[0] - self.started,
        }


CLOCK = EpochClock()  # one fit per worker process


def peak_memory() -> float:
    """Returns the most memory that this process held at once, in megabytes (10^6 bytes), since `forget_peak`."""
    with suppress(OSError):
        status = Path("/proc/self/status").read_text()
        if found := re.search(r"VmHWM:\s+(\d+) kB", status):
            return int(found[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def forget_peak() -> float:
    """Lets `peak_memory` begin anew where Linux can, and returns what this process holds now, or held at most."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def busy_seconds() -> float:
    """Returns the seconds that all cores have worked, or been taken by other machines; 0 where Linux does not say."""
    try:
        user, nice, system, _, _, *others = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9])
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")


def usable_cores() -> int:
    """Returns the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker(arguments: Sequence[str], *, threads: int, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Runs `python -m ...` in a fresh process with pinned threads and returns the JSON of its last line.

    Args:
        arguments: What follows `python -m`.
        threads: Threads of every numeric library; on Linux the process may use only that many cores, too.
        environment: Variables beside those of this process.

    Raises:
        RuntimeError: The worker failed; the message ends with what it said.
    """
    values: dict[str, Any] = json.loads(run(arguments, threads=threads, environment=environment).splitlines()[-1])
    return values


def run(arguments: Sequence[str], *, threads: int, environment: Mapping[str, str] | None = None) -> str:
    """Runs `python -m ...` as `worker` does and returns what it printed."""
    variables = dict.fromkeys(THREAD_VARIABLES, str(threads))
    quiet = {"PYTHONWARNINGS": "ignore", "TF_CPP_MIN_LOG_LEVEL": "3", "FORCE_COLOR": "1"}  # colour: a live progress bar
    result = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, **quiet, **variables, **(environment or {})},
        capture_output=True,
        text=True,
        preexec_fn=_pin(threads),
    )
    if result.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{result.stderr[-3000:]}")
    return result.stdout


def _pin(threads: int) -> Callable[[], None] | None:
    if not hasattr(os, "sched_setaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))[:threads]
    return lambda: os.sched_setaffinity(0, cores)


def sgemm_gflops(repeats: int = 5) -> float:
    """Returns the best speed of a large matrix product, in 10^9 floating-point operations per second.

    By the faster of the libraries that PyTorch carries.
    """
    import torch

    from mlp_lab.model.linear import linear

    a, b = torch.randn(2, SGEMM_SIZE, SGEMM_SIZE)
    seconds = []
    for _ in range(repeats + 1):  # the first one warms up
        start = time.perf_counter()
        linear(a, b)
        seconds.append(time.perf_counter() - start)
    return 2 * SGEMM_SIZE**3 / min(seconds[1:]) / 1e9


def missing(modules: Sequence[str]) -> list[str]:
    """Returns those of the modules that are not installed, without importing any."""
    return [name for name in modules if find_spec(name) is None]


def machine(threads: int) -> dict[str, Any]:
    """Returns what a result depends on: device, threads, versions and commit."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(),
        "threads": threads,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", "mlp_lab", "configs", "tests/benchmarks/*.py")),
    }


def device_name() -> str:
    """Returns the processor's name and its number of usable cores."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    name = re.search(r"model name\s*:\s*(.+)", text)
    return f"{name[1] if name else platform.processor() or platform.machine()}, {usable_cores()} cores"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    try:
        result = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.strip()


def write_results(name: str, values: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Writes `<name>-<device>.json` and returns its path."""
    slug = re.sub(r"[^a-z0-9]+", "-", values["machine"]["device"].lower()).strip("-")
    path = folder / f"{name}-{slug}.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n")
    return path
