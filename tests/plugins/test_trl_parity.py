"""Losses and gradients against TRL's trainers and transformers' own labels loss, on the same token ids."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from core.models.packed import PromptGroup, pack
from core.models.pairs import pair_rows
from core.models.roles import Models, ScoreModel, TokenModel
from core.testing.tiny import tiny_tokenizer
from core.tokens.examples import Demonstration, Pair
from plugins.online.group import GroupWork
from plugins.online.rollouts import RolloutRow, Size
from plugins.reward.stage import Reward
from plugins.rlhf.dpo import DpoConfig, IpoConfig, SmoothedConfig
from plugins.rlhf.dpo.stage import Cdpo, Dpo, Ipo, Robust
from plugins.rlhf.grpo import Aggregation, GrpoConfig
from plugins.rlhf.grpo.stage import Grpo
from plugins.rlhf.rloo import RlooConfig
from plugins.rlhf.rloo.stage import Rloo
from plugins.sft.stage import weighted_nll, weighted_rows

TOLERANCE = 1e-5
VOCABULARY = 320
PAD = 0


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


def config(**changes) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True, initializer_range=0.15,
        pad_token_id=PAD, bos_token_id=None, eos_token_id=2, **changes,
    )  # fmt: skip


def causal(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(config()).eval()


def ids(source: random.Random, count: int) -> list[int]:
    return [source.randrange(3, VOCABULARY) for _ in range(count)]


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """The policy on disk: TRL's trainers look up the name of a model's folder."""
    folder = tmp_path_factory.mktemp("policy")
    causal(1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def batch() -> list[Pair]:
    source = random.Random(0)
    return [
        Pair(ids(source, prompt), ids(source, better), ids(source, worse), margin)
        for prompt, better, worse, margin in [(6, 5, 7, 0.5), (11, 2, 9, 0.0), (3, 12, 1, 1.0), (8, 4, 4, 0.25)]
    ]


def stage_run(cfg: Any) -> Any:
    """What the losses ask of a run."""
    return SimpleNamespace(cfg=SimpleNamespace(stage=cfg))


def models_of(**roles: Any) -> Models:
    """Models by role; the losses do not ask what they started from."""
    start: Any = None
    return Models(start, **roles)


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_gradients(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    left, right = gradients(ours), gradients(theirs)
    assert sorted(left) == sorted(right)
    assert left
    largest = max(value.abs().max().item() for value in right.values())
    assert largest > 1e-4
    for name, value in left.items():
        assert (value - right[name]).abs().max().item() <= TOLERANCE * max(1.0, largest), name


# ---- the DPO family ----------------------------------------------------------------------------------------------


def dpo_trainer(folder: Path, tokenizer: Any, **settings) -> Any:
    from trl import DPOConfig, DPOTrainer

    # The trainer wants texts at birth; the batches handed to it below hold the token ids of `batch`.
    texts = [{"prompt": "one", "chosen": "two", "rejected": "three"}]
    args = DPOConfig(
        output_dir=str(folder), report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False, max_length=None,
         **settings,
    )  # fmt: skip
    return DPOTrainer(
        model=causal(1), ref_model=causal(2), args=args, train_dataset=Dataset.from_list(texts),
        processing_class=tokenizer,
    )  # fmt: skip


def trl_pairwise(trainer: Any, parts: list[list[Pair]]) -> float:
    """TRL's mean loss over the parts; its gradient lies in trainer.model."""
    trainer.model.eval()
    trainer.model.zero_grad()
    total = 0.0
    for part in parts:
        rows = [{"prompt_ids": p.prompt, "chosen_ids": p.chosen, "rejected_ids": p.rejected} for p in part]
        loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows)) / len(parts)
        loss.backward()
        total += loss.item()
    return total


STAGES = {"dpo": Dpo, "cdpo": Cdpo, "robust": Robust, "ipo": Ipo}


def pair_stage(cfg: DpoConfig) -> Dpo:
    """The stage of the settings' algorithm."""
    return STAGES[cfg.algorithm](stage_run(cfg))


def our_pairwise(cfg: DpoConfig, batch: list[Pair], limit: int) -> tuple[float, torch.nn.Module]:
    """Our loss over packed rows of at most `limit` tokens, and the module that holds its gradient."""
    models = models_of(policy=TokenModel(causal(1)), reference=TokenModel(causal(2)).requires_grad_(False))
    stage, total = pair_stage(cfg), 0.0
    for row in pair_rows(batch, limit):
        loss = stage.compute_loss(models, row).loss
        loss.backward()
        total += loss.item()
    return total, models.policy.module


