"""What every plugin of a kind must keep, as classes to inherit. A test file of a plugin is a few lines:

    from core.testing.contracts import StageContract

    class TestHinge(StageContract):
        stage = "hinge"

Each class runs on a tiny random model, without a network, in seconds. Runs are made once for each class.
"""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from core.api import ScoreRequest
from core.commands.launch import typed_config
from core.config.fields import field_docs
from core.platform.registry import Registry
from core.testing.run import Lab, Outcome, StageRunner, assert_same_weights, command, fixed, read_json

_LOADS = """
import sys
from core.platform.registry import Registry
registry = Registry.load()
assert not registry.warnings, registry.warnings
assert 'torch' not in sys.modules, 'torch was imported by an entry module'
"""


def rollout_stage() -> list[str]:
    """Words that choose the stage with rollouts that needs the fewest models."""
    specs = [entry.spec for entry in Registry.load().stages.values() if entry.spec.rollouts]
    assert specs, "no stage with rollouts is installed"
    spec = min(specs, key=lambda spec: (len(spec.roles), spec.name, spec.algorithm))
    return [f"stage={spec.name}", *([f"algorithm={spec.algorithm}"] if spec.algorithm else [])]


class _Contract:
    """What holds for every kind."""

    words: ClassVar[tuple[str, ...]] = ()
    """Further words of the command line that every run needs."""

    def entry(self) -> Any:
        """The registered spec and its owner. AssertionError where nobody brings it."""
        raise NotImplementedError

    def test_it_is_found(self) -> None:
        """An entry point (or PREFTUNE_PLUGINS) brings it, whole, and its config can be used."""
        owner = self.entry().owner
        registry = Registry.load()
        registry.check_configs()
        record = next(record for record in registry.plugins if record.owner == owner)
        assert record.state == "loaded", record.reason
        assert self.entry().spec.summary, "say in `summary` what it is"

    def test_the_entry_module_is_torch_free(self) -> None:
        """In a fresh process, as at every start."""
        done = subprocess.run([sys.executable, "-c", _LOADS], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


class _ConfiguredContract(_Contract):
    """What holds for every kind that has settings."""

    def chosen(self) -> list[str]:
        """Words of the command line that choose it."""
        raise NotImplementedError

    def prefix(self) -> str:
        """The part of the configuration that its fields stand under."""
        raise NotImplementedError

    def test_every_setting_has_a_docstring(self) -> None:
        """`help` shows them."""
        for doc in field_docs(self.entry().spec.config):
            assert doc.doc, f"{doc.name} has no docstring under it"

    @pytest.mark.parametrize("mark", ["", "+", "++"])
    def test_a_typo_is_refused(self, mark: str) -> None:
        """Exit code 2 before anything runs, also where `+` would lead around the schema."""
        outcome = command(*self.chosen(), *self.words, f"{mark}{self.prefix()}.no_such_setting=1", "dry_run=true")
        assert outcome.code == 2, outcome.err
        assert "no_such_setting" in outcome.err and "Traceback" not in outcome.err


class StageContract(_ConfiguredContract):
    """A stage, or one algorithm of it: at most four short runs."""

    stage: ClassVar[str] = ""
    algorithm: ClassVar[str] = ""
    lr: ClassVar[float] = 1e-2
    """Large enough for a random model to learn 16 rows in a few steps."""
    loss: ClassVar[str] = "loss"
    """Metric that must fall on a repeated batch; empty where none does (objectives with rollouts)."""
    metrics: ClassVar[tuple[str, ...]] = ()
    """Names, without the stage's prefix, that each step must report beside the loop's own."""
    role: ClassVar[str] = "policy"

    def entry(self) -> Any:
        found = Registry.load().stages.get((self.stage, self.algorithm))
        assert found is not None, f"no plugin brings the stage '{self.stage}' '{self.algorithm}'"
        return found

    def chosen(self) -> list[str]:
        return [f"stage={self.stage}", *([f"algorithm={self.algorithm}"] if self.algorithm else [])]

    def prefix(self) -> str:
        return "stage"

    def trained(self) -> list[str]:
        """Six steps of the whole data, a checkpoint at each second one."""
        return [
            *self.chosen(), "stage.batch_size=16", "stage.max_steps=6", "stage.save_every_steps=2",
            f"stage.lr={self.lr}", "stage.warmup_frac=0", "stage.schedule=constant", *self.words,
        ]  # fmt: skip

    @pytest.fixture(scope="class")
    def straight(self, stage_runner: StageRunner) -> Outcome:
        """A run that was left alone."""
        return stage_runner(*self.trained()).assert_ok()

    @pytest.fixture(scope="class")
    def interrupted(self, stage_runner: StageRunner) -> Outcome:
        """The same run, interrupted after its fourth step and started again."""
        first = stage_runner(*self.trained(), interrupt_at=4)
        assert first.code == 130, first.err
        again = stage_runner(*self.trained(), runs=first.runs).assert_ok()
        assert again.folder == first.folder, "the interrupted run was not resumed"
        return again

    def test_its_steps_are_made(self, straight: Outcome) -> None:
        assert straight.result["steps"] == len(straight.steps) == 6

    def test_metrics_are_named_and_finite(self, straight: Outcome) -> None:
        """Training metrics carry the stage's name, held-out ones `eval`."""
        names = {name for row in straight.metrics for name in row if "/" in name}
        assert {name.partition("/")[0] for name in names} <= {self.stage, "eval"}
        for row in straight.steps:
            assert {"loss", "lr", "grad_norm", *self.metrics} <= set(row)
            assert all(math.isfinite(value) for value in row.values()), row

    def test_the_loss_falls_on_a_repeated_batch(self, straight: Outcome) -> None:
        """Every step sees all rows, so the last must be better than the first."""
        if not self.loss:
            pytest.skip("no metric falls steadily")
        first, last = straight.steps[0][self.loss], straight.steps[-1][self.loss]
        assert last < first, f"{self.loss} went from {first} to {last}"

    def test_the_same_seed_gives_the_same_numbers(self, straight: Outcome, interrupted: Outcome) -> None:
        """Two runs of one command, up to the interruption."""
        assert fixed(straight.steps)[:4] == fixed(interrupted.steps)[:4]

    def test_a_resumed_run_equals_a_straight_one(self, straight: Outcome, interrupted: Outcome) -> None:
        """Same metrics, same bits."""
        assert interrupted.result["resumed_at"] == [4]
        assert fixed(straight.metrics) == fixed(interrupted.metrics)
        assert_same_weights(straight.artifact, interrupted.artifact)

    def test_the_artifact_is_complete(self, straight: Outcome) -> None:
        """Weights, tokenizer, card, hashes, lineage, a passed verification, a report."""
        record = read_json(straight.folder / "artifact.json")
        assert record["verification"]["ok"] and record["key"] and record["files"]
        names = {path.name for path in straight.artifact.iterdir()}
        assert {"tokenizer.json", "README.md"} <= names and any(name.endswith(".safetensors") for name in names)
        for name in ("plan.json", "config.json", "config.yaml", "result.json", "report.html", "report.md"):
            assert (straight.folder / name).stat().st_size > 0, name
        assert read_json(straight.folder / "plan.json")["owner"]["plugin"] == self.entry().owner.plugin

    def test_masked_tokens_do_not_matter(self, preftune_lab: Lab, tmp_path: Path) -> None:
        """The loss is the same whether examples stand in one packed row, where the attention mask hides each from the
        others, or each in a row of its own."""
        from core.testing.bench import Bench

        found = []
        for tokens in (100_000, 1):
            arguments = [
                *preftune_lab.words(tmp_path / "runs"), f"pipeline.stages=[{self.stage}]", *self.trained(),
                f"stage.micro_batch_tokens={tokens}",
            ]  # fmt: skip
            bench = Bench(arguments, tmp_path / f"bench-{tokens}")
            try:
                found.append(bench.losses())
            finally:
                bench.close()
        (together, few), (apart, many) = found
        assert many > few, "micro_batch_tokens did not cut the batch; use it in collect_batch"
        assert together == pytest.approx(apart, abs=2e-5, rel=2e-5)


class RewardContract(_ConfiguredContract):
    """A reward model that needs no trained model."""

    reward: ClassVar[str] = ""
    requests: ClassVar[tuple[ScoreRequest, ...]] = (
        ScoreRequest("Name a number.", "seven", (5, 6), (7, 2), answer="seven"),
        ScoreRequest("Name a number.", "I would say that it is seven.", (5, 6), (8, 9, 10, 7, 2), answer="eight"),
        ScoreRequest("Name a number.", "", (5, 6), (2,), answer="two"),
    )

    def entry(self) -> Any:
        found = Registry.load().reward_models.get(self.reward)
        assert found is not None, f"no plugin brings the reward model '{self.reward}'"
        return found

    def chosen(self) -> list[str]:
        return [*rollout_stage(), f"reward={self.reward}"]

    def prefix(self) -> str:
        return "reward"

    @pytest.fixture(scope="class")
    def scorer(self) -> Iterator[Any]:
        """The reward model behind its guard, as a run has it."""
        from core.scoring.guarded import GuardedScorer, ScorerContext

        config, registry, _ = typed_config([*self.chosen(), *self.words])
        specs = {name: entry.spec for name, entry in registry.reward_models.items()}
        made = GuardedScorer(self.entry().spec, config.reward, ScorerContext(specs=specs))
        yield made
        made.close()

    def test_one_finite_score_for_each_request(self, scorer: Any) -> None:
        scores = scorer.score(list(self.requests))
        assert [score.error for score in scores] == [None] * len(self.requests)
        assert all(math.isfinite(score.value) for score in scores)

    def test_a_score_does_not_depend_on_its_neighbours(self, scorer: Any) -> None:
        """Nor on how often it was asked for."""
        together = [score.value for score in scorer.score(list(self.requests))]
        apart = [scorer.score([request])[0].value for request in reversed(self.requests)]
        assert together == pytest.approx(apart[::-1])

    def test_nothing_to_score_is_no_error(self, scorer: Any) -> None:
        assert scorer.score([]) == []

    def test_a_policy_trains_on_it(self, stage_runner: StageRunner) -> None:
        """One step of a stage with rollouts; no score failed."""
        outcome = stage_runner(
            *self.chosen(), *self.words, "stage.max_steps=1", "stage.batch_size=2", "stage.group_size=2",
            "stage.max_new_tokens=4",
        ).assert_ok()  # fmt: skip
        assert outcome.result["reward_errors"] == 0
        assert math.isfinite(outcome.steps[0]["reward"])


class EngineContract(_ConfiguredContract):
    """A rollout engine, on the tiny model."""

    engine: ClassVar[str] = ""
    tolerance: ClassVar[float] = 1e-3
    """Accepted difference in nats of a token's log-probability from the trainer's."""

    def entry(self) -> Any:
        found = Registry.load().engines.get(self.engine)
        assert found is not None, f"no plugin brings the rollout engine '{self.engine}'"
        return found

    def chosen(self) -> list[str]:
        return [*rollout_stage(), f"rollout={self.engine}"]

    def prefix(self) -> str:
        return "rollout"

    @pytest.fixture(scope="class")
    def bench(self, preftune_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
        """A stage whose `run.engine()` is the engine, holding the policy's weights."""
        from core.testing.bench import Bench

        folder = tmp_path_factory.mktemp("engine")
        alone = rollout_stage()[0].replace("stage=", "pipeline.stages=[") + "]"
        made = Bench(
            [*preftune_lab.words(folder / "runs"), *self.chosen(), alone, "reward=exact", *self.words], folder / "run"
        )
        yield made
        made.close()

    @pytest.fixture(scope="class")
    def prompts(self, bench: Any) -> list[list[int]]:
        return [prompt.ids for prompt in bench.data.train[:3]]

    def test_completions_stand_in_the_order_of_the_prompts(self, bench: Any, prompts: list[list[int]]) -> None:
        from core.api import Sampling

        rollouts = bench.run.engine().generate(prompts, Sampling(max_new_tokens=5, n=2, seed=1))
        assert [rollout.prompt_ids for rollout in rollouts] == [ids for ids in prompts for _ in range(2)]
        assert [rollout.prompt_index for rollout in rollouts] == [0, 0, 1, 1, 2, 2]
        for rollout in rollouts:
            assert 1 <= len(rollout.completion_ids) == len(rollout.logprobs) <= 5

    def test_the_seed_decides(self, bench: Any, prompts: list[list[int]]) -> None:
        from core.api import Sampling

        engine = bench.run.engine()
        drawn = [
            [r.completion_ids for r in engine.generate(prompts, Sampling(max_new_tokens=8, n=2, seed=seed))]
            for seed in (1, 1, 2)
        ]
        assert drawn[0] == drawn[1] != drawn[2]

    def test_greedy_completions_repeat(self, bench: Any, prompts: list[list[int]]) -> None:
        from core.api import Sampling

        engine = bench.run.engine()
        first, second = (
            engine.generate(prompts, Sampling(max_new_tokens=8, temperature=0.0, seed=seed)) for seed in (1, 2)
        )
        assert [r.completion_ids for r in first] == [r.completion_ids for r in second]

    def test_a_stop_token_ends_a_completion_and_is_kept(self, bench: Any, prompts: list[list[int]]) -> None:
        from core.api import Sampling

        engine = bench.run.engine()
        free = engine.generate(prompts[:1], Sampling(max_new_tokens=6, temperature=0.0))[0]
        stop = free.completion_ids[2]
        sampling = Sampling(max_new_tokens=6, temperature=0.0, stop_token_ids=(stop,))
        rollout = engine.generate(prompts[:1], sampling)[0]
        assert rollout.finished and rollout.completion_ids[-1] == stop
        assert rollout.completion_ids == free.completion_ids[: free.completion_ids.index(stop) + 1]

    def test_its_log_probabilities_are_the_trainers(self, bench: Any, prompts: list[list[int]]) -> None:
        """Of what it sampled, and of what `score` is given."""
        import torch

        from core.api import Sampling
        from core.torch_api import pack_texts

        engine = bench.run.engine()
        for rollout in engine.generate(prompts, Sampling(max_new_tokens=6, seed=3)):
            ids = [*rollout.prompt_ids, *rollout.completion_ids]
            with torch.no_grad():
                trainer = bench.models.policy(pack_texts([ids]))[0].tolist()
            assert engine.score([ids])[0] == pytest.approx(trainer, abs=self.tolerance)
            assert rollout.logprobs == pytest.approx(trainer[-len(rollout.logprobs) :], abs=self.tolerance)

    def test_it_takes_new_weights(self, bench: Any, prompts: list[list[int]]) -> None:
        """After a sync it scores as the changed policy does."""
        import torch

        from core.torch_api import pack_texts

        before = bench.run.engine().score(prompts[:1])[0]
        with torch.no_grad():
            for _, parameter in bench.models.policy.trainable():
                parameter.mul_(1.3)
            bench.run.policy_version += 1
            after = bench.run.engine().score(prompts[:1])[0]
            trainer = bench.models.policy(pack_texts(prompts[:1]))[0].tolist()
        assert after == pytest.approx(trainer, abs=self.tolerance)
        assert after != pytest.approx(before, abs=0.01)

    def test_it_can_be_closed_twice(self, bench: Any) -> None:
        bench.run.close_engines()
        bench.run.close_engines()


class DataSourceContract(_Contract):
    """A generator of records."""

    source: ClassVar[str] = ""
    stages: ClassVar[tuple[str, ...]] = ("sft",)
    """Stages that its rows must serve."""

    def entry(self) -> Any:
        found = Registry.load().data_sources.get(self.source)
        assert found is not None, f"no plugin brings the data source '{self.source}'"
        return found

    @pytest.fixture
    def write(self) -> Any:
        return Registry.load().resolve(self.entry().spec)

    def test_the_seed_decides_the_rows(self, write: Any, tmp_path: Path) -> None:
        texts = []
        for number, seed in enumerate((1, 1, 2)):
            folder = tmp_path / str(number)
            folder.mkdir()
            write(folder, seed)
            texts.append({path.name: path.read_bytes() for path in sorted(folder.iterdir())})
        assert texts[0], "it wrote no file"
        assert texts[0] == texts[1]
        assert texts[0] != texts[2]

    def test_nothing_held_out_is_trained_on(self, write: Any, tmp_path: Path) -> None:
        write(tmp_path, 1)
        prompts = {path.stem: {json.dumps(json.loads(line).get("prompt")) for line in path.read_text().splitlines()}
                   for path in tmp_path.glob("*.jsonl")}  # fmt: skip
        held = prompts.pop("heldout", set())
        for name, seen in prompts.items():
            assert not held & seen, f"heldout.jsonl shares prompts with {name}.jsonl"

    def test_stages_train_on_it(self, stage_runner: StageRunner, monkeypatch: Any, tmp_path: Path) -> None:
        """Two steps each; no row goes to quarantine."""
        monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path))
        for stage in self.stages:
            outcome = stage_runner(
                f"stage={stage}", "data=none", "data.path=null", f"data.source={self.source}", "stage.max_steps=2",
                "stage.batch_size=2", "model.max_length=512", *self.words,
            ).assert_ok()  # fmt: skip
            assert not (outcome.folder / "quarantine.jsonl").is_file()


