"""Whole stages on a tiny random model: what holds exactly, and what must go up."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import ConfigError, TrainingError
from core.models.packed import PromptGroup, pack
from plugins.online.group import GroupStage
from plugins.online.rollouts import sample_rollouts, with_old_logprobs
from plugins.rlhf.ppo.stage import PolicyWork, ValueWork, adaptive_coefficient

Make = Callable[..., Any]

SMALL = (
    "reward=toy", "stage.batch_size=4", "stage.group_size=2", "stage.max_new_tokens=6", "stage.warmup_frac=0",
    "stage.temperature=1",
)  # fmt: skip


class Ending:
    """An engine that says of every so many-th completion, the first included, that it ended by itself: a random model
    hardly ever ends one."""

    def __init__(self, engine: Any, every: int) -> None:
        self.engine, self.every = engine, every

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def generate(self, prompts: Any, sampling: Any) -> list[Any]:
        rollouts = self.engine.generate(prompts, sampling)
        for number, rollout in enumerate(rollouts):
            rollout.finished = number % self.every == 0
        return rollouts


def rlhf(make: Make, algorithm: str, *words: str, ends_every: int = 1) -> Any:
    stage = make("stage=rlhf", f"algorithm={algorithm}", *SMALL, *words)
    parts = stage.run.parts
    parts._engines["transformers"] = Ending(parts.engine(), ends_every)
    return stage


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert sorted(left) == sorted(right)
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


def largest_difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    return max((left[name] - right[name]).abs().max().item() for name in left)


# ---- the first update --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_first_minibatch_of_ppo_has_ratio_one_exactly(make_stage, temperature):
    stage = rlhf(make_stage, "ppo", f"stage.temperature={temperature}", "stage.minibatches=2", "stage.lr=1e-2")
    updates = stage.collect().updates
    assert [{type(work) for work in update} for update in updates] == [{ValueWork}, {PolicyWork}] * 2
    for micro_batch in [work for update in updates for work in update]:
        out = stage.hook.compute_loss(run=stage.run, models=stage.models, micro_batch=micro_batch)
        if isinstance(micro_batch, PolicyWork):
            assert out.metrics["ratio_gap"] == 0.0
            assert out.metrics["approx_kl"] == 0.0
            assert out.metrics["clip_frac"] == 0.0
        else:
            # The values are those of the rollout, of the states before the tokens: nothing is clipped yet.
            row = micro_batch.row
            with torch.no_grad():
                assert torch.equal(row.extra["value"], stage.models.value_model(row.packed, row.packed.predict_M))
            squares = 0.5 * (row.extra["value"] - row.extra["return"]) ** 2
            assert out.metrics["value_loss"] == pytest.approx(squares.sum().item() / micro_batch.tokens, rel=1e-6)
    loop = stage.loop()
    gaps = [loop.update(update)[0].get("ratio_gap") for update in updates]
    # After one step of that size the second minibatch sees another policy.
    assert gaps == [None, 0.0, None, pytest.approx(gaps[-1])] and gaps[-1] > 0.01


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_the_first_minibatch_of_group_methods_has_ratio_one_exactly(make_stage, algorithm):
    (first,) = rlhf(make_stage, algorithm, "stage.max_steps=1").fit()
    assert first["ratio_gap"] == 0.0
    assert first["clip_frac"] == 0.0
    assert first["kl"] == 0.0
    assert first["kl_k3"] == 0.0
    assert first["grad_norm"] > 0
    assert first["loss"] == pytest.approx(0.0, abs=1e-5)


def test_the_trainer_repeats_the_engines_log_probabilities(make_stage):
    (first,) = rlhf(make_stage, "ppo", "stage.max_steps=1").fit()
    assert 0.0 < first["engine_gap_max"] < 1e-4


# ---- accumulation ------------------------------------------------------------------------------------------------

STAGES = {
    "sft": ("stage=sft",),
    "reward": ("stage=reward", "stage.centering=0.01"),
    "dpo": ("stage=rlhf", "algorithm=dpo"),
    "ipo": ("stage=rlhf", "algorithm=ipo", "stage.beta=1"),
}


@pytest.mark.parametrize("name", STAGES)
def test_micro_batches_change_nothing(make_stage, name):
    # 1 token: each record alone, eight micro-batches of one; 10000: one of eight.
    results = []
    for limit in (10_000, 150, 1):
        stage = make_stage(
            *STAGES[name], "stage.batch_size=8", "stage.max_steps=3", "stage.lr=1e-3", "optimizer.eps=1e-3",
            f"stage.micro_batch_tokens={limit}",
        )  # fmt: skip
        counts = [len(update) for update in stage.collect().updates]
        role = "reward_model" if name == "reward" else "policy"
        start = stage.weights(role)
        rows = stage.fit()
        assert largest_difference(start, stage.weights(role)) > 1e-4
        results.append((counts, rows, stage.weights(role)))
    assert results[0][0] == [1]
    assert 1 < results[1][0][0] < 8
    assert results[2][0] == [8]
    for _, rows, weights in results[1:]:
        for ours, whole in zip(rows, results[0][1], strict=True):
            for metric in set(whole) - {"tokens_per_s"}:
                assert ours[metric] == pytest.approx(whole[metric], abs=2e-6, rel=2e-6), metric
        assert largest_difference(weights, results[0][2]) < 1e-6


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo"])
def test_micro_batches_change_nothing_online(make_stage, algorithm):
    results = []
    for limit in (10_000, 1):
        stage = rlhf(
            make_stage, algorithm, "stage.max_steps=2", "stage.lr=1e-3", "optimizer.eps=1e-3",
            "stage.inner_epochs=2", f"stage.micro_batch_tokens={limit}",
        )  # fmt: skip
        results.append((stage.fit(), stage.weights()))
    (whole, whole_weights), (parts, part_weights) = results
    for ours, theirs in zip(parts, whole, strict=True):
        for metric in set(theirs) - {"tokens_per_s", "engine_gap", "engine_gap_max"}:
            assert ours[metric] == pytest.approx(theirs[metric], abs=1e-4, rel=1e-4), metric
    assert largest_difference(part_weights, whole_weights) < 1e-5


def test_the_order_of_records_is_the_seeds(make_stage):
    def first_batch(seed: int) -> list[int]:
        stage = make_stage("stage=sft", f"runtime.seed={seed}", "stage.batch_size=8")
        return [micro.packed.input_ids_T.tolist() for micro in stage.collect().updates[0]]

    assert first_batch(1) == first_batch(1)
    assert first_batch(1) != first_batch(2)


def test_noise_does_not_depend_on_what_the_process_drew_before(make_stage):
    losses = []
    for drawn in (1, 100):
        torch.rand(drawn)
        losses.append(make_stage("stage=sft", "stage.neftune_alpha=20", "stage.max_steps=1").fit()[0]["loss"])
    (plain,) = make_stage("stage=sft", "stage.max_steps=1").fit()
    assert losses[0] == losses[1] != pytest.approx(plain["loss"], abs=1e-4)


# ---- who starts where, and who stands still ----------------------------------------------------------------------


@pytest.fixture
def reward_folder(make_stage, tmp_path) -> Path:
    """A trained reward model's artifact."""
    stage = make_stage("stage=reward", "stage.max_steps=2", "stage.lr=1e-2", "stage.batch_size=8")
    stage.fit()
    assert stage.models.reward_model.offset != 0
    folder = tmp_path / "reward_artifact"
    folder.mkdir()
    stage.hook.export(run=stage.run, models=stage.models, folder=folder)
    return folder