CASES = {
    "dpo": (DpoConfig(algorithm="dpo", beta=0.3), {"loss_type": ["sigmoid"], "beta": 0.3}),
    "robust": (
        SmoothedConfig(algorithm="robust", beta=0.3, label_smoothing=0.2),
        {"loss_type": ["robust"], "beta": 0.3, "label_smoothing": 0.2},
    ),
    "ipo": (IpoConfig(algorithm="ipo", beta=0.3), {"loss_type": ["ipo"], "beta": 0.3}),
    # TRL smooths labels in `aot`, which sorts gaps over the batch: of one pair at a time it is cDPO.
    "cdpo": (
        SmoothedConfig(algorithm="cdpo", beta=0.3, label_smoothing=0.2),
        {"loss_type": ["aot"], "beta": 0.3, "label_smoothing": 0.2},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_dpo_family_agrees_with_trl(name, tmp_path, tokenizer, batch):
    cfg, settings = CASES[name]
    trainer = dpo_trainer(tmp_path, tokenizer, **settings)
    theirs = trl_pairwise(trainer, [[pair] for pair in batch] if name == "cdpo" else [batch])
    for limit in (1000, 30):
        ours, module = our_pairwise(cfg, batch, limit)
        assert ours == pytest.approx(theirs, abs=TOLERANCE * max(1.0, abs(theirs)))
        assert_gradients(module, trainer.model)


def test_metrics_agree_with_trl(tmp_path, tokenizer, batch):
    cfg, settings = CASES["dpo"]
    trainer = dpo_trainer(tmp_path, tokenizer, **settings)
    trl_pairwise(trainer, [batch])
    theirs = {name: values[-1] for name, values in trainer._metrics["eval"].items()}
    models = models_of(policy=TokenModel(causal(1)), reference=TokenModel(causal(2)))
    (row,) = pair_rows(batch, 1000)
    ours = pair_stage(cfg).compute_loss(models, row).metrics
    for mine, other in {
        "accuracy": "rewards/accuracies",
        "margin": "rewards/margins",
        "implicit_reward_chosen": "rewards/chosen",
        "implicit_reward_rejected": "rewards/rejected",
        "chosen_logprob": "logps/chosen",
    }.items():
        assert ours[mine] == pytest.approx(theirs[other], abs=1e-4), mine


def test_ipo_of_sums_is_the_average_form_times_lengths(batch):
    # TRL has no summed IPO; its formula is checked from plain log-probabilities instead.
    cfg = IpoConfig(algorithm="ipo", beta=0.3, average=False)
    ours, _ = our_pairwise(cfg, batch, 1000)
    policy, reference = causal(1), causal(2)

    def total(model: LlamaForCausalLM, prompt: list[int], own: list[int]) -> float:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + own])).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1).gather(1, torch.tensor(own)[:, None]).sum().item()

    h = [
        total(policy, p.prompt, p.chosen) - total(policy, p.prompt, p.rejected)
        - total(reference, p.prompt, p.chosen) + total(reference, p.prompt, p.rejected)
        for p in batch
    ]  # fmt: skip
    assert ours == pytest.approx(sum((x - 1 / 0.6) ** 2 for x in h) / len(h), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "value"), [("dpo", 0.693147), ("cdpo", 0.693147), ("robust", 0.693147), ("ipo", 25.0)]
)
def test_loss_of_the_first_step(name, value, batch):
    cfg = copy.copy(CASES[name][0])
    cfg.beta = 0.1
    models = models_of(policy=TokenModel(causal(1)), reference=TokenModel(causal(1)))
    (row,) = pair_rows(batch, 1000)
    out = pair_stage(cfg).compute_loss(models, row)
    assert out.loss.item() == pytest.approx(value, abs=1e-5)
    assert out.metrics["margin"] == pytest.approx(0.0, abs=1e-6)


