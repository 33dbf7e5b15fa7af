"""Keeps the record of a run as it trains: its configuration, where it came from, and how many rows it has logged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import lightning as L
import torch

from mlp_lab.data.module import TensorDataModule
from mlp_lab.training.tracking import MetricsCSV, RunDirectory, provenance, write_text
from mlp_lab.training.weights_and_biases import WandbRun


class RunRecord(L.Callback):
    """Writes `config.yaml` and `provenance.json` as a run starts and cuts `metrics.csv` back where one is resumed.

    `config.yaml` is what the run began with. What a resume changes goes to `resume.yaml`, a whole configuration too.

    Args:
        run: The run's directory.
        metrics: The logger of `metrics.csv`.
        config: The whole configuration, as YAML.
        facts: Values for `provenance.json` beside the ones that every run has.
        resumed: The directory already holds this run.
        restarted: It holds no checkpoint, so that the resumed run starts again.
        latest: Let `latest` beside the directory link to it.
    """

    def __init__(
        self,
        run: RunDirectory,
        metrics: MetricsCSV,
        config: str,
        facts: Mapping[str, Any],
        *,
        resumed: bool = False,
        restarted: bool = False,
        latest: bool = False,
    ) -> None:
        self.run, self.metrics, self.config, self.facts = run, metrics, config, facts
        self.resumed, self.restarted, self.latest = resumed, restarted, latest

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Writes the record's first part, on the first process only."""
        if not trainer.is_global_zero:
            return
        self.run.make()
        for logger in trainer.loggers:
            if isinstance(logger, WandbRun):
                _ = logger.experiment  # before anything is written: a login that fails leaves no run behind
        data = cast(TensorDataModule, trainer.datamodule)  # type: ignore[attr-defined]
        now = provenance(
            **self.facts,
            device=device_name(trainer),
            processes=trainer.world_size,
            threads=torch.get_num_threads(),
            data={"fingerprint": data.fingerprint, "split": data.split_fingerprint, "rows": data.spec.rows},
        )
        if self.resumed:
            if self.restarted:
                self.metrics.resume(0)  # cut off before its first checkpoint: it starts again in place
            before = self.run.read_provenance()
            before.setdefault("resumed", []).append(now)
            self.run.write_provenance(before)
            if self.facts.get("overrides") and self.config != self.run.effective.read_text("utf-8"):
                write_text(self.run.resumed_config, self.config)
        else:
            self.run.write_provenance(now)
            write_text(self.run.config, self.config)

    def state_dict(self) -> dict[str, Any]:
        """Returns how many rows `metrics.csv` had when the checkpoint was written."""
        self.metrics.sync()
        return {"rows": self.metrics.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back the rows that were logged after the checkpoint: they will be logged again."""
        self.metrics.resume(state_dict["rows"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Points `latest` to a run that trains, and begins a resumed offline W&B segment with what is recorded."""
        if self.latest and trainer.is_global_zero:
            self.run.point_latest()
        if self.resumed and self.metrics.rows:
            for logger in trainer.loggers:
                if isinstance(logger, WandbRun):
                    logger.replay(self.metrics.read())


def device_name(trainer: L.Trainer) -> str:
    """Returns the name of the device that a trainer uses, such as `cpu` or `NVIDIA H100 80GB HBM3`."""
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
