"""The step loop: collect, loss, backward, step, record, save. It knows no algorithm."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from core import signals
from core.config.combinations import has_dropout
from core.errors import ArtifactError, PreftuneError, TrainingError
from core.models.adapters import (
    adapter_dropout,
    adapter_state,
    is_rank_scheduled,
    load_adapter_state,
    orthogonality,
    plan_ranks,
    spread_rank,
)
from core.models.roles import Models
from core.platform.spec_checks import check_returned
from core.results import Retained
from core.training.metrics import HeldoutMetrics
from core.training.optim import MasterOptimizer, decay_groups, lr_factor
from core.training.peers import highest_of
from core.training.recorder import Recorder
from core.training.resume import Checkpoints, Moment
from core.training.retention import Retention
from core.training.run import StageRun
from core.types import Batch


@dataclass(frozen=True)
class Fitted:
    """What a loop has done."""

    steps: int
    tokens: int = 0
    """Real tokens that went through the trained model."""
    seconds: float = 0.0
    """Wall-clock, parts before a resume included."""
    stopped: str = ""
    """Why it ended before its last step."""
    resumed_at: list[int] = field(default_factory=list)
    """Steps that were done when the run was resumed, one number for each time."""
    retention: list[Retained] = field(default_factory=list)
    """What was forgotten, a row a measure; see core.training.retention."""
    measured: list[str] = field(default_factory=list)
    """Names that `eval.metrics` gave."""


class StepLoop:
    """Trains what `models` marks as trainable.

    A step is one `collect_batch`; it holds one or more optimizer updates, each the sum of its micro-batches' losses.
    State that a resume needs: fp32 masters and moments, torch's generator, the stage's own state, counters.

    A signal ends the loop where it comes: the run is left as it was between two steps, and a checkpoint says so. From
    the first update of a step on, which changes the weights, the step is made whole before.
    """

    def __init__(self, run: StageRun, models: Models, data: Any, recorder: Recorder) -> None:
        self.run, self.models, self.data, self.recorder = run, models, data, recorder
        self.cfg = run.cfg.stage
        # A run counted them when it began, which may go through all examples.
        self.total = recorder.total or run.hooks.total_steps(run=run, data=data)
        if self.total < 1:
            raise TrainingError("the run would make no step", run.name, "give more records, or lower stage.batch_size")
        groups = []
        trained = models.trained()
        if not trained:
            raise TrainingError("no parameter would be trained", run.name, "check peft.targets")
        for role, model in trained.items():
            lr = models.lr_by_role.get(role, self.cfg.lr)
            named = [(f"{role}/{name}", parameter) for name, parameter in model.trainable()]
            groups += decay_groups(named, lr, self.cfg.weight_decay)
        self.optimizer = MasterOptimizer(groups, run.parts.optimizer)
        self.scheduled = [model.module for model in trained.values() if is_rank_scheduled(model.module)]
        for module in self.scheduled:
            plan_ranks(module, run.cfg.peft, self.total)
        self.metrics = HeldoutMetrics(run)
        self.retention: Retention | None = None
        self.kept: list[Retained] = []
        self.step = 0
        self.tokens = 0
        self.stopped = ""
        self.checkpoints = Checkpoints(run, recorder)
        self.moment: Moment | None = None
        """The run as it was when the step under way began; None before the first one, and where another process
        writes."""
        self.changing = False
        """Whether the weights are no longer those of that moment."""
        self.unevaluated = False
        """Whether the evaluation after the last step was not made yet."""
        self.agreed = False
        """Whether all processes know that the run ends."""
        self.seconds_before = 0.0
        self.began = time.perf_counter()
        self._whole = ExitStack()

    def fit(self) -> Fitted:
        """Make all remaining steps."""
        run = self.run
        try:
            with run.log.timed("retention"):
                if run.peers.first:
                    self.retention = Retention.of(run, self.models)  # of the start model, whatever was done since
            self._resume()
            self._agree()
            self.began = time.perf_counter()
            with ExitStack() as all_steps:
                if run.peers.count > 1:  # no process may leave the others waiting for it
                    all_steps.enter_context(signals.held())
                if self.step == 0 or self.unevaluated:
                    self._evaluate()
                self._mark()
                while self.step < self.total and not self._ends():
                    self.one_step()
                    self._look_back()
                if self.stopped:
                    run.log.warn(f"stopped at step {self.step} of {self.total}: {self.stopped}")
                if self.cfg.save_every_steps and self.checkpoints.saved_step != self.step:
                    self._save()  # what is still to come may fail
                self.recorder.done = self.step
                self._agree()
            self._evaluate(last=True)
        except KeyboardInterrupt:
            self._leave()
            raise
        finally:
            self.optimizer.release()
        return Fitted(
            self.step, self.tokens, self.elapsed(), self.stopped, self.checkpoints.resumed_at, self.kept,
            self.metrics.names,
        )  # fmt: skip

    def _look_back(self) -> None:
        """After a step: the evaluation and the checkpoint that are due."""
        if self.unevaluated:
            self._evaluate()
            self._mark()
        every = self.cfg.save_every_steps
        if every and self.step % every == 0:
            self._save()

    def _ends(self) -> bool:
        """Whether the run ends before its last step. Raises Interrupted where a signal asked for it; of several
        processes every one, whichever of them was asked."""
        peers = self.run.peers
        if peers.count == 1:
            signals.check()
            return bool(self.stopped)
        told = peers.all_gather((signals.pending(), self.stopped))
        self.stopped = next((reason for _, reason in told if reason), "")
        if number := max(number for number, _ in told):
            self.agreed = True
            raise signals.Interrupted(number)
        return bool(self.stopped)

    def _mark(self) -> None:
        """The weights are those of a moment that the run can be resumed from."""
        if self.run.peers.first:
            more = {"stop_reason": self.stopped, "unevaluated": self.unevaluated}
            self.moment = self.checkpoints.moment(self.step, self.tokens, self.elapsed(), more)
        self.changing = False

    def _leave(self) -> None:
        """Write the checkpoint of an interrupted run, where steps were made since the last one."""
        with signals.held():
            moment = self.moment
            if moment is not None and moment.step > self.checkpoints.saved_step and not self.changing:
                try:
                    self._save()
                except PreftuneError as error:  # e.g. a full disk: the run ends all the same
                    self.run.log.warn(f"no checkpoint could be written: {error.what}")
            if self.agreed:  # a launcher ends the others as soon as one of them has ended
                with suppress(TrainingError):
                    self.run.peers.all_gather(self.step)

    def _agree(self) -> None:
        """Raise TrainingError where several processes do not hold the same weights."""
        run = self.run
        if run.peers.count > 1 and len({tuple(sums) for sums in run.peers.all_gather(self.optimizer.sums())}) > 1:
            raise TrainingError(
                f"the {run.peers.count} processes hold different weights",
                f"{run.name}, step {self.step}",
                "start one process; and report the stage: it does not do the same in each of them",
            )

    def _warn_of_idle(self, micro_batches: int) -> None:
        count = self.run.peers.count
        if self.step == 0 and micro_batches < count:
            self.run.log.warn(
                f"a step has {micro_batches} micro-batches for {count} processes, so some are idle: lower "
                "stage.micro_batch_tokens"
            )

    def elapsed(self) -> float:
        """Seconds spent in the loop so far, those before a resume included."""
        return self.seconds_before + time.perf_counter() - self.began

    def one_step(self) -> dict[str, float]:
        """Collect a batch, make its updates, tell the observers. Returns the step's metrics."""
        run = self.run
        self.recorder.done = self.step
        began = time.perf_counter()
        with run.log.timed("collect"):
            batch = run.hooks.collect_batch(run=run, models=self.models, data=self.data, step=self.step)
            check_returned(batch, "collect_batch", run.plan.spec.impl)
        if not batch.updates:
            raise TrainingError("a step had no work", f"{run.name}, step {self.step + 1}")
        factor = lr_factor(self.cfg.schedule, self.step, self.total, self.cfg.warmup_frac)
        self.optimizer.set_lr_factor(factor)
        totals: dict[str, float] = defaultdict(float)
        seen: dict[str, int] = defaultdict(int)
        peaks: dict[str, float] = {}
        done = 0
        with ExitStack() as self._whole:  # what the first update opens
            with run.log.timed("update"):
                for number, micro_batches in enumerate(batch.updates, 1):
                    sums, highest = self.update(micro_batches, number, last=number == len(batch.updates))
                    for name, value in sums.items():
                        totals[name] += value
                        seen[name] += 1
                    peaks = highest_of(peaks, highest)
                    done += 1
                    if batch.skip_rest is not None and batch.skip_rest.exceeded(sums):
                        break
            metrics = {name: value / seen[name] for name, value in totals.items()} | peaks
            metrics |= {"lr": self.cfg.lr * factor, "updates": done, **batch.metrics}
            metrics["tokens_per_s"] = batch.tokens / (time.perf_counter() - began)
            self._made(batch, metrics)
        return metrics

    def _made(self, batch: Batch[Any], metrics: dict[str, float]) -> None:
        """Record the step whose updates were made: from here on the run can be resumed behind it."""
        run = self.run
        self.step += 1
        self.tokens += batch.tokens
        run.parts.hold(self.models, self.step)
        if batch.stop is not None:
            self.stopped = batch.stop.exceeded(metrics)
        asked = self.recorder.step(self.step, self.tokens, self.elapsed(), metrics)
        self.stopped = self.stopped or asked
        if batch.samples:
            self.recorder.samples(self.step, "step", batch.samples)
        every = self.cfg.eval_every_steps
        self.unevaluated = bool(every) and self.step % every == 0 and self.step < self.total
        self._mark()

    def update(
        self, micro_batches: list[Any], number: int = 1, last: bool = True
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Make one optimizer step of the step under way. Returns its losses and metrics, summed over micro-batches and
        processes, with the gradient norm; and its peaks.

        number: of the update in its step, from 1. last: whether it is the step's last one.
        """
        run, peers = self.run, self.run.peers
        self.optimizer.accumulating = len(micro_batches) > 1 or bool(self.scheduled) or peers.count > 1
        sums: dict[str, float] = defaultdict(float)
        peaks: dict[str, float] = {}
        if peers.count > 1:
            self._warn_of_idle(len(micro_batches))
            # Noise differs between the processes, and does not depend on what they did before.
            torch.manual_seed(run.seed_for("noise", self.step, number, peers.rank))
        for micro_batch in peers.share(micro_batches):
            with self._dropout(), self._router_loss() as router_loss:
                output = run.hooks.compute_loss(run=run, models=self.models, micro_batch=micro_batch)
                balance = router_loss()
            check_returned(output, "compute_loss", run.plan.spec.impl)
            loss = output.loss
            if balance is not None:
                loss = loss + balance / len(micro_batches)
                sums["router_loss"] += balance.item() / len(micro_batches)
            if not torch.isfinite(loss):
                self._not_finite("loss", loss.item(), output.metrics)
            if loss.requires_grad:
                loss.backward()
            sums["loss"] += output.loss.item()
            for name, value in output.metrics.items():
                sums[name] += value
            peaks = highest_of(peaks, output.peaks)
        if peers.first:
            self._penalize(sums)
        if peers.count > 1:
            self.optimizer.add_gradients(peers.all_reduce)
            sums = defaultdict(float, peers.all_reduce_sums(sums))
            peaks = peers.all_reduce_peaks(peaks)
        norm = self.optimizer.clip(self.cfg.max_grad_norm).item()
        if not math.isfinite(norm):
            self._not_finite("gradient norm", norm, sums)
        sums["grad_norm"] = norm
        if not self.changing:
            self._whole.enter_context(signals.held())
            self.changing = True
        self._step_optimizer(spread=last)
        return sums, peaks

    @contextmanager
    def _dropout(self) -> Iterator[None]:
        """The adapters' own dropout, where the config sets one and no rollouts forbid it."""
        with ExitStack() as stack:
            if has_dropout(self.run.cfg.peft):
                for model in self.models.trained().values():
                    stack.enter_context(adapter_dropout(model.module))
            yield

    @contextmanager
    def _router_loss(self) -> Iterator[Callable[[], Tensor | None]]:
        """Yields what says the policy's router loss in the block: None without one in the config, and when frozen."""
        policy = self.models.policy
        if policy is None or not policy.router.coefficient or not policy.trainable():
            yield lambda: None
            return
        with policy.router.collect():
            yield policy.router.loss

    def _penalize(self, sums: dict[str, float]) -> None:
        """Add what an adapter asks for beside the stage's loss, once an update."""
        for module in self.scheduled:
            penalty = orthogonality(module)
            if penalty is not None:
                penalty.backward()
                sums["adapter_penalty"] += penalty.item()

    def _step_optimizer(self, spread: bool) -> None:
        """One optimizer step; `spread`: the step's last one, after which adapters with a rank schedule follow it."""
        gradients = self.optimizer.gradient_copies() if self.scheduled and spread else []
        self.optimizer.step()
        if not gradients:
            return
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module in self.scheduled:
            spread_rank(module, self.step + 1)
        self.optimizer.drop_gradients()
        self.optimizer.adopt()

    def _not_finite(self, what: str, value: float, metrics: dict[str, float]) -> None:
        """Raise TrainingError; the last checkpoint, made before the trouble, stays."""
        self.optimizer.drop_gradients()
        bad = next((name for name, item in metrics.items() if not math.isfinite(item)), "none")
        raise TrainingError(
            f"the {what} is {value} (first metric that is not finite: {bad})",
            f"stage {self.run.name}, step {self.step + 1}",
            "lower stage.lr, check the rewards and rows of this step; the last checkpoint is kept",
        )

    def _evaluate(self, last: bool = False) -> None:
        peers = self.run.peers
        if not peers.first:
            self.unevaluated = False
            return
        try:
            with signals.let():
                self._measure(last)
        except KeyboardInterrupt as error:
            if peers.count > 1 and not last:  # the others wait for the next step
                peers.all_gather((getattr(error, "number", signals.SIGNALS[0]), self.stopped))
                self.agreed = True
            raise

    def _measure(self, last: bool) -> None:
        run, seconds = self.run, self.elapsed()
        with run.log.timed("evaluate"), torch.no_grad():
            state = torch.get_rng_state()
            found = run.hooks.evaluate(run=run, models=self.models, data=self.data, step=self.step)
            check_returned(found, "evaluate", run.plan.spec.impl)
            found.metrics |= self.metrics.measure(self.models, self.data, found.requests)
            torch.set_rng_state(state)
        if self.retention is not None and self.step == 0:
            found.metrics |= self.retention.metrics()
        elif self.retention is not None and last:
            with run.log.timed("retention"):
                now, self.kept = self.retention.compare()
            found.metrics |= now
        with signals.held():
            asked = self.recorder.evaluation(self.step, self.tokens, seconds, found, last)
            self.stopped = self.stopped or (asked if self.step else "")
            self.unevaluated = False

    def _save(self) -> None:
        """Write the checkpoint of the last moment."""
        if self.moment is None:
            return
        tensors = self.optimizer.state_tensors()
        for number, module in enumerate(self.scheduled):
            tensors |= {f"adapter/{number}/{name}": item for name, item in adapter_state(module).items()}
        self.checkpoints.save(self.moment, tensors)

    def _resume(self) -> None:
        saved = self.checkpoints.resume()
        if saved is None:
            return
        for number, module in enumerate(self.scheduled):
            prefix = f"adapter/{number}/"
            own = {name.removeprefix(prefix): item for name, item in saved.tensors.items() if name.startswith(prefix)}
            load_adapter_state(module, own)
        try:
            self.optimizer.load_state_tensors(saved.tensors)
        except (KeyError, RuntimeError) as error:
            raise ArtifactError(
                f"the checkpoint does not fit the model: {error}", str(saved.path), "start anew with reuse=false"
            ) from error
        self.step, self.tokens, self.seconds_before = saved.step, saved.tokens, saved.seconds
        self.run.parts.hold(self.models, self.step)
        self.stopped, self.unevaluated = saved.state["stop_reason"], saved.state["unevaluated"]
