"""The step loop: collect, loss, backward, step, observe, save. It knows no algorithm."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from core.config.combinations import has_dropout
from core.errors import ArtifactError, TrainingError
from core.models.adapters import (
    adapter_dropout,
    adapter_state,
    is_rank_scheduled,
    load_adapter_state,
    orthogonality,
    spread_rank,
)
from core.models.roles import Models
from core.training.checkpoint import load_checkpoint, save_checkpoint
from core.training.metrics import HeldoutMetrics
from core.training.optim import MasterOptimizer, decay_groups, lr_factor
from core.training.retention import Retention
from core.training.run import StageRun


class StepLoop:
    """Trains what `models` marks as trainable.

    A step is one `collect_batch`; it holds one or more optimizer updates, each the sum of its micro-batches' losses.
    State that a resume needs: fp32 masters and moments, torch's generator, the stage's own state, counters.
    """

    def __init__(self, run: StageRun, models: Models, data: Any) -> None:
        self.run, self.models, self.data = run, models, data
        self.cfg = run.cfg.stage
        self.total = run.hook.total_steps(run=run, data=data)
        if self.total < 1:
            raise TrainingError(
                "the run would make no step", run.stage_name, "give more records, or lower stage.batch_size"
            )
        run.total_steps = self.total
        groups = []
        trained = models.trained()
        if not trained:
            raise TrainingError("no parameter would be trained", run.stage_name, "check peft.targets")
        for role, model in trained.items():
            lr = models.lr_by_role.get(role, self.cfg.lr)
            named = [(f"{role}/{name}", parameter) for name, parameter in model.trainable()]
            groups += decay_groups(named, lr, self.cfg.weight_decay)
            # With several processes too the bare model: their gradients are added in fp32, once an update.
            models.wrapped[role] = run.accelerator.prepare_model(model, evaluation_mode=run.peers.count > 1)
        self.optimizer = MasterOptimizer(groups, run.build_optimizer)
        self.scheduled = [model.module for model in trained.values() if is_rank_scheduled(model.module)]
        self.metrics = HeldoutMetrics(run)
        self.retention: Retention | None = None
        self.step = 0
        self.tokens = 0
        self.seconds_before = 0.0
        self.began = time.perf_counter()

    def fit(self) -> dict[str, float]:
        """Run all remaining steps. Returns steps, tokens and seconds, resumed ones included."""
        try:
            return self._fit()
        finally:
            self.optimizer.release()

    def _fit(self) -> dict[str, float]:
        run = self.run
        with run.timed("retention"):
            if run.peers.first:
                self.retention = Retention.of(run, self.models)  # of the start model, whatever was done since
        self._resume()
        self._agree()
        self.began = time.perf_counter()
        if self.step == 0:
            self._evaluate()
        while self.step < self.total and not run.stop_reason:
            self.one_step()
            every = self.cfg.eval_every_steps
            if every and self.step % every == 0 and self.step < self.total:
                self._evaluate()
            every = self.cfg.save_every_steps
            if every and self.step % every == 0:
                self._save()
            run.stop_reason = run.peers.told(run.stop_reason)
        if run.stop_reason:
            run.warn(f"stopped at step {self.step} of {self.total}: {run.stop_reason}")
            run.total_steps = self.step  # the evaluation that follows is the one after training
        run.step = self.step
        self._agree()
        self._evaluate(last=True)
        return {"steps": self.step, "tokens": self.tokens, "seconds": self.elapsed()}

    def _agree(self) -> None:
        """Raise TrainingError where several processes do not hold the same weights."""
        run = self.run
        if run.peers.count > 1 and len({tuple(sums) for sums in run.peers.all(self.optimizer.sums())}) > 1:
            raise TrainingError(
                f"the {run.peers.count} processes hold different weights",
                f"{run.stage_name}, step {self.step}",
                "start one process; and report the stage: it does not do the same in each of them",
            )

    def _warn_of_idle(self, micro_batches: int) -> None:
        count = self.run.peers.count
        if self.step == 0 and micro_batches < count:
            self.run.warn(
                f"a step has {micro_batches} micro-batches for {count} processes, so some are idle: lower "
                "stage.micro_batch_tokens"
            )

    def elapsed(self) -> float:
        """Seconds spent in the loop so far, those before a resume included."""
        return self.seconds_before + time.perf_counter() - self.began

    def one_step(self) -> dict[str, float]:
        """Collect a batch, make its updates, tell the observers. Returns the step's metrics."""
        run = self.run
        run.step = self.step
        began = time.perf_counter()
        with run.timed("collect"):
            batch = run.hook.collect_batch(run=run, models=self.models, data=self.data, step=self.step)
        if not batch.updates:
            raise TrainingError("a step had no work", f"{run.stage_name}, step {self.step + 1}")
        with run.timed("update"):
            metrics = self._updates(batch.updates)
        self.step += 1
        self.tokens += batch.tokens
        metrics |= batch.metrics
        metrics["tokens_per_s"] = batch.tokens / (time.perf_counter() - began)
        run.observe_step(self.step, self.tokens, self.elapsed(), metrics)
        if batch.samples:
            run.observe_samples(self.step, "step", batch.samples)
        return metrics

    def _updates(self, updates: list[list[Any]]) -> dict[str, float]:
        totals: dict[str, float] = defaultdict(float)
        seen: dict[str, int] = defaultdict(int)
        factor = lr_factor(self.cfg.schedule, self.step, self.total, self.cfg.warmup_frac)
        self.optimizer.set_lr_factor(factor)
        done = 0
        peers = self.run.peers
        for number, micro_batches in enumerate(updates, 1):
            self.optimizer.accumulating = len(micro_batches) > 1 or bool(self.scheduled) or peers.count > 1
            sums: dict[str, float] = defaultdict(float)
            if peers.count > 1:
                self._warn_of_idle(len(micro_batches))
                # Noise differs between the processes, and does not depend on what they did before.
                torch.manual_seed(self.run.seed_for("noise", self.step, number, peers.rank))
            for micro_batch in peers.share(micro_batches):
                with self._dropout():
                    output = self.run.hook.compute_loss(run=self.run, models=self.models, micro_batch=micro_batch)
                if not torch.isfinite(output.loss):
                    self._not_finite("loss", output.loss.item(), output.metrics)
                if output.loss.requires_grad:
                    self.run.accelerator.backward(output.loss)
                sums["loss"] += output.loss.item()
                for name, value in output.metrics.items():
                    sums[name] += value
            if peers.first:
                self._penalize(sums)
            if peers.count > 1:
                self.optimizer.add_gradients(peers.add)
                sums = defaultdict(float, peers.sums(sums))
            norm = self.optimizer.clip(self.cfg.max_grad_norm).item()
            if not math.isfinite(norm):
                self._not_finite("gradient norm", norm, sums)
            sums["grad_norm"] = norm
            self._step_optimizer(spread=number == len(updates))
            for name, value in sums.items():
                totals[name] += value
                seen[name] += 1
            done += 1
            if self.run.skip_updates:
                self.run.skip_updates = False
                break
        metrics = {name: value / seen[name] for name, value in totals.items()}
        metrics["lr"] = self.cfg.lr * factor
        metrics["updates"] = done
        return metrics

    @contextmanager
    def _dropout(self) -> Iterator[None]:
        """The adapters' own dropout, where the config sets one and no rollouts forbid it."""
        with ExitStack() as stack:
            if has_dropout(self.run.cfg.peft):
                for model in self.models.trained().values():
                    stack.enter_context(adapter_dropout(model.module))
            yield

    def _penalize(self, sums: dict[str, float]) -> None:
        """Add what an adapter asks for beside the stage's loss, once an update."""
        for module in self.scheduled:
            penalty = orthogonality(module)
            if penalty is not None:
                self.run.accelerator.backward(penalty)
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
            f"stage {self.run.stage_name}, step {self.step + 1}",
            "lower stage.lr, check the rewards and rows of this step; the last checkpoint is kept",
        )

    def _evaluate(self, last: bool = False) -> None:
        run, seconds = self.run, self.elapsed()
        if not run.peers.first:
            return
        with run.timed("evaluate"), torch.no_grad():
            state = torch.get_rng_state()
            metrics = run.hook.evaluate(run=run, models=self.models, data=self.data, step=self.step)
            metrics |= self.metrics.measure(self.models, self.data)
            torch.set_rng_state(state)
        if self.retention is not None and self.step == 0:
            metrics |= self.retention.metrics()
        elif self.retention is not None and last:
            with run.timed("retention"):
                now, run.retention = self.retention.compare()
            metrics |= now
        run.observe_eval(self.step, self.tokens, seconds, metrics)

    def _save(self) -> None:
        run = self.run
        if not run.peers.first:
            return
        with run.timed("checkpoint"):
            tensors = self.optimizer.state_tensors()
            tensors["rng/torch"] = torch.get_rng_state()
            if run.device.type == "cuda":
                tensors["rng/cuda"] = torch.cuda.get_rng_state(run.device)
            for number, module in enumerate(self.scheduled):
                tensors |= {f"adapter/{number}/{name}": item for name, item in adapter_state(module).items()}
            state = {
                "tokens": self.tokens,
                "seconds": self.elapsed(),
                "stage_state": run.hook.save_state(run=run),
                "first_eval": run.first_eval,
                "stop_reason": run.stop_reason,
                "rows": run.records.counts(),
                "resumed_at": run.resumed_at,
            }
            path = save_checkpoint(run.dir / "checkpoints", self.step, tensors, state, self.cfg.keep_checkpoints)
        run.observers.on_checkpoint(run, self.step, path)

    def _resume(self) -> None:
        run = self.run
        if run.plan.state != "resume":
            return
        found, notes = load_checkpoint(run.shared_dir / "checkpoints")
        for note in notes:
            run.warn(note)
        if found is None:
            run.warn("no whole checkpoint is left; the run starts from its first step")
            run.truncate_records(-1)
            return
        path, tensors, state = found
        torch.set_rng_state(tensors.pop("rng/torch"))
        if "rng/cuda" in tensors:
            torch.cuda.set_rng_state(tensors.pop("rng/cuda"), run.device)
        for number, module in enumerate(self.scheduled):
            prefix = f"adapter/{number}/"
            own = {name.removeprefix(prefix): item for name, item in tensors.items() if name.startswith(prefix)}
            load_adapter_state(module, own)
        try:
            self.optimizer.load_state_tensors(tensors)
        except (KeyError, RuntimeError) as error:
            raise ArtifactError(
                f"the checkpoint does not fit the model: {error}", str(path), "start anew with reuse=false"
            ) from error
        self.step = run.step = run.policy_version = int(state["step"])
        self.tokens = int(state["tokens"])
        self.seconds_before = float(state["seconds"])
        run.first_eval = state["first_eval"]
        run.stop_reason = state["stop_reason"]
        run.resumed_at = [*state["resumed_at"], self.step]
        run.hook.load_state(run=run, state=state["stage_state"])
        run.truncate_records(self.step, state["rows"])
        run.say(f"resumed from {path.name}: {self.step} of {self.total} steps were done")
