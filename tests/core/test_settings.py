"""Every numeric setting of core and of the plugins: it declares what it may be, and is held to it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_type_hints

import pytest

from core.api import ConfigError, StageConfig, number
from core.config.typed import typed_config
from core.errors import describe
from core.platform.kinds import KINDS
from core.platform.providers import tell
from core.platform.registry import Registry
from core.secrets import without_secrets
from core.settings.convert import from_plain
from core.settings.ranges import Range, declared, inner_type, ranges
from core.settings.schema import RunConfig


def classes_below(config: type) -> Iterator[type]:
    """The class and the settings classes that its fields hold."""
    yield config
    for hint in get_type_hints(config).values():
        if dataclasses.is_dataclass(inner := inner_type(hint)):
            yield from classes_below(inner)


def settings_classes() -> list[type]:
    """Every class of settings: core's, and those that the installed plugins register."""
    registry = Registry.load()
    roots = [RunConfig] + [entry.spec.config for kind in KINDS if kind.base for entry in registry.table(kind).values()]
    return list(dict.fromkeys(config for root in roots for config in classes_below(root)))


NUMBERS = [(config, name) for config in settings_classes() for name in ranges(config)]


def test_there_are_numbers_to_look_at():
    assert len(NUMBERS) > 300 and (RunConfig not in dict(NUMBERS))


@pytest.mark.parametrize(("config", "name"), NUMBERS, ids=[f"{c.__name__}.{n}" for c, n in NUMBERS])
def test_a_number_declares_its_range_and_keeps_to_it(config, name):
    assert declared(config, name) is not None, f"{config.__module__}: declare it with number(…)"
    for value in (math.nan, math.inf, -math.inf, 10**39):
        assert_refused(config, name, value)
    held = ranges(config)[name]
    for bound, inside in ((held.above, False), (held.at_least, True), (held.below, False), (held.at_most, True)):
        assert bound is None or held.holds(bound) is inside
    if not held.holds(-1):
        assert_refused(config, name, -1)


def assert_refused(config: type, name: str, value: float) -> None:
    hint, inner = str(get_type_hints(config)[name]), inner_type(get_type_hints(config)[name])
    if inner is int and isinstance(value, float):
        return  # the check of types comes first
    given: Any = [value] if hint.startswith("list") else {"user": value} if hint.startswith("dict") else value
    with pytest.raises(ConfigError, match=r"must be .*(finite|[<>]|between)") as caught:
        from_plain(config, {name: given}, key="here")
    assert caught.value.key.startswith(f"here.{name}") and caught.value.exit_code == 2 and caught.value.mend


@dataclass
class Inner:
    """Settings inside settings, of a plugin that extends nothing."""

    share: float = number(0.5, above=0, below=1)


@dataclass
class Careless(StageConfig):
    """A plugin's settings that forget the checks of their base, and work with a number while they are made."""

    lr: float = 1e-3
    size: int = 4
    inner: Inner = dataclasses.field(default_factory=Inner)
    many: dict[str, Inner] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.part = 1 / self.size


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"lr": 0.0}, "stage.lr"),  # the base's range, though the field has a default of its own
        ({"size": math.inf}, "stage.size"),
        ({"inner": {"share": 1.5}}, "stage.inner.share"),
        ({"many": {"a": {"share": 0.1}, "b": {"share": 0.0}}}, "stage.many.b.share"),
        ({"epochs": math.nan}, "stage.epochs"),
    ],
)
def test_a_plugin_that_forgets_its_base_is_held_too(values, key):
    with pytest.raises(ConfigError) as caught:
        from_plain(Careless, values, key="stage")
    assert key in caught.value.what


def test_an_object_made_by_hand_is_checked():
    with pytest.raises(ConfigError, match="'lr' must be > 0 and <= 100, got -1"):
        StageConfig(lr=-1)


@pytest.mark.parametrize(
    ("held", "text"),
    [
        (Range(), "finite"), (Range(above=0), "> 0"), (Range(at_least=0, below=1), ">= 0 and < 1"),
        (Range(at_least=16, at_most=1024), "between 16 and 1024"), (Range(above=0, at_most=1), "> 0 and <= 1"),
    ],
)  # fmt: skip
def test_a_range_in_words(held, text):
    assert str(held) == text


# ---- what the parts say together, and what no value may be ----------------------------------------------------------


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


