"""Errors say what, where and how to mend it; the setting that is to blame is a field, so that it has its true name."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from core.api import ConfigError, find_files, require
from core.config.typed import typed_config
from core.data.loading import load_records
from core.errors import DataError, PreftuneError, describe
from core.planning.make import make_plan
from core.platform.providers import ProviderError

ROOT = Path(__file__).resolve().parents[2]


def refused(key: str, value: object = -1) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        require(False, key, "> 0", value)
    return caught.value


# 1. The class.


def test_texts_without_a_key_stand_as_they_are():
    error = ConfigError("{key} and {0} and {", "in {where}", "write {}")
    assert (error.what, error.where, error.mend, error.key) == ("{key} and {0} and {", "in {where}", "write {}", "")
    assert str(error) == "{key} and {0} and {\n  where: in {where}\n  mend:  write {}"
    assert str(error.at("stage.lr")) == str(error)
    assert str(ConfigError("what")) == "what" and str(ConfigError("what", mend="m")) == "what\n  mend:  m"


def test_the_key_is_a_field():
    error = refused("stage.lr")
    assert error.key == "stage.lr" and error.what == "'stage.lr' must be > 0, got -1"
    again = error.at("upstream.sft.lr")
    assert (again.what, again.mend) == (
        "'upstream.sft.lr' must be > 0, got -1",
        "set upstream.sft.lr=… to a value that is > 0",
    )
    assert error.key == "stage.lr" and type(again) is ConfigError and describe(again).endswith(again.what)
    item = error.at("data.transforms[1].rate")
    assert item.what.startswith("'data.transforms[1].rate'") and item.mend.startswith("set data.transforms.1.rate=…")
    beside = DataError("'{key}' goes with '{part}.b'", "{key}", key="judge.members[0].a")
    assert str(beside) == "'judge.members[0].a' goes with 'judge.members[0].b'\n  where: judge.members[0].a"


@pytest.mark.parametrize("value", ["{key}", "{}", "{0!r:{1}}", "}{", {"a": "{key}"}])
def test_braces_of_a_value_mean_nothing(value):
    error = refused("stage.name", value).within("{place} of {key}")
    assert error.what == f"'stage.name' must be > 0, got {value!r}" and error.where == "{place} of {key}"
    error.where = f"arm {value}: {error.where}"
    assert error.at("judge.x").where == f"arm {value}: {{place}} of {{key}}"
    assert error.what == f"'stage.name' must be > 0, got {value!r}"


@pytest.mark.parametrize("text", ["{", "}", "{0}", "{nobody}", "{key.nothing}", "{key!x}"])
def test_a_text_that_is_no_template_is_not_lost(text):
    assert ConfigError(text, key="stage.lr").what == text


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("what {", "where", "mend"),
        refused("stage.lr", object()).at("upstream.sft.lr").within("arm {a}"),
        DataError("'{key}' holds {count}", "{key}", "see {typed}", key="data.transforms[0].x", count=3),
        ProviderError("what", "where", "mend"),
    ],
)
def test_errors_cross_process_borders(error: PreftuneError):
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is type(error) and str(found) == str(error) and found.key == error.key
    assert (found.what, found.where, found.mend) == (error.what, error.where, error.mend)
    assert str(found.at("a.b")) == str(error.at("a.b"))


class Strange(ConfigError):
    """Of a plugin, with a constructor of its own."""

    def __init__(self, count: int) -> None:
        super().__init__("'{key}' has {count}", key="stage.lr", count=count)


def test_a_class_with_a_constructor_of_its_own_can_be_placed():
    error = Strange(3).at("upstream.sft.lr").within("arm")
    assert type(error) is Strange and (error.what, error.where) == ("'upstream.sft.lr' has 3", "arm")


def test_within_goes_before_the_place():
    error = ConfigError("what", "line 3")
    assert error.within("file.yaml").where == "file.yaml: line 3" and error.where == "line 3"
    assert ConfigError("what").within("file.yaml").where == "file.yaml"


# 2. The setting has its true name, wherever it stands.

CFG = [
    (["stage=sft", "stage.lr=-1"], "stage.lr", "set stage.lr=…"),
    (["stage=sft", "upstream.sft.lr=-1"], "upstream.sft.lr", "set upstream.sft.lr=…"),
    (["stage=sft", "upstream.sft.role_weights.user=-1"], "upstream.sft.role_weights.user",
     "set upstream.sft.role_weights.user=…"),
    (["stage=domain", "stage.replay.fraction=2"], "stage.replay.fraction", "set stage.replay.fraction=…"),
    (["stage=sft", "upstream.domain.replay.fraction=2"], "upstream.domain.replay.fraction",
     "set upstream.domain.replay.fraction=…"),
    (["stage=s3ft", "judge.threshold=nan"], "judge.threshold", "set judge.threshold=…"),
    (["stage=s3ft", "reward.threshold=nan"], "reward.threshold", "set reward.threshold=…"),
    (["stage=s3ft", "judge=code", "judge.limit_s=20"], "judge.limit_s", "set judge.limit_s=…"),
    (["stage=s3ft", "judge=regex", "judge.pattern='('"], "judge.pattern", "correct judge.pattern=…"),
    (["stage=s3ft", "judge=length", "judge.target_tokens=1", "judge.target_chars=1"], "judge.target_tokens", "set one"),
    (["stage=s3ft", "judge=ensemble", "judge.members=[{name: json, weight: 0}]"], "judge.members[0].weight",
     "set judge.members.0.weight=…"),
    (["stage=sft", "data.transforms=[length,{name: length, min_chars: -1}]"], "data.transforms[1].min_chars",
     "set data.transforms.1.min_chars=…"),
    (["stage=sft", "data.transforms=[{name: length, min_chars: x}]"], "data.transforms[0].min_chars",
     "set data.transforms.0.min_chars=…"),
    (["stage=sft", "data.transforms=[{name: length, of: x}]"], "data.transforms[0].of", "record, prompt, completion"),
    (["stage=sft", "eval.metrics=[{name: distinct, n: 0}]"], "eval.metrics[0].n", "set eval.metrics.0.n=…"),
    (["stage=sft", "eval.metrics=[{name: distinct, m: 0}]"], "eval.metrics[0].m", "known keys: n, name"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "key", "mend"), CFG)
def test_a_setting_that_is_refused_has_its_true_name(words, key, mend):
    with pytest.raises(ConfigError) as caught:
        typed_config(words)
    assert caught.value.key == key and f"'{key}'" in caught.value.what and mend in caught.value.mend


PLAN = [
    (["judge=regex"], "judge.pattern", "set judge.pattern=…"),
    (["judge=ensemble"], "judge.members", "set judge.members=…"),
    (["judge=ensemble", "judge.members=[{name: json},{name: regex}]"],
     "judge.members[1].pattern", "set judge.members.1.pattern=…"),
    (["judge=ensemble", "judge.members=[{name: regex, pattern: '('}]"], "judge.members[0].pattern",
     "correct judge.members.0.pattern=…"),
    (["judge=ensemble", "judge.members=[{name: ensemble, members: [{name: regex}]}]"],
     "judge.members[0].members[0].pattern", "set judge.members.0.members.0.pattern=…"),
    (["judge=ensemble", "judge.members=[{name: json, kees: 1}]"], "judge.members[0].kees", "did you mean 'keys'?"),
    (["judge=ensemble", "judge.members=[{name: jsn}]"], "judge.members[0].name", "did you mean 'json'?"),
    (["judge=exact", "retention.texts={folder}/missing"], "retention.texts", "'{folder}' holds text.txt"),
    (["judge=exact", "retention.texts={folder}/txt.txt"], "retention.texts", "use retention.texts={folder}/text.txt"),
    (["judge=exact", "retention.texts={folder}/../empty.txt"], "retention.texts", "point retention.texts at a file"),
    (["judge=exact", "retention.choices=[{folder}/txt.txt]"], "retention.choices[0]",
     "use retention.choices.0={folder}/text.txt"),
    (["judge=exact", "data.path={folder}/txt.txt"], "data.path", "use data.path={folder}/text.txt"),
    (["judge=exact", "data.mixture.a.path={folder}/txt.txt"], "data.mixture.a.path",
     "use data.mixture.a.path={folder}/text.txt"),
    (["judge=exact", "data.mixture.a.path={folder}/text.txt"], "data.mixture.a.path", "with data.mixture.a.columns={"),
    (["judge=exact", "data.mixture.a.path={folder}/text.txt", "data.mixture.a.dialect=Text"],
     "data.mixture.a.dialect", "choose one of:"),
    (["judge=exact", "data.mixture.a.path={folder}/text.txt", "data.mixture.a.columns.prompt=txt"],
     "data.mixture.a.columns", "name one of these columns"),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "text.txt").write_text("Some text.\n")
    (tmp_path / "empty.txt").write_text("")
    return tmp_path / "files"


@pytest.mark.parametrize(("words", "key", "mend"), PLAN)
def test_what_the_plan_refuses_has_its_true_name(folder, words, key, mend):
    words = [word.replace("{folder}", str(folder)) for word in words]
    cfg, registry, _ = typed_config(["stage=s3ft", *words])
    with pytest.raises(PreftuneError) as caught:
        make_plan(cfg, registry)
    text = str(caught.value)
    assert caught.value.key == key and key in caught.value.what + caught.value.where + caught.value.mend, text
    assert mend.replace("{folder}", str(folder)) in caught.value.mend, text
    if key != "data.path":
        assert "data.path" not in text and "reward." not in text


@pytest.mark.parametrize("key", ["stage.replay.path", "data.path", "model.words"])
def test_whoever_names_a_path_says_by_which_setting(folder, key):
    for path, mend in (
        (folder / "txt.txt", f"use {key}={folder}/text.txt"),
        (folder / "*.csv", "match files of"),
        (folder / "nowhere" / "x.txt", "there is no folder"),
    ):
        with pytest.raises(ConfigError) as caught:
            find_files(path, "text", key=key)
        assert caught.value.where == caught.value.key == key and mend in caught.value.mend
    (folder / "prompts.jsonl").write_text("{}")
    with pytest.raises(DataError, match=f"or point {key} at one file"):
        find_files(folder, "preference", key=key)
    with pytest.raises(DataError, match=f"point {key} at a file that is not empty"):
        load_records([folder.parent / "empty.txt"], key=key)


def test_the_replay_text_is_named_by_its_own_setting(folder):
    cfg, registry, _ = typed_config(["stage=domain", f"data.path={folder}/text.txt", "stage.replay.path=missing"])
    with pytest.raises(ConfigError) as caught:
        make_plan(cfg, registry)
    assert caught.value.what == "'missing' does not exist" and caught.value.where == "stage.replay.path"
    assert "data.path" not in str(caught.value)


def test_no_text_of_an_error_is_rewritten():
    """Names of settings are fields: nobody looks for them in the text."""
    files = [file for top in ("core", "plugins", "reward_models") for file in (ROOT / top).rglob("*.py")]
    rewriting = re.compile(
        r"\b(what|mend|where|str\(\w*error\w*\))(\.replace|\.removeprefix)\(|re\.sub\(.*\.(what|mend)\b"
    )
    assert [file.name for file in files if rewriting.search(file.read_text(encoding="utf-8"))] == []