@pytest.mark.parametrize("wanted", [1, 70, 400])
def test_target_tokens_end_the_training(make_stage, wanted):
    stage = make_stage("stage=sft", "stage.batch_size=4", "stage.epochs=9", f"stage.target_tokens={wanted}")
    seen = [row["target_tokens"] for row in stage.fit()]
    assert sum(seen[:-1]) < wanted <= sum(seen)


def test_target_tokens_are_refused_where_nothing_counts_them(make_stage):
    stage = make_stage("stage=reward", "stage.target_tokens=9")
    with pytest.raises(ConfigError, match="does not count target tokens"):
        stage.total_steps()


def test_reward_offset_makes_chosen_completions_average_zero(make_stage):
    stage = make_stage("stage=reward", "stage.max_steps=2", "stage.lr=1e-2", "stage.batch_size=8")
    stage.fit()
    row = pack([PromptGroup(pair.prompt, [pair.chosen]) for pair in stage.data.train])
    with torch.no_grad():
        assert stage.models.reward_model(row).mean().item() == pytest.approx(0.0, abs=1e-5)


def test_value_model_starts_from_the_reward_model_and_frozen_models_never_move(make_stage, reward_folder):
    stage = rlhf(
        make_stage,
        "ppo",
        "reward=learned",
        f"reward.source={reward_folder}",
        "stage.max_steps=3",
        "stage.lr=1e-2",
        "stage.value_lr=1e-2",
    )
    models = stage.models
    assert_same(stage.weights("value_model"), stage.weights("reward_model"))
    assert models.value_model.offset == models.reward_model.offset != 0
    row = pack([PromptGroup(pair.ids, [pair.ids[:5]]) for pair in stage.data.train[:3]])
    with torch.no_grad():
        assert torch.equal(models.value_model(row), models.reward_model(row))
    before = {role: stage.weights(role) for role in ("policy", "reference", "reward_model", "value_model")}
    assert_same(before["policy"], before["reference"])
    stage.fit()
    for role in ("reference", "reward_model"):
        assert_same(before[role], stage.weights(role))
    for role in ("policy", "value_model"):
        assert largest_difference(before[role], stage.weights(role)) > 1e-3
    assert sorted(models.trained()) == ["policy", "value_model"]