def test_the_adapter_switched_off_is_the_reference(tmp_path, tokenizer, batch):
    from peft import LoraConfig, get_peft_model

    def adapted() -> Any:
        torch.manual_seed(3)
        module = get_peft_model(causal(1), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        return module.eval()

    models = models_of(policy=TokenModel(adapted()), reference_is_adapter_off=True)
    cfg = CASES["dpo"][0]
    (row,) = pair_rows(batch, 1000)
    loss = pair_stage(cfg).compute_loss(models, row).loss
    loss.backward()
    whole = adapted()
    merged = copy.deepcopy(whole).merge_and_unload()
    apart = models_of(policy=TokenModel(merged), reference=TokenModel(causal(1)))
    assert loss.item() == pytest.approx(pair_stage(cfg).compute_loss(apart, row).loss.item(), abs=1e-5)
    assert all(("lora_" in name) == (p.grad is not None) for name, p in models.policy.module.named_parameters())


# ---- reward modelling --------------------------------------------------------------------------------------------


def scorer() -> LlamaForSequenceClassification:
    torch.manual_seed(4)
    return LlamaForSequenceClassification(config(num_labels=1)).eval()


@pytest.mark.parametrize("margin", [False, True])
@pytest.mark.parametrize("centering", [0.0, 0.05])
def test_reward_modelling_agrees_with_trl(tmp_path, tokenizer, batch, margin, centering):
    from trl import RewardConfig, RewardTrainer

    rows = [
        {"chosen_ids": p.prompt + p.chosen, "rejected_ids": p.prompt + p.rejected}
        | ({"margin": p.margin} if margin else {})
        for p in batch
    ]
    args = RewardConfig(
        output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False, max_length=None,
        center_rewards_coefficient=centering or None,
    )  # fmt: skip
    trainer = RewardTrainer(
        model=scorer(), args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.model.eval()
    theirs = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    theirs.backward()
    models = models_of(reward_model=ScoreModel(scorer()))
    stage, total = Reward(stage_run(SimpleNamespace(margin=margin, centering=centering))), 0.0
    for row in pair_rows(batch, 30):
        loss = stage.compute_loss(models, row).loss
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(theirs.item(), abs=TOLERANCE)
    assert_gradients(models.reward_model.module, trainer.model)


# ---- supervised fine-tuning --------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1000, 25])
def test_sft_agrees_with_the_labels_loss_of_transformers(batch, limit):
    examples = [Demonstration.of(pair.prompt, pair.chosen) for pair in batch]
    theirs = causal(1)
    longest = max(example.tokens for example in examples)
    rows, masks, labels = [], [], []
    for pair, example in zip(batch, examples, strict=True):
        fill = longest - example.tokens
        rows.append(pair.prompt + pair.chosen + [PAD] * fill)
        masks.append([1] * example.tokens + [0] * fill)
        labels.append([-100] * len(pair.prompt) + pair.chosen + [-100] * fill)
    loss = theirs(input_ids=torch.tensor(rows), attention_mask=torch.tensor(masks), labels=torch.tensor(labels)).loss
    loss.backward()
    models = models_of(policy=TokenModel(causal(1)))
    micro_batches = weighted_rows(examples, limit)
    assert (len(micro_batches) > 1) == (limit == 25)
    total = 0.0
    for micro_batch in micro_batches:
        ours = weighted_nll(models, micro_batch)
        ours.backward()
        total += ours.item()
    assert total == pytest.approx(loss.item(), abs=TOLERANCE)
    assert_gradients(models.policy.module, theirs)


# ---- groups ------------------------------------------------------------------------------------------------------

GROUPS = [(5, [6, 3]), (9, [4, 8])]
ADVANTAGES = [0.8, -1.1, 0.4, -0.3]
TEMPERATURE = 0.8
WIDEST = 12
"""Longest completion that the stage allows."""


@pytest.fixture(scope="module")
def rollouts() -> dict[str, Any]:
    """Two groups of two, with old and reference log-probabilities that stand off from the policy's, as lists."""
    source = random.Random(5)
    groups = [PromptGroup(ids(source, prompt), [ids(source, n) for n in own]) for prompt, own in GROUPS]
    packed = pack(groups)
    with torch.no_grad():
        now, _ = TokenModel(causal(1))(packed, TEMPERATURE)
    noise = torch.Generator().manual_seed(0)
    return {
        "groups": groups,
        "packed": packed,
        "old": now + 0.25 * torch.randn(len(now), generator=noise),
        "reference": now + 0.4 * torch.randn(len(now), generator=noise),
    }


def trl_inputs(rollouts: dict[str, Any]) -> dict[str, Any]:
    """Left-padded prompts, right-padded completions, as TRL's own collection makes them."""
    pairs = [(group.prompt, own) for group in rollouts["groups"] for own in group.completions]
    prompt_width, own_width = max(len(p) for p, _ in pairs), max(len(c) for _, c in pairs)
    lengths = [len(own) for _, own in pairs]

    def rectangle(flat: torch.Tensor) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(list(flat.split(lengths)), batch_first=True)

    return {
        "prompt_ids": torch.tensor([[PAD] * (prompt_width - len(p)) + list(p) for p, _ in pairs]),
        "prompt_mask": torch.tensor([[0] * (prompt_width - len(p)) + [1] * len(p) for p, _ in pairs]),
        "completion_ids": torch.tensor([list(c) + [PAD] * (own_width - len(c)) for _, c in pairs]),
        "completion_mask": torch.tensor([[1] * len(c) + [0] * (own_width - len(c)) for _, c in pairs]),
        "advantages": torch.tensor(ADVANTAGES),
        "old_per_token_logps": rectangle(rollouts["old"]),
        "ref_per_token_logps": rectangle(rollouts["reference"]),
        "old_logps": torch.stack([part.sum() for part in rollouts["old"].split(lengths)]),
        "num_items_in_batch": torch.tensor(sum(lengths)),
    }


def online_trainer(kind: str, folder: Path, policy_folder: Path, tokenizer: Any, **settings) -> Any:
    import trl

    source = LlamaForCausalLM.from_pretrained(policy_folder, dtype=torch.float32)
    args = getattr(trl, f"{kind}Config")(
        output_dir=str(folder), report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False,
        per_device_train_batch_size=4, num_generations=2, max_completion_length=WIDEST, temperature=TEMPERATURE,
        **settings,
    )  # fmt: skip
    trainer = getattr(trl, f"{kind}Trainer")(
        model=source, reward_funcs=lambda completions, **_: [0.0] * len(completions), args=args,
        train_dataset=Dataset.from_list([{"prompt": "one"}] * 4), processing_class=tokenizer,
    )  # fmt: skip
    trainer.model.eval()
    return trainer


def our_group_loss(stage: Grpo | Rloo, rollouts: dict[str, Any]) -> tuple[float, torch.nn.Module, dict[str, float]]:
    models = models_of(policy=TokenModel(causal(1)))
    packed, zeros = rollouts["packed"], torch.zeros(4)
    row = RolloutRow(
        packed, zeros, rollouts["reference"], engine_logprob_M=rollouts["old"], old_logprob_M=rollouts["old"],
        weight_M=torch.ones(len(packed.targets_M)), extra={"advantage_C": torch.tensor(ADVANTAGES)},
    )  # fmt: skip
    out = stage.compute_loss(models, GroupWork(row, Size.of([row])))
    out.loss.backward()
    return out.loss.item(), models.policy.module, out.metrics


@pytest.mark.parametrize("aggregation", ["grpo", "dapo", "dr_grpo"])
def test_grpo_agrees_with_trl(tmp_path, policy_folder, tokenizer, rollouts, aggregation):
    # TRL by default weighs the KL term by the ratio (DeepSeek-V3.2); DeepSeekMath, and so this stage, does not.
    trainer = online_trainer(
        "GRPO",
        tmp_path,
        policy_folder,
        tokenizer,
        loss_type=aggregation,
        beta=0.07,
        epsilon=0.15,
        epsilon_high=0.28,
        use_bias_correction_kl=False,
    )
    theirs = trainer._compute_loss(trainer.model, trl_inputs(rollouts))
    theirs.backward()
    cfg = GrpoConfig(
        group_size=2, kl_coef=0.07, clip_range=0.15, clip_range_high=0.28, temperature=TEMPERATURE,
        max_new_tokens=WIDEST, aggregation=Aggregation(aggregation),
    )  # fmt: skip
    ours, module, metrics = our_group_loss(Grpo(stage_run(cfg)), rollouts)
    assert ours == pytest.approx(theirs.item(), abs=TOLERANCE)
    assert_gradients(module, trainer.model)
    assert metrics["clip_frac"] == pytest.approx(trainer._metrics["eval"]["clip_ratio/region_mean"][-1], abs=1e-6)
    assert 0 < metrics["clip_frac"] < 1


def test_rloo_agrees_with_trl(tmp_path, policy_folder, tokenizer, rollouts):
    trainer = online_trainer("RLOO", tmp_path, policy_folder, tokenizer, beta=0.05, epsilon=0.3)
    theirs = trainer._compute_loss(trainer.model, trl_inputs(rollouts))
    theirs.backward()
    cfg = RlooConfig(group_size=2, clip_range=0.3, temperature=TEMPERATURE)
    ours, module, metrics = our_group_loss(Rloo(stage_run(cfg)), rollouts)
    assert ours == pytest.approx(theirs.item(), abs=TOLERANCE)
    assert_gradients(module, trainer.model)
    assert metrics["clip_frac"] == pytest.approx(trainer._metrics["eval"]["clip_ratio/region_mean"][-1], abs=1e-6)
