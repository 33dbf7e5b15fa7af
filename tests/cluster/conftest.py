"""The servers of the cluster tests, once per test process."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import servers


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A folder that the user of PostgreSQL can enter."""
    with tempfile.TemporaryDirectory(prefix="mlp_lab-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="session")
def database(folder: Path) -> Iterator[str]:
    """The address of a PostgreSQL database."""
    need("initdb", "postgres", "pg_ctl", "pg_isready")
    with servers.postgres(folder) as url:
        yield url


@pytest.fixture
def storage(database: str) -> str:
    """The address of a database of its own."""
    import psycopg

    name = f"test_{time.monotonic_ns()}"
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(f"create database {name}")
    return database.rpartition("/")[0] + f"/{name}"


@pytest.fixture(scope="session")
def cluster(folder: Path) -> Iterator[None]:
    """A Slurm cluster of one node, that the commands and submitit find."""
    need("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")
    with servers.slurm(folder) as conf, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(conf))
        yield


def need(*programs: str) -> None:
    """Skips with the reason where programs are absent; with MLP_LAB_CLUSTER_TESTS=required it fails."""
    absent = servers.missing(programs)
    if absent and os.environ.get("MLP_LAB_CLUSTER_TESTS") == "required":
        pytest.fail(f"not installed: {', '.join(absent)}")
    if absent:
        pytest.skip(f"not installed: {', '.join(absent)} (Debian: postgresql slurmctld slurmd slurm-client munge)")
