"""The step loop: collect, loss, backward, step, observe, save. It knows no algorithm."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from typing import Any

import torch

from core.checkpoint import load_checkpoint, save_checkpoint
from core.errors import TrainingError
from core.models import Models
from core.optim import MasterAdamW, decay_groups, lr_factor
from core.run import StageRun


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
            models.wrapped[role] = run.accelerator.prepare_model(model)
        self.optimizer = MasterAdamW(groups, self.cfg)
        self.step = 0
        self.tokens = 0
        self.seconds_before = 0.0
        self.began = time.perf_counter()

    def fit(self) -> dict[str, float]:
        """Run all remaining steps. Returns steps, tokens and seconds, resumed ones included."""
        run = self.run
        self._resume()
        self.began = time.perf_counter()
        if self.step == 0:
            self._evaluate()
        while self.step < self.total:
            self.one_step()
            every = self.cfg.eval_every_steps
            if every and self.step % every == 0 and self.step < self.total:
                self._evaluate()
            every = self.cfg.save_every_steps
            if every and self.step % every == 0 and self.step < self.total:
                self._save()
            if run.stop_reason:
                run.warn(f"stopped at step {self.step} of {self.total}: {run.stop_reason}")
                break
        run.step = self.step
        self._evaluate()
        return {"steps": self.step, "tokens": self.tokens, "seconds": self.elapsed()}

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
        for micro_batches in updates:
            self.optimizer.accumulating = len(micro_batches) > 1
            sums: dict[str, float] = defaultdict(float)
            for micro_batch in micro_batches:
                output = self.run.hook.compute_loss(run=self.run, models=self.models, micro_batch=micro_batch)
                if not torch.isfinite(output.loss):
                    self._not_finite("loss", output.loss.item(), output.metrics)
                if output.loss.requires_grad:
                    self.run.accelerator.backward(output.loss)
                sums["loss"] += output.loss.item()
                for name, value in output.metrics.items():
                    sums[name] += value
            norm = self.optimizer.clip(self.cfg.max_grad_norm).item()
            if not math.isfinite(norm):
                self._not_finite("gradient norm", norm, sums)
            sums["grad_norm"] = norm
            self.optimizer.step()
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

    def _not_finite(self, what: str, value: float, metrics: dict[str, float]) -> None:
        """Raise TrainingError; the last checkpoint, made before the trouble, stays."""
        self.optimizer.drop_gradients()
        bad = next((name for name, item in metrics.items() if not math.isfinite(item)), "none")
        raise TrainingError(
            f"the {what} is {value} (first metric that is not finite: {bad})",
            f"stage {self.run.stage_name}, step {self.step + 1}",
            "lower stage.lr, check the rewards and rows of this step; the last checkpoint is kept",
        )

    def _evaluate(self) -> None:
        run, seconds = self.run, self.elapsed()
        with run.timed("evaluate"), torch.no_grad():
            state = torch.get_rng_state()
            metrics = run.hook.evaluate(run=run, models=self.models, data=self.data, step=self.step)
            torch.set_rng_state(state)
        run.observe_eval(self.step, self.tokens, seconds, metrics)

    def _save(self) -> None:
        run = self.run
        if not run.accelerator.is_main_process:
            return
        with run.timed("checkpoint"):
            tensors = self.optimizer.state_tensors()
            tensors["rng/torch"] = torch.get_rng_state()
            state = {
                "tokens": self.tokens,
                "seconds": self.elapsed(),
                "stage_state": run.hook.save_state(run=run),
                "first_eval": run.first_eval,
            }
            path = save_checkpoint(run.dir / "checkpoints", self.step, tensors, state, self.cfg.keep_checkpoints)
        run.observers.on_checkpoint(run, self.step, path)

    def _resume(self) -> None:
        run = self.run
        found = load_checkpoint(run.dir / "checkpoints") if run.plan.state == "resume" else None
        if found is None:
            if run.plan.state == "resume":
                run.warn("no whole checkpoint was found; the run starts from its first step")
                run.truncate_records(0)
            return
        path, tensors, state, notes = found
        for note in notes:
            run.warn(note)
        torch.set_rng_state(tensors.pop("rng/torch"))
        self.optimizer.load_state_tensors(tensors)
        self.step = run.step = int(state["step"])
        self.tokens = int(state["tokens"])
        self.seconds_before = float(state["seconds"])
        run.first_eval = state["first_eval"]
        run.hook.load_state(run=run, state=state["stage_state"])
        run.truncate_records(self.step)
        run.say(f"resumed from {path.name}: {self.step} of {self.total} steps were done")