def refused(registry: Registry, *words: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        typed_config(["stage=sft", "model.source=x", *words], registry)
    assert caught.value.exit_code == 2 and caught.value.mend
    return caught.value


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (["judge.name=exact"], ["'judge.name' is 'exact'", "choose with judge=exact"]),
        (["reward.name=exat"], ["'reward.name' is 'exat'", "Did you mean 'exact'?", "choose with reward=NAME"]),
        (["optimizer.name=adamw8bit"], ["choose with optimizer=adamw8bit, without '.name'"]),
        (["rollout.name=''"], ["'rollout.name' is ''", "auto, transformers, vllm"]),
        (["tracker.name=none"], ["choose with tracker=none"]),
        (["stage.name=reward"], ["'stage' does not hold the settings of stage.name='reward'", "stage=NAME"]),
        (["stage=rlhf", "stage.algorithm=grpo"], ["stage.algorithm='grpo'", "algorithm=NAME"]),
        (["upstream.rlhf.algorithm=grpo"], ["leave upstream.rlhf.name", "with the algorithm 'ppo'"]),
        (["upstream.reward.name=sft"], ["a stage before the last one is 'reward'"]),
        (["upstream.sft.algorithm=''", "++upstream.sft.name=dpo"], ["upstream.sft.name='dpo'"]),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_a_part_is_chosen_not_named(registry, words, texts):
    for text in texts:
        assert text in str(refused(registry, *words))


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["peft=lora", "peft.alpha=0"], "peft.alpha"),
        (["peft=lora", "peft.options.lora_alpha=0"], "peft.options.lora_alpha"),
        (["peft=lora", "peft.options.rank_pattern={q_proj: 0}"], "peft.options.rank_pattern.q_proj"),
        (["peft=lora", "peft.options.lora_dropout=1"], "peft.options.lora_dropout"),
        (["peft=lora", "peft.options.init_lora_weights=nan"], "peft.options.init_lora_weights"),
        (["stage=rlhf", "stage.importance_cap=0"], "stage.importance_cap"),
        (["stage.epochs=inf"], "stage.epochs"),
        (["stage.warmup_frac=1.5"], "stage.warmup_frac"),
        (["optimizer.beta2=1"], "optimizer.beta2"),
        (["runtime.threads=-1"], "runtime.threads"),
        (["runtime.threads=100000"], "runtime.threads"),
        (["eval.samples=-1"], "eval.samples"),
        (["reward=ensemble", "reward.members=[{name: json, weight: inf}]"], "reward.members[0].weight"),
        (["judge=code", "judge.memory_mb=0"], "judge.memory_mb"),
        (["eval.metrics=[{name: distinct, n: 0}]"], "eval.metrics[0].n"),
        (["data.mixture.a.path=f", "data.mixture.a.cap=-1"], "data.mixture.a.cap"),
        (["upstream.reward.lr=nan"], "upstream.reward.lr"),
        (["study.seeds=[1,-1]"], "study.seeds[1]"),
        (["eval.max_new_tokens=4000"], "eval.max_new_tokens"),
        (["stage=rlhf", "stage.max_new_tokens=512"], "stage.max_new_tokens"),
        (["runs_dir=/etc/passwd/runs"], "runs_dir"),
        (["runs_dir=''"], "runs_dir"),
        (["model.source=''"], "model.source"),
        (["data.path=/dev/null"], "data.path"),
        (["data.mixture.a.path=/dev/zero"], "data.mixture.a.path"),
        (["runs_dir=" + "r" * 5000], "runs_dir"),
        (["runs_dir='~nobody-here/x'"], "runs_dir"),
        (["data.system=a\udc80"], "data.system"),
        (["group=a\0b"], "group"),
        (["plugins.allow.allow=x"], "plugins.allow"),
        (["stage.target_tokens.x=1"], "stage.target_tokens"),
        (["upstream.reward.lr.x=1"], "upstream.reward.lr"),
        (["data.path=${x}"], "data.path"),
        (["reuse=${x}"], "reuse"),
        (["stage.warmup_frac=" + "9" * 400], "stage.warmup_frac"),
        (["stage.lr=" + "9" * 5000], "stage.lr"),
        (["stage.batch_size=" + "9" * 5000], "stage.batch_size"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)  # fmt: skip
def test_a_value_that_cannot_be_meant_is_refused_by_its_key(registry, words, key):
    assert f"'{key}'" in (what := refused(registry, *words).what) or f"{key}=" in what


def test_a_template_that_is_no_text_is_refused(registry, tmp_path):
    (tmp_path / "a.jinja").write_bytes(bytes(range(256)))
    error = refused(registry, f"model.chat_template={tmp_path}/a.jinja")
    assert "'model.chat_template' must name a text file in UTF-8" in error.what and "a.jinja" in error.where


SECRETS = [
    "https://me:hunter2@host/v1",
    "https://hunter2@host",
    "http://host/v1?api_key=hunter2",
    "http://host#token=hunter2&a=1",
]


@pytest.mark.parametrize("address", SECRETS)
@pytest.mark.parametrize(
    "place",
    [
        "reward.url={}", "model.source={}", "data.path={}", "group={}", "study.files.a={}", "data.columns.prompt={}",
        "study.arms.one=['reward.url={}']", "reward.members=[{{name: endpoint, url: '{}'}}]", "runs_dir={}",
        "data.mixture.a.path={}", "tracker.tags=['{}']", "upstream.sft.nothing={}", "stage.lr={}", "reward.urll={}",
    ],
)  # fmt: skip
def test_a_secret_in_an_address_is_refused_and_not_told(registry, address, place, capsys):
    words = [place.format(address) if "[" in place else place.format(f"'{address}'")]
    if place.startswith("reward"):
        words.append("reward=ensemble" if "members" in place else "reward=endpoint")
    error = refused(registry, *words)
    tell(error)
    assert "hunter2" not in capsys.readouterr().err
    if "nothing" not in place and "stage.lr" not in place and "urll" not in place:
        assert "holds a password or a token" in error.what


@pytest.mark.parametrize(
    "text",
    [
        "ssh://git@host/x", "hf://datasets/a/b@main/f", "http://host:8000/v1?api-version=2&max_tokens=5",
        "a;token=5 is code", "write to me@host", "https://host/a@b", "s3://bucket/key=5/part",
    ],
)  # fmt: skip
def test_what_is_no_secret(text):
    assert without_secrets(text) == text


@pytest.mark.parametrize("token", ["hf_" + "a" * 34, "sk-" + "b" * 40, "ghp_" + "c" * 36, "AKIA" + "D" * 16])
def test_a_token_known_by_its_form_is_cut_out_anywhere(token):
    assert without_secrets(f"login failed for {token}, sorry") == "login failed for ***, sorry"
    assert describe(ValueError(f"no {token}")) == "ValueError: no ***"
