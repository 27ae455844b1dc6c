"""The checkpoints of a run at work: what a moment between two steps holds, and how a run is taken up from it again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core import signals
from core.training.checkpoint import load_checkpoint, save_checkpoint
from core.training.recorder import Recorder
from core.training.run import StageRun
from core.types import Evaluation


@dataclass(frozen=True)
class Moment:
    """All but the large tensors of a checkpoint, as it was between two steps: later steps do not change it.

    step: steps that were made. random: states of torch's generators. state: JSON.
    """

    step: int
    random: dict[str, Tensor]
    state: str


@dataclass(frozen=True)
class Saved:
    """What a run is taken up from.

    step, tokens, seconds: of the whole run so far. tensors, state: those that `keep` was given.
    """

    step: int
    tokens: int
    seconds: float
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    path: Path


class Checkpoints:
    """The checkpoints of a run, for core's step loop and for a `fit` of a stage's own:

    checkpoints = Checkpoints(self.run, recorder)
    saved = checkpoints.resume()
    step = saved.step if saved else 0      # and saved.tensors back into the model and the optimizer
    while step < total:
        with checkpoints.whole():
            ...                            # train
            step += 1
            recorder.step(step, tokens, seconds, metrics)
            checkpoints.keep(step, lambda: tensors)
    return Fitted(step, resumed_at=checkpoints.resumed_at)
    """

    def __init__(self, run: StageRun, recorder: Recorder) -> None:
        self._run, self._recorder = run, recorder
        self.resumed_at: list[int] = []
        """Steps that were done when the run was resumed, one number for each time."""
        self.saved_step = 0
        """Step of the newest checkpoint."""

    def resume(self) -> Saved | None:
        """The newest whole checkpoint of an interrupted run; None where the run starts from its first step, which is
        said where there should be one. torch's generators, the stage's own state (`load_state`) and the records of
        the run are put back to it."""
        run, recorder = self._run, self._recorder
        recorder.taken_up = True
        if run.plan.state != "resume" or run.plan.run_dir is None:
            return None
        found, notes = load_checkpoint(run.plan.run_dir / "checkpoints", run.key)
        for note in notes:
            run.log.warn(note)
        if found is None:
            run.log.warn("no whole checkpoint is left; the run starts from its first step")
            recorder.cut_back(-1)
            return None
        path, tensors, state = found
        torch.set_rng_state(tensors.pop("rng/torch"))
        if "rng/cuda" in tensors:
            torch.cuda.set_rng_state(tensors.pop("rng/cuda"), run.start.device)
        step = int(state["step"])
        recorder.done = self.saved_step = step
        if (first := state["first_eval"]) is not None:
            recorder.first = Evaluation({k: v for k, v in first.items() if k != "items"}, first["items"])
        self.resumed_at = [*state["resumed_at"], step]
        run.hooks.load_state(run=run, state=state["stage_state"])
        recorder.cut_back(step, state["rows"])
        run.log.say(f"resumed from {path.name}: {step} of {recorder.total} steps were done")
        return Saved(step, int(state["tokens"]), float(state["seconds"]), tensors, state["own"], path)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """A step that no signal breaks off: one that comes ends the run after the block."""
        with signals.held():
            yield

    def keep(
        self,
        step: int,
        tensors: Callable[[], dict[str, Tensor]],
        tokens: int = 0,
        seconds: float = 0.0,
        state: dict[str, Any] | None = None,
    ) -> None:
        """Write a checkpoint of the step that was just made where one is due: every `stage.save_every_steps`, at the
        last step, and when a signal has asked the run to end.

        tensors: gives what training changes, on any device. state: JSON values. Raises ArtifactError when the disk
        refuses.
        """
        every = self._run.cfg.stage.save_every_steps
        if signals.pending() or (every and (step % every == 0 or step == self._recorder.total)):
            self.save(self.moment(step, tokens, seconds, state), tensors())

    def moment(self, step: int, tokens: int, seconds: float, state: dict[str, Any] | None = None) -> Moment:
        """The run as it is now, `step` steps being made."""
        run, first = self._run, self._recorder.first
        random = {"rng/torch": torch.get_rng_state()}
        if run.start.device.type == "cuda":
            random["rng/cuda"] = torch.cuda.get_rng_state(run.start.device)
        values = {
            "key": run.key,
            "tokens": tokens,
            "seconds": seconds,
            "stage_state": run.hooks.save_state(run=run),
            "first_eval": first and {**first.metrics, "items": first.items},
            "rows": self._recorder.counts(),
            "resumed_at": self.resumed_at,
            "own": state or {},
        }
        return Moment(step, random, json.dumps(values))

    def save(self, moment: Moment, tensors: dict[str, Tensor]) -> None:
        """Write the checkpoint of a moment, whose large tensors are these. Raises ArtifactError when the disk
        refuses."""
        run = self._run
        with signals.held(), run.log.timed("checkpoint"):
            path = save_checkpoint(
                run.folder / "checkpoints", moment.step, tensors | moment.random, json.loads(moment.state),
                run.cfg.stage.keep_checkpoints,
            )  # fmt: skip
            self.saved_step = moment.step
        self._recorder.checkpoint(moment.step, path)
