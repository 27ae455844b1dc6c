"""A reward model reads its own vocabulary and template, whatever the policy's; a critic must share them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.api import Message, ModelError, Record, ScorerContext
from core.models.start import Start
from core.settings.schema import ModelConfig
from core.testing.templates import codec_of
from core.testing.tiny import tiny_tokenizer
from core.torch_api import score_request
from reward_models import LearnedConfig
from reward_models.bradley_terry import BradleyTerry

RECORD = Record(prompt=(Message("system", "Be short."), Message("user", "one"), Message("assistant", "two"),
                        Message("user", "Is 0 a number?")), answer="yes")  # fmt: skip


class Seen:
    """A reward model that keeps the rows it is given, and scores each completion by its place."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []

    def __call__(self, row: Any) -> Any:
        import torch

        self.rows.append(row.input_ids_T.tolist())
        return torch.arange(row.completions, dtype=torch.float)


def start_of(tmp_path: Path, policy: Any, reward: Any) -> Start:
    folders = {}
    for name, tokenizer in (("policy", policy), ("reward", reward)):
        folders[name] = tmp_path / name
        tokenizer.save_pretrained(folders[name])
    cfg = SimpleNamespace(model=ModelConfig(source=str(folders["policy"])))
    return Start(cfg, tmp_path, folders["policy"], folders["reward"])


def read_by_the_model(start: Start, text: str, ended: bool = True) -> str:
    """What the reward model sees of a completion, decoded by its own tokenizer."""
    (ids,) = start.codec.completions([text])
    ids = ids if ended else ids[:-1]
    (prompt,) = start.codec.prompts([RECORD.prompt])
    seen = Seen()
    scorer = BradleyTerry(LearnedConfig(name="learned"), ScorerContext(parts=SimpleNamespace(
        models=SimpleNamespace(start=start, reward_model=seen))))  # fmt: skip
    (found,) = scorer.score([score_request(RECORD, start.codec.said(ids), prompt, ids)])
    assert found.value == 0.0
    reader = start.reward_codec or start.codec
    return reader.tokenizer.decode(seen.rows[0])


def test_one_vocabulary_and_template_take_the_sampled_ids(tmp_path: Path) -> None:
    start = start_of(tmp_path, tiny_tokenizer(), tiny_tokenizer())
    assert start.reward_codec is None
    start.check_critic()
    assert read_by_the_model(start, "yes").endswith("Is 0 a number?<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>")


def test_another_vocabulary_gets_the_texts(tmp_path: Path) -> None:
    start = start_of(tmp_path, codec_of("llama3").tokenizer, tiny_tokenizer())
    seen = read_by_the_model(start, "yes")
    turns = [*RECORD.prompt, Message("assistant", "yes")]
    own = start.reward_codec
    assert own is not None and seen == own.tokenizer.decode(own.dialogue(turns).ids)
    assert seen.endswith("<|im_start|>assistant\nyes<|im_end|>") and "<|eot_id|>" not in seen
    assert read_by_the_model(start, "yes", ended=False).endswith("<|im_start|>assistant\nyes")
    with pytest.raises(
        ModelError, match="the critic starts from the reward model, whose vocabulary is another"
    ) as told:
        start.check_critic()
    assert str(start.reward_model) in str(told.value) and str(start.folder) in str(told.value)


def test_another_template_gets_the_texts_and_a_critic_may_stay(tmp_path: Path) -> None:
    policy = codec_of("qwen3").tokenizer
    reward = codec_of("qwen3").tokenizer
    reward.chat_template = codec_of("qwen2_5").tokenizer.chat_template
    start = start_of(tmp_path, policy, reward)
    start.check_critic()
    thought = read_by_the_model(start, "<think>\nhm\n</think>\n\nyes")
    assert thought.endswith("<|im_start|>assistant\n<think>\nhm\n</think>\n\nyes<|im_end|>")
    assert read_by_the_model(start, "yes").endswith("<|im_start|>assistant\nyes<|im_end|>")  # no empty thought


def test_a_reward_model_without_template_is_read_in_the_policys(tmp_path: Path) -> None:
    bare = tiny_tokenizer()
    bare.chat_template = None
    assert start_of(tmp_path, tiny_tokenizer(), bare).reward_codec is None


def test_a_reward_model_without_tokenizer_is_refused(tmp_path: Path) -> None:
    start = start_of(tmp_path, tiny_tokenizer(), tiny_tokenizer())
    for file in start.reward_model.iterdir():
        file.unlink()
    with pytest.raises(ModelError, match="the tokenizer could not be loaded") as told:
        _ = start.reward_codec
    assert "reward" in str(told.value)


def test_a_template_that_refuses_a_dialogue_costs_one_score(tmp_path: Path) -> None:
    picky = tiny_tokenizer()
    picky.chat_template = "{% if messages[-1].content == 'no' %}{{ raise_exception('not this') }}{% endif %}" + (
        picky.chat_template
    )
    start = start_of(tmp_path, tiny_tokenizer(), picky)
    requests = []
    for asked in ("yes", "no"):
        record = Record(prompt=(Message("user", asked),))
        (prompt,), (ids,) = start.codec.prompts([record.prompt]), start.codec.completions(["so"])
        requests.append(score_request(record, start.codec.said(ids), prompt, ids))
    models = SimpleNamespace(start=start, reward_model=Seen())
    scorer = BradleyTerry(LearnedConfig(name="learned"), ScorerContext(parts=SimpleNamespace(models=models)))
    good, bad = scorer.score(requests)
    assert good.value == 0.0 and bad.value is None and "not this" in (bad.error or "")