def test_a_rule_reward_gives_the_value_model_a_new_head(make_stage):
    stage = rlhf(make_stage, "ppo")
    assert stage.models.reward_model is None
    head = stage.models.value_model.base.score.weight
    assert head.shape == (1, 64)
    assert 0.5 / math.sqrt(65) < head.std().item() < 2 / math.sqrt(65)


@pytest.mark.parametrize("algorithm", ["dpo", "grpo"])
def test_the_reference_never_moves(make_stage, algorithm):
    words = ("stage.max_steps=2", "stage.lr=1e-2")
    stage = (
        rlhf(make_stage, "grpo", *words) if algorithm == "grpo" else make_stage("stage=rlhf", "algorithm=dpo", *words)
    )
    before = stage.weights("reference")
    stage.fit()
    assert_same(before, stage.weights("reference"))
    assert largest_difference(before, stage.weights("policy")) > 1e-3


def test_with_an_adapter_only_the_adapter_moves(make_stage):
    stage = rlhf(make_stage, "grpo", "peft.method=lora", "peft.r=4", "stage.max_steps=2", "stage.lr=1e-2")
    assert stage.models.reference is None
    before = stage.weights()
    stage.fit()
    after = stage.weights()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)


# ---- learning ----------------------------------------------------------------------------------------------------

LEARN = (
    "stage.batch_size=8", "stage.group_size=4", "stage.max_new_tokens=12", "stage.lr=4e-3", "stage.max_steps=16",
)  # fmt: skip


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo"])
@pytest.mark.slow
def test_the_reward_rises_and_a_large_kl_coefficient_holds_the_policy(make_stage, algorithm):
    words = (*LEARN, "stage.value_lr=4e-3") if algorithm == "ppo" else LEARN
    free = rlhf(make_stage, algorithm, *words, "stage.kl_coef=0").fit()
    held = rlhf(make_stage, algorithm, *words, "stage.kl_coef=1", "stage.lr=1e-3").fit()
    assert free[0]["reward"] < 0.4
    assert sum(row["reward"] for row in free[-3:]) / 3 > free[0]["reward"] + 0.3
    assert free[-1]["kl_k3"] > 5
    assert free[-1]["entropy"] < free[0]["entropy"] - 1
    # In nats over twelve tokens; sampling noise alone carries the policy as far as this.
    assert held[-1]["kl_k3"] < 1.2
    assert abs(held[-1]["reward"] - held[0]["reward"]) < 0.15


def test_pairs_are_learnt(make_stage):
    for words in (("stage=reward",), ("stage=rlhf", "algorithm=dpo")):
        rows = make_stage(*words, "stage.batch_size=16", "stage.max_steps=20", "stage.lr=2e-3").fit()
        assert rows[-1]["accuracy"] > 0.9
        assert rows[-1]["margin"] > rows[0]["margin"]
        assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]


def test_equal_rewards_give_no_gradient(make_stage):
    for algorithm in ("grpo", "rloo"):
        (row,) = rlhf(make_stage, algorithm, "stage.kl_coef=0", "reward.divisor=1", "stage.max_steps=1").fit()
        assert row["reward"] == 1.0
        assert row["flat_groups"] == 1.0
        assert row["grad_norm"] == 0.0


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_a_single_update_learns_the_same_from_its_own_forward_pass(make_stage, monkeypatch, algorithm):
    ways = []
    for one_pass in (True, False):
        monkeypatch.setattr(GroupStage, "one_update", one_pass)
        stage = rlhf(make_stage, algorithm, "stage.max_steps=3", "stage.lr=1e-2", "stage.micro_batch_tokens=40")
        assert len(stage.collect(0).updates[0]) > 1
        rows = stage.fit()
        drop = {"time_s", "tokens_per_s"}
        weights = {name: value.clone() for name, value in stage.models.policy.module.state_dict().items()}
        ways.append(([{k: v for k, v in row.items() if k not in drop} for row in rows], weights))
    (ours, weights), (theirs, same_weights) = ways
    assert ours[-1]["kl"] != 0 and ours[0]["flat_groups"] < 1
    for row, other in zip(ours, theirs, strict=True):
        assert row == pytest.approx(other, abs=1e-6, rel=1e-5)
    for name, value in weights.items():
        assert torch.allclose(value, same_weights[name], atol=1e-6), name


