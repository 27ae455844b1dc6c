"""What every rollout engine must keep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from core.platform.registry import Registry
from core.testing.contracts.base import ConfiguredContract, rollout_stage
from core.testing.run import Lab


class EngineContract(ConfiguredContract):
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
    @classmethod
    def bench(cls, preftune_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
        """A stage whose `run.parts.engine()` is the engine, holding the policy's weights."""
        kit = cls()
        from core.testing.bench import Bench

        folder = tmp_path_factory.mktemp("engine")
        alone = rollout_stage()[0].replace("stage=", "pipeline.stages=[") + "]"
        made = Bench(
            [*preftune_lab.words(folder / "runs"), *kit.chosen(), alone, "reward=exact", *kit.words], folder / "run"
        )
        yield made
        made.close()

    @pytest.fixture(scope="class")
    @classmethod
    def prompts(cls, bench: Any) -> list[list[int]]:
        return [prompt.ids for prompt in bench.data.train[:3]]

    def test_completions_stand_in_the_order_of_the_prompts(self, bench: Any, prompts: list[list[int]]) -> None:
        from core.api import Sampling

        rollouts = bench.run.parts.engine().generate(prompts, Sampling(max_new_tokens=5, n=2, seed=1))
        assert [rollout.prompt_ids for rollout in rollouts] == [ids for ids in prompts for _ in range(2)]
        assert [rollout.prompt_index for rollout in rollouts] == [0, 0, 1, 1, 2, 2]
        for rollout in rollouts:
            assert 1 <= len(rollout.completion_ids) == len(rollout.logprobs) <= 5

    def test_the_seed_decides(self, bench: Any, prompts: list[list[int]]) -> None:
        from core.api import Sampling

        engine = bench.run.parts.engine()
        drawn = [
            [r.completion_ids for r in engine.generate(prompts, Sampling(max_new_tokens=8, n=2, seed=seed))]
            for seed in (1, 1, 2)
        ]
        assert drawn[0] == drawn[1] != drawn[2]

    def test_greedy_completions_repeat(self, bench: Any, prompts: list[list[int]]) -> None:
        from core.api import Sampling

        engine = bench.run.parts.engine()
        first, second = (
            engine.generate(prompts, Sampling(max_new_tokens=8, temperature=0.0, seed=seed)) for seed in (1, 2)
        )
        assert [r.completion_ids for r in first] == [r.completion_ids for r in second]

    def test_a_stop_token_ends_a_completion_and_is_kept(self, bench: Any, prompts: list[list[int]]) -> None:
        from core.api import Sampling

        engine = bench.run.parts.engine()
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

        engine = bench.run.parts.engine()
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

        before = bench.run.parts.engine().score(prompts[:1])[0]
        with torch.no_grad():
            for _, parameter in bench.models.policy.trainable():
                parameter.mul_(1.3)
            bench.run.parts.hold(bench.models, 1)
            after = bench.run.parts.engine().score(prompts[:1])[0]
            trainer = bench.models.policy(pack_texts(prompts[:1]))[0].tolist()
        assert after == pytest.approx(trainer, abs=self.tolerance)
        assert after != pytest.approx(before, abs=0.01)

    def test_it_can_be_closed_twice(self, bench: Any, prompts: list[list[int]]) -> None:
        """And leaves nothing behind that another one would stumble over."""
        from core.api import Sampling

        greedy = Sampling(max_new_tokens=4, temperature=0.0)
        engine = bench.run.parts.engine()
        first = [rollout.completion_ids for rollout in engine.generate(prompts, greedy)]
        bench.run.parts.close_engines()
        engine.close()
        again = bench.run.parts.engine().generate(prompts, greedy)
        assert [rollout.completion_ids for rollout in again] == first
