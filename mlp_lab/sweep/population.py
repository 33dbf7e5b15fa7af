"""Trials that are trained together: those of a batch that can be stacked, seeds of a trial side by side."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mlp_lab.diagnostics.settings import DEFAULT_GROUPS
from mlp_lab.errors import NonFiniteError, UserError
from mlp_lab.population.diagnosis import ALONE, PopulationDiagnostics
from mlp_lab.population.memory import SHARE, chunks, free_bytes, mega, member_bytes
from mlp_lab.population.module import PopulationModule
from mlp_lab.population.optimizers import RULES
from mlp_lab.population.stopping import MemberStop
from mlp_lab.sweep.chunks import Chunk, Chunks, fingerprint
from mlp_lab.sweep.members import Members
from mlp_lab.sweep.pruning import Rungs
from mlp_lab.sweep.runs import Judge, Outcome, Point
from mlp_lab.sweep.serial import Alone, Builder, Course, Run, Silence
from mlp_lab.training.random_state import RandomState
from mlp_lab.training.schedules import SCHEDULES
from mlp_lab.training.slurm import one_process_trainer
from mlp_lab.training.threads import computing_with, one_process_threads

# What members of a population may each have their own of.
FREE = ("depth", "width", "activation", "init", "bias", "dropout", "input_dropout", "label_smoothing", "max_norm")
FREE_GROUPS = ("model.optimizer.", "model.schedule.")
CLIP = "trainer.gradient_clip_val"
FEWEST = 3
"""Members that are worth a stack: one or two take up to 1.4 times as long in one as alone (digits, batches of 32)."""
HEAVY, FEW_ROWS = 300_000, 64
"""Weights of a network that a CPU trains faster alone in batches of so few rows: they stay in the cache from step to
step, and those of a stack do not (three and eight of 512 units: 0.72 and 0.81 of the speed that they have alone)."""


class Together(Alone):
    """The backend that trains a batch as populations; what cannot be stacked is trained alone.

    Args:
        builder: Builds the runs.
        batch: Trials that are asked together.
        metrics: The metrics of the study.
        maximize: Which of them are better when they are higher.
        seeds: Runs per trial.
        prune: Codes of verdicts that end a trial.
        chunks: Where stacks are kept in training, so that they go on after they were cut off.
        memory: Bytes that a stack may take, or a run alone; None means `SHARE` of what is free.
        fewest: Members that are worth a stack; fewer are trained alone.
    """

    def __init__(
        self,
        builder: Builder,
        *,
        batch: int,
        metrics: Sequence[str],
        maximize: Sequence[bool],
        seeds: int = 1,
        prune: Sequence[str] = (),
        chunks: Chunks | None = None,
        memory: int | None = None,
        fewest: int = FEWEST,
    ) -> None:
        super().__init__(builder, metrics=metrics, maximize=maximize, seeds=seeds, prune=prune)
        self.batch, self.chunks, self.memory, self.fewest = batch, chunks, memory, fewest

    def train(self, points: list[Point], judge: Judge, tell: Callable[[Outcome], None]) -> None:
        """Goes on with what was cut off, and trains the other points in groups that can be stacked."""
        again = self.chunks.find(points) if self.chunks is not None else []
        known = [point for _, mine in again for point in mine]
        fresh = [point for point in points if point not in known]
        for chunk, mine in again:
            fresh += self._go_on(chunk, mine, judge, tell)
        self._begin(fresh, judge, tell)

    def _begin(self, points: list[Point], judge: Judge, tell: Callable[[Outcome], None]) -> None:
        """Trains points from the start."""
        groups: dict[str, list[Point]] = {}
        for point in points:
            groups.setdefault(group_key(point.settings), []).append(point)
        for group in groups.values():
            self._train_group(group, judge, tell)

    def _go_on(self, chunk: Chunk, mine: list[Point], judge: Judge, tell: Callable[[Outcome], None]) -> list[Point]:
        """Goes on with some points of a stack that was cut off; returns those that are to be trained from the start."""
        assert self.chunks is not None
        asked = {point.seed: point for point in mine}
        points = [asked.get(point.seed, point) for point in chunk.points]
        try:
            runs = [run for point in points for run in self._runs(point)]
            if fingerprint(runs) != chunk.settings:
                raise UserError("its settings were others")
            self._train_stack(points, runs, judge, tell, chunk)
        except UserError as error:
            words = f"{len(mine)} trials are trained from the start, for its checkpoint cannot be used"
            self.chunks.show(f"{chunk.folder}: {words} ({error})")
            return mine
        return []

    def _runs(self, point: Point) -> list[Run]:
        return [self.builder.build(point.settings, point.seed + seed) for seed in range(self.seeds)]

    def _train_group(self, points: list[Point], judge: Judge, tell: Callable[[Outcome], None]) -> None:
        alone: list[Point] = []
        together: list[tuple[Point, list[Run], int]] = []  # with the bytes that its runs take
        for point in points:
            try:
                runs = self._runs(point)
                size = sum(self._size(run) for run in runs)
            except UserError as error:
                course = Course(state="failed", error=str(error))
                tell(self.outcome(point.number, [course], 0.0))
                continue
            if stackable(runs[0]) and not is_heavy(runs[0]) and (self.memory is None or size <= self.memory):
                together.append((point, runs, size))
            else:
                alone.append(point)
        device = device_of(together[0][1][0].trainer) if together else "cpu"  # the same for all of a group
        for part in self._parts([size for _, _, size in together], device):
            chosen = [together[place] for place in part]
            runs = [run for _, some, _ in chosen for run in some]
            group = [point for point, _, _ in chosen]
            alone += self._train_stack(group, runs, judge, tell) if len(runs) >= self.fewest else group
        super().train(alone, judge, tell)

    def _size(self, run: Run) -> int:
        """Returns the bytes that a run takes in a stack; alone it takes hardly less.

        Raises:
            UserError: They are more than `memory`, so that it may not even be trained alone.
        """
        mlp, rows, rule = run.module.model, run.data.train_batch_size, run.module.optimizer_config
        joint = device_of(run.trainer) == "cuda"
        size = member_bytes(mlp, rows, optimizer=rule.name, momentum=rule.momentum, joint=joint)
        if self.memory is not None and size > self.memory:
            raise UserError(
                f"memory: a trial of about {mega(size)} does not fit into {mega(self.memory)}; allow more, or make the "
                "network or data.batch_size smaller"
            )
        return size

    def _parts(self, sizes: Sequence[int], device: str) -> list[list[int]]:
        """Splits trials of so many bytes into parts that fit into the memory of a device."""
        if self.memory is not None or not sizes:
            return chunks(sizes, self.memory or 0)
        free = free_bytes(device)
        if free is None:
            return [list(range(len(sizes)))]
        return chunks(sizes, max(round(SHARE * free), max(sizes)))  # one alone is tried in any case

    def _train_stack(
        self,
        points: list[Point],
        runs: list[Run],
        judge: Judge,
        tell: Callable[[Outcome], None],
        chunk: Chunk | None = None,
    ) -> list[Point]:
        """Trains a stack, from a checkpoint where a chunk has one.

        Returns:
            The points that turned out to need training alone.

        Raises:
            UserError: The chunk's checkpoint cannot be gone on from; nothing was trained then.
        """
        first = runs[0]
        try:
            module = stack(runs)
        except UserError:
            if chunk is not None:
                raise
            return points
        diagnostics = quiet_diagnostics(first.diagnostics)
        members = Members(points, self, Rungs.of(judge, first.trainer), tell, diagnostics)
        settings: dict[str, Any] = {**first.trainer, "gradient_clip_val": None}
        settings["callbacks"] = [diagnostics, members, RandomState()]
        if self.chunks is not None:
            settings["callbacks"].append(self.chunks.keeper(points, fingerprint(runs)))
            settings["enable_checkpointing"] = True
        broken: Exception | None = None
        try:
            path = chunk.checkpoint if chunk is not None else None
            fit_stack(settings, module, runs, path)
        except NonFiniteError:
            members.note_failures(module)
        except Exception as error:
            if chunk is not None and not members.begun:
                raise UserError(" ".join(f"{type(error).__name__}: {error}".split())) from error
            if not isinstance(error, MemoryError | RuntimeError | ValueError):  # as for a trial alone
                raise
            broken = error.with_traceback(None)  # its frames hold the stack
        left = [points[trial] for trial in members.left]
        if broken is not None and is_out_of_memory(broken) and len(left) > (chunk is None):
            first.data.trainer = None
            del module, diagnostics, members, settings  # they hold each other, and the halves need their memory
            gc.collect()
            self._halve(left, judge, tell)
            return []
        if broken is not None:
            members.fail(broken)
        for trial in members.left:
            members.end(trial)
        return []

    def _halve(self, points: list[Point], judge: Judge, tell: Callable[[Outcome], None]) -> None:
        """Trains what is left of a stack in halves; of one that had gone on from a checkpoint, a last point anew."""
        if len(points) == 1:
            self._begin(points, judge, tell)
            return
        for half in (points[: len(points) // 2], points[len(points) // 2 :]):
            self.train(half, judge, tell)


def fit_stack(settings: Mapping[str, Any], module: PopulationModule, runs: Sequence[Run], path: Path | None) -> None:
    """Fits a population of some runs, from a checkpoint where there is one; nothing keeps the trainer afterwards."""
    trainer, data = one_process_trainer(settings), runs[0].data
    with computing_with(one_process_threads(trainer, [run.module.model for run in runs], data.batch_size)):
        trainer.fit(module, data, ckpt_path=path, weights_only=True)


def stack(runs: Sequence[Run]) -> PopulationModule:
    """Returns the population of some runs.

    Raises:
        UserError: They cannot be stacked.
    """
    stop = runs[0].early_stopping
    clips = [run.trainer.get("gradient_clip_val") for run in runs]
    member_stop = MemberStop(**stop) if stop.get("patience") else None
    return PopulationModule([run.module for run in runs], clip=clips, stop=member_stop)


def quiet_diagnostics(settings: Mapping[str, Any]) -> PopulationDiagnostics:
    """Returns the diagnostics of a stack without their panels, and without what is measured of networks alone."""
    groups = [group for group in settings.get("groups", DEFAULT_GROUPS) if group not in ALONE]
    diagnostics = PopulationDiagnostics(settings.get("every_n_steps", 100), groups)
    diagnostics._report = Silence()  # type: ignore[assignment]
    return diagnostics


def group_key(settings: Mapping[str, object]) -> str:
    """Returns what points must share to be stacked.

    >>> group_key({"model.depth": 3, "model.norm": "layer", "model.optimizer.lr": 0.1})
    '{"model.norm": "layer"}'
    """
    free = {f"model.{name}" for name in FREE} | {CLIP}
    shared = {k: v for k, v in settings.items() if k not in free and not k.startswith(FREE_GROUPS)}
    return json.dumps(shared, sort_keys=True)


def stackable(run: Run) -> bool:
    """Says whether a population has a run's optimizer, schedule, clipping and steps, and trains on its device."""
    schedule = SCHEDULES[run.module.schedule_config.name]
    plain = run.trainer.get("gradient_clip_algorithm") in (None, "norm")
    plain = plain and run.trainer.get("accumulate_grad_batches") in (None, 1)
    there = device_of(run.trainer) != "mps"  # which has no float64
    return run.module.optimizer_config.name in RULES and schedule.factor is not None and plain and there


def is_heavy(run: Run) -> bool:
    """Says whether a run is faster alone than in a stack, however many it is stacked with."""
    few = run.data.train_batch_size <= FEW_ROWS and device_of(run.trainer) == "cpu"
    return few and sum(parameter.numel() for parameter in run.module.model.parameters()) > HEAVY


def device_of(trainer: Mapping[str, Any]) -> str:
    """Returns what a trainer of these settings trains on: "cuda", "mps" or "cpu"."""
    wanted = trainer.get("accelerator") or "auto"
    for device, there in (("cuda", torch.cuda.is_available), ("mps", torch.backends.mps.is_available)):
        if wanted in ("auto", "gpu", device) and there():
            return device
    return "cpu"


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether memory ran out; CUDA's allocator and those of the CPU have messages of their own."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)