# ---- the brakes --------------------------------------------------------------------------------------------------


def test_the_kl_coefficient_follows_its_target(make_stage):
    stage = rlhf(
        make_stage, "ppo", "stage.max_steps=6", "stage.lr=1e-2", "stage.kl_coef=0.1", "stage.kl_target=0.5",
        "stage.kl_horizon=100",
    )  # fmt: skip
    rows = stage.fit()
    assert rows[0]["kl_coef"] == 0.1
    # At first the policy is its reference: nothing to hold back, so the coefficient falls by the largest step.
    assert rows[1]["kl_coef"] == pytest.approx(0.1 * (1 - 0.2 * 8 / 100))
    following = [row["kl_coef"] for row in rows[1:]] + [stage.hook.save_state(run=stage.run)["kl_coef"]]
    directions = set()
    for row, after in zip(rows, following, strict=True):
        assert after == pytest.approx(adaptive_coefficient(row["kl_coef"], row["kl"], 0.5, 100, 8))
        directions.add(after > row["kl_coef"])
        assert (after > row["kl_coef"]) == (row["kl"] > 0.5)
    assert directions == {True, False}
    stage.hook.load_state(run=stage.run, state={"kl_coef": 0.75})
    assert stage.collect(0).metrics["kl_coef"] == 0.75


def test_a_missing_end_has_a_score_of_its_own(make_stage):
    scores = []
    for every in (1, 2):
        stage = rlhf(make_stage, "ppo", "stage.missing_eos_score=-0.7", ends_every=every)
        prompts, cfg = stage.stage.next_examples(stage.data.train, 0), stage.run.cfg.stage
        sampled = sample_rollouts(stage.run, stage.models, prompts, 0, cfg)
        rollouts = with_old_logprobs(stage.run, stage.models, sampled, cfg)
        assert rollouts.metrics["finished"] == 1 / every
        scores.append((torch.cat([row.score_C for row in rollouts.rows]), rollouts.metrics["reward"]))
    (plain, reward), (fined, same_reward) = scores
    assert torch.equal(fined[0::2], plain[0::2])
    assert torch.equal(fined[1::2], torch.full((4,), -0.7))
    assert (plain >= 0).all()
    assert reward == same_reward


FOUR = ("stage.inner_epochs=4", "stage.minibatches=1", "stage.max_steps=1", "stage.lr=1e-2")


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo"])
def test_stop_kl_skips_the_rest_of_the_updates(make_stage, algorithm):
    (free,) = rlhf(make_stage, algorithm, *FOUR).fit()
    # The value model has updates of its own, each before the policy's.
    assert free["updates"] == (8 if algorithm == "ppo" else 4)
    stage = rlhf(make_stage, algorithm, *FOUR, "stage.stop_kl=1e-4")
    (stopped,) = stage.fit()
    # The first update is on policy; the second finds the policy moved, and is the last.
    assert stopped["updates"] == (4 if algorithm == "ppo" else 2)
    (loose,) = rlhf(make_stage, algorithm, *FOUR, "stage.stop_kl=1000").fit()
    assert loose["updates"] == free["updates"]


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo"])
def test_stop_kl_looks_at_the_whole_update_however_it_is_cut(make_stage, algorithm):
    stage = rlhf(make_stage, algorithm, *FOUR[:3], "stage.micro_batch_tokens=1", "stage.lr=1e-3")
    loop = stage.loop()
    updates = [update for update in stage.collect().updates if not isinstance(update[0], ValueWork)]
    assert [len(update) for update in updates] == [4] * 4
    for update in updates[:2]:
        moved, _ = loop.update(update)
    shares = [stage.loss(micro_batch).metrics["approx_kl"] for micro_batch in updates[2]]
    assert sum(shares) > 0 < moved["approx_kl"]
    stage.run.cfg.stage.stop_kl = 0.9 * sum(shares)
    assert max(shares) < stage.run.cfg.stage.stop_kl
    brake = stage.collect().skip_rest
    assert "stage.stop_kl" in brake.exceeded(loop.update(updates[3])[0])
    assert not brake.exceeded({"approx_kl": max(shares)})