class ObserverContract(_Contract):
    """A plugin that watches runs; `plugin` is the name of its entry point (or its module in PREFTUNE_PLUGINS)."""

    plugin: ClassVar[str] = ""
    section: ClassVar[str] = ""
    """Title of its part of the report, where it has one."""

    def entry(self) -> Any:
        found = [record for record in Registry.load().plugins if record.owner.plugin == self.plugin]
        assert found, f"there is no plugin '{self.plugin}'"
        spec = SimpleNamespace(summary=found[0].hooks, config=dataclasses.make_dataclass("NoConfig", []))
        return SimpleNamespace(owner=found[0].owner, spec=spec)

    @pytest.fixture(scope="class")
    def watched(self, stage_runner: StageRunner) -> Outcome:
        """A short run."""
        words = ("stage=sft", "stage.max_steps=2", "stage.batch_size=4", "stage.save_every_steps=1")
        return stage_runner(*words, *self.words).assert_ok()

    def test_it_watches_without_a_failure(self, watched: Outcome) -> None:
        assert not [line for line in watched.result["warnings"] if f"observer '{self.plugin}'" in line]

    def test_its_seconds_are_told(self, watched: Outcome) -> None:
        assert self.plugin in watched.result["time_by_plugin"]

    def test_its_section_is_in_the_report(self, watched: Outcome) -> None:
        if not self.section:
            pytest.skip("it has no section")
        for name in ("report.html", "report.md"):
            assert self.section in (watched.folder / name).read_text(encoding="utf-8"), name