def test_max_kl_ends_the_run(make_stage):
    stage = rlhf(make_stage, "ppo", "stage.max_steps=9", "stage.lr=1e-2", "stage.max_kl=0.05", "eval.max_items=1")
    rows = stage.fit()
    assert 2 <= len(rows) < 9
    assert [row["kl"] > 0.05 for row in rows] == [False] * (len(rows) - 1) + [True]
    assert stage.fitted.steps == len(rows)
    assert "stage.max_kl=0.05" in stage.fitted.stopped
    assert any(f"stopped at step {len(rows)} of 9" in warning for warning in stage.run.log.warnings)
    # The completions after training are shown as such although the run ended early.
    samples = [json.loads(line) for line in (stage.run.folder / "samples.jsonl").read_text().splitlines()]
    assert {row["when"] for row in samples} >= {"before", "after"}


def test_ptx_mixes_demonstrations_in(make_stage):
    plain = rlhf(make_stage, "ppo", "stage.max_steps=1").fit()
    mixed = rlhf(make_stage, "ppo", "stage.max_steps=6", "stage.ptx_coef=5", "stage.lr=5e-3").fit()
    assert "ptx_loss" not in plain[0]
    # A random model of 320 tokens knows nothing of the demonstrations, and learns them.
    assert 4 < mixed[0]["ptx_loss"] < 9
    assert mixed[-1]["ptx_loss"] < mixed[0]["ptx_loss"] - 0.5
    assert mixed[0]["loss"] > 2 * mixed[0]["ptx_loss"]  # averaged with the value model's


# ---- what goes wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_reward_errors_are_counted_and_their_group_dropped(make_stage, algorithm):
    stage = rlhf(make_stage, algorithm, "reward.fail_every=3")  # completions 3 and 6 of 8 fail
    batch = stage.collect()
    assert batch.metrics["reward_errors"] == 2
    assert batch.metrics["groups_dropped"] == 2
    rows = {id(micro.row): micro.row for update in batch.updates for micro in update}
    assert sum(row.packed.completions for row in rows.values()) == 4
    assert [sample["index"] for sample in batch.samples] == [0, 1, 6, 7]
    assert all(sample["reward"] is not None for sample in batch.samples)
    rows = stage.fit()
    assert rows
    assert stage.run.parts.reward().errors >= 2


def test_no_reward_at_all_ends_the_run(make_stage):
    stage = rlhf(make_stage, "ppo", "reward.fail_every=1")
    with pytest.raises(TrainingError, match=r"every reward of this iteration is an error; the first: .*told to fail"):
        stage.fit()


def test_no_whole_group_ends_the_run(make_stage):
    stage = rlhf(make_stage, "grpo", "reward.fail_every=2")
    with pytest.raises(TrainingError, match="no group of completions could be scored"):
        stage.fit()


@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_a_loss_that_is_no_number_names_stage_and_step_and_keeps_the_checkpoint(make_stage, monkeypatch, bad):
    import plugins.sft.stage

    stage = make_stage("stage=sft", "stage.batch_size=8", "stage.max_steps=5", "stage.save_every_steps=1")
    loss = plugins.sft.stage.weighted_nll

    def failing(models, micro_batch, **settings):
        return loss(models, micro_batch, **settings) * (float(bad) if stage.recorder.done == 3 else 1.0)

    monkeypatch.setattr(plugins.sft.stage, "weighted_nll", failing)
    weights: list[dict[str, torch.Tensor]] = []
    record = stage.recorder.step
    monkeypatch.setattr(stage.recorder, "step", lambda *a: (record(*a), weights.append(stage.weights()))[0])
    with pytest.raises(TrainingError, match=f"the loss is {bad}") as raised:
        stage.fit()
    assert "stage sft, step 4" in str(raised.value)
    assert len(weights) == 3
    assert_same(weights[-1], stage.weights())
    kept = sorted(path.name for path in (stage.run.folder / "checkpoints").glob("step-*"))
    assert kept == ["step-00000002", "step-00000003"]
    assert [row["lr"] for row in stage.steps()] != []
    assert len(stage.steps()) == 3


def test_an_infinite_gradient_is_told(make_stage, monkeypatch):
    stage = make_stage("stage=sft", "stage.batch_size=8", "stage.max_steps=2")
    stage.models.policy.base.lm_head.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainingError, match="the gradient norm is"):
        stage.fit()
