"""Sets: mixtures by weights, folds, orders, transforms and what they may not do, and what the artifact key knows."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from core.config.typed import typed_config
from core.data.building import build_dataset
from core.data.draws import in_fold, shuffled
from core.data.mixing import mix, quotas, size_without_repeats, weights
from core.data.records import Message, Record
from core.errors import ConfigError, DataError, PluginError
from core.planning.make import make_plan
from core.planning.named_data import dataset_for
from core.platform.registry import Registry
from core.settings.data_schema import DataConfig, Mixing, SourceConfig


def record(text: str, line: int = 1, **fields) -> Record:
    meta = {"file": "rows.jsonl", "line": line, "source": "s"}
    return Record(**{"prompt": (Message("user", text),), "completion": "Yes.", "meta": meta, **fields})


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows(name: str, count: int) -> list[dict]:
    return [{"prompt": f"Question {number} of {name}?", "completion": f"Answer {number}."} for number in range(count)]


def three(mixing: Mixing = Mixing.proportional, rates=(None, None, None), **settings) -> DataConfig:
    sources = {name: SourceConfig(path=name, rate=rate) for name, rate in zip("abc", rates, strict=True)}
    return DataConfig(mixture=sources, mixing=mixing, **settings)


SIZES = {"a": 100, "b": 3000, "c": 90000}


# 1. Weights and draws.


def test_examples_proportional_weights_with_a_maximum_rate():
    found = weights(SIZES, three(mix_rate_max=3000))
    assert found == {"a": 100 / 6100, "b": 3000 / 6100, "c": 3000 / 6100}
    assert size_without_repeats(SIZES, found) == 6100
    assert quotas(found, 6100) == {"a": 100, "b": 3000, "c": 3000}


def test_without_a_bound_every_record_comes_once():
    found = weights(SIZES, three())
    assert quotas(found, size_without_repeats(SIZES, found)) == SIZES


def test_temperature_runs_from_proportional_to_equal():
    proportional = weights(SIZES, three())
    assert weights(SIZES, three(Mixing.temperature, mix_temperature=1.0)) == pytest.approx(proportional)
    root = weights({"a": 1, "b": 4, "c": 16}, three(Mixing.temperature, mix_temperature=2.0))
    assert root == pytest.approx({"a": 1 / 7, "b": 2 / 7, "c": 4 / 7})
    assert weights(SIZES, three(Mixing.temperature, mix_temperature=1e6)) == pytest.approx(
        dict.fromkeys("abc", 1 / 3), rel=1e-4
    )


def test_fixed_rates_are_relative_and_bound_the_size():
    found = weights({"a": 100, "b": 100, "c": 1000}, three(Mixing.fixed, (4.0, 1.0, 5.0)))
    assert found == pytest.approx({"a": 0.4, "b": 0.1, "c": 0.5})
    assert size_without_repeats({"a": 100, "b": 100, "c": 1000}, found) == 250


def test_quotas_add_up_and_are_off_by_less_than_one():
    shares = {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}
    for size in range(1, 50):
        found = quotas(shares, size)
        assert sum(found.values()) == size and all(abs(found[name] - size / 3) < 1 for name in shares)


def test_any_beginning_of_a_mixture_has_its_weights():
    shares = weights({"a": 500, "b": 2000, "c": 9000}, three(mix_rate_max=3000))
    sources = {name: [record(f"{name} {number}") for number in range(size)]
               for name, size in {"a": 500, "b": 2000, "c": 9000}.items()}  # fmt: skip
    mixed = mix(sources, quotas(shares, 5000), 17)
    for start in (0, 1000, 4000):
        counts = Counter(one.prompt[0].content[0] for one in mixed[start : start + 1000])
        for name, share in shares.items():
            error = (1000 * share * (1 - share)) ** 0.5
            assert abs(counts[name] - 1000 * share) <= 3 * error, (start, name, counts)
    assert [one.key for one in mixed] == [one.key for one in mix(sources, quotas(shares, 5000), 17)]
    assert [one.key for one in mixed] != [one.key for one in mix(sources, quotas(shares, 5000), 18)]


def test_a_source_that_must_give_more_gives_all_before_it_repeats():
    few = [record(f"few {number}") for number in range(10)]
    counts = Counter(one.key for one in mix({"a": few}, {"a": 25}, 17))
    assert sorted(counts.values()) == [2] * 5 + [3] * 5


def test_folds_part_the_prompts():
    keys = [record(f"prompt {number % 23}").prompt_key for number in range(60)]
    masks = [in_fold(keys, fold, 5, 17) for fold in range(1, 6)]
    assert all(sum(held) == 1 for held in zip(*masks, strict=True))
    prompts = [len({key for key, held in zip(keys, mask, strict=True) if held}) for mask in masks]
    assert max(prompts) - min(prompts) <= 1
    with pytest.raises(DataError, match="only 23 different prompts"):
        in_fold(keys, 1, 24, 17)


def test_a_drawn_order_keeps_when_records_are_added():
    records = [record(f"prompt {number}") for number in range(50)]
    order = [one.key for one in shuffled(records, 17)]
    more = [one.key for one in shuffled([*records, *(record(f"more {number}") for number in range(50))], 17)]
    assert order != [one.key for one in records]
    assert order == [key for key in more if key in set(order)]


# 2. Mixtures out of files.


@pytest.fixture
def files(tmp_path):
    return {name: write(tmp_path / f"{name}.jsonl", rows(name, count)) for name, count in (("a", 40), ("b", 160))}


def mixture_of(files, **settings) -> DataConfig:
    return DataConfig(mixture={name: SourceConfig(path=str(path)) for name, path in files.items()}, **settings)


def test_a_mixture_names_its_sources_and_holds_out_of_each(files):
    data = build_dataset(mixture_of(files, heldout_max=10), files, "sft", 17)
    assert {one.meta["source"] for one in data.train} == {"a", "b"}
    assert [one.meta["source"] for one in data.heldout[:4]] == ["a", "b", "a", "b"]
    assert len(data.heldout) <= 10 and len(data.heldout) + len(data.train) == 200
    assert data.train[0].meta["file"] in ("a/a.jsonl", "b/b.jsonl")
    for name, described in data.info.mixture.items():
        assert described.records == sum(one.meta["source"] == name for one in data.train)
        assert described.heldout == sum(one.meta["source"] == name for one in data.heldout)
        assert described.part.dialect == "prompt_completion"


def test_a_prompt_that_one_source_holds_out_is_trained_in_none(tmp_path):
    both = rows("shared", 60)
    files = {
        name: write(tmp_path / f"{name}.jsonl", both + rows(name, count)) for name, count in (("a", 9), ("b", 300))
    }
    data = build_dataset(mixture_of(files, heldout_max=12), files, "sft", 17)
    assert not {one.prompt_key for one in data.train} & {one.prompt_key for one in data.heldout}
    assert sum(source.part.also_heldout or 0 for source in data.info.mixture.values()) > 0


def test_caps_size_and_limit(files):
    cfg = mixture_of(files, mix_size=50, limit=20)
    cfg.mixture["b"].cap = 30
    data = build_dataset(cfg, files, "sft", 17)
    assert data.info.mixture["b"].capped == 30 and len(data.train) == 20
    assert sum(source.records for source in data.info.mixture.values()) == 50


def test_folds_over_a_file_and_not_over_a_heldout_part(tmp_path):
    path = write(tmp_path / "all.jsonl", rows("x", 33))
    held = [build_dataset(DataConfig(folds=3, fold=fold), path, "sft", 17).heldout for fold in (1, 2, 3)]
    assert sorted(one.key for part in held for one in part) == sorted(
        one.key for one in build_dataset(DataConfig(heldout_frac=0), path, "sft", 17).train
    )
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "sft.jsonl", rows("x", 9))
    write(folder / "heldout.jsonl", rows("y", 3))
    with pytest.raises(DataError, match="held-out part"):
        build_dataset(DataConfig(folds=3, fold=1), folder, "sft", 17)


def test_a_seed_of_the_data_fixes_the_split_while_the_run_varies(files):
    def heldout(run_seed: int, **settings) -> list[str]:
        return [one.key for one in build_dataset(DataConfig(**settings), files["b"], "sft", run_seed).heldout]

    assert heldout(1, seed=5) == heldout(2, seed=5) == heldout(5)
    assert heldout(1) != heldout(2)


def test_shuffle_before_limit(files):
    first = build_dataset(DataConfig(limit=20, heldout_frac=0), files["b"], "sft", 17).train
    drawn = build_dataset(DataConfig(limit=20, heldout_frac=0, shuffle=True), files["b"], "sft", 17).train
    assert [one.meta["line"] for one in first] == list(range(1, 21))
    assert max(one.meta["line"] for one in drawn) > 60


# 3. From the command line and from a preset.


def configured(*words: str) -> DataConfig:
    return typed_config(["stage=sft", *words])[0].data


def test_sources_are_typed_on_the_command_line(files):
    data = configured(
        f"data.mixture.a.path={files['a']}", "data.mixture.a.columns.prompt=prompt", "data.mixture.b.path=b.jsonl",
        "data.mixture.b.cap=7", "data.mixing=temperature",
    )  # fmt: skip
    assert data.mixture == {
        "a": SourceConfig(path=str(files["a"]), columns={"prompt": "prompt"}),
        "b": SourceConfig(path="b.jsonl", cap=7),
    }
    length, text = configured(
        "data.transforms=[{name: length},{name: quality}]", "data.transforms.0.min_chars=3"
    ).transforms
    assert (length.name, length.min_chars, text.name) == ("length", 3, "quality")
    whole = configured("data.mixture={a: {path: x, cap: 3}}")
    assert whole.mixture == {"a": SourceConfig(path="x", cap=3)}


def test_a_preset_names_sources_and_the_command_line_changes_them(tmp_path, cli, executed, monkeypatch):
    folder = tmp_path / "mine" / "data"
    folder.mkdir(parents=True)
    text = "mixture:\n  faq: {path: faq.csv, columns: {prompt: frage}}\n  chat: {path: chat.jsonl}\nmix_size: 500\n"
    (folder / "blend.yaml").write_text(text)
    outcome = cli("stage=sft", "data=blend", "data.mixture.chat.cap=9", "--config-dir", str(tmp_path / "mine"))
    assert outcome.code == 0, outcome.err
    [config] = executed.configs
    assert config.data.mixture["faq"].columns == {"prompt": "frage"}
    assert config.data.mixture["chat"] == SourceConfig(path="chat.jsonl", cap=9) and config.data.mix_size == 500
    (folder / "blend.yaml").write_text("mixture:\n  faq: {pfad: faq.csv}\n")
    outcome = cli("stage=sft", "data=blend", "--config-dir", str(tmp_path / "mine"))
    assert outcome.code == 2 and "unknown key 'data.mixture.faq.pfad'" in outcome.err


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (["data.mixture.a.pth=x"], ["unknown key 'data.mixture.a.pth'", "Did you mean 'path'"]),
        (["data.mixture.a.path=x", "+data.mixture.a.kap=1"], ["unknown key 'data.mixture.a.kap'", "'cap'"]),
        (["data.mixture.a.path=x", "data.mixture.aa.cap=1"], ["'data.mixture.aa' has neither path nor source"]),
        (["data.mixture.a.path=x", "data.mixture.a.cap=lots"], ["data.mixture.a.cap", "int"]),
        (["data.mixture.a.path=x", "data.mixture.a.cap=0"], ["data.mixture.a.cap", "> 0"]),
        (["data.mixture.a.path=x", "data.path=y"], ["data.path and data.mixture"]),
        (["data.mixture.a.path=x", "data.mixing=fixed"], ["data.mixture.a.rate"]),
        (["data.mixture.a.path=x", "data.mixture.a.rate=1"], ["'data.mixture.a.rate' has no effect"]),
        (["data.mixture.a.path=x", "data.columns.prompt=y"], ["data.columns"]),
        (["data.mixing=temprature"], ["data.mixing", "temperature"]),
        (["data.mix_size=3"], ["no effect without sources"]),
        (["data.fold=1"], ["data.folds and data.fold go together"]),
        (["data.fold=4", "data.folds=3"], ["data.fold", "between 1 and 3"]),
        (["data.transforms=[{name: lenght}]"], ["no transform 'lenght'", "'length'", "data.transforms[0]"]),
        (["data.transforms=[length, {name: length, min_char: 3}]"], ["'data.transforms[1].min_char'", "'min_chars'"]),
        (["data.transforms=[{name: length, min_chars: few}]"], ["'data.transforms[0].min_chars' must be of type int"]),
        (
            ["data.transforms=[{name: length, min_chars: -1}]"],
            ["'data.transforms[0].min_chars' must be >= 0", "set data.transforms.0.min_chars="],
        ),
        (["data.transforms=[{min_chars: 3}]"], ["must be a transform with a name"]),
        (["data.transforms=${stage.lr}"], ["must be a list", "data.transforms=[NAME, …]"]),
    ],
)
def test_what_is_refused_before_anything_is_read(words, texts):
    with pytest.raises(ConfigError) as caught:
        configured(*words)
    for text in texts:
        assert text in str(caught.value)


# 4. Transforms, and what they may not do.

STRANGER = """
    from dataclasses import dataclass
    from core.api import Transformed, TransformConfig, TransformSpec, hookimpl

    @dataclass
    class Config(TransformConfig):
        word: str = "Answer"

    def keep(config):
        return lambda record: "" if config.word in record.completion else f"no word: {config.word}"

    def apply(config):
        def work(records, context):
            BODY
        return work

    @hookimpl
    def register_record_transforms():
        return [
            TransformSpec("has_word", Config, __name__ + ":keep", "filter", "VERSION", "keeps a word"),
            TransformSpec("theirs", Config, __name__ + ":apply", "KIND", "1"),
        ]
"""


def stranger(make_distribution, body: str = "return Transformed(list(records))", kind: str = "check") -> None:
    source = STRANGER.replace("BODY", body).replace("KIND", kind).replace("VERSION", "1")
    make_distribution("stranger", source, distribution="stranger-sets", version="0.4")


def built(path: Path, *words: str):
    cfg, registry, _ = typed_config(["stage=sft", f"data.path={path}", *words])
    return dataset_for(cfg, "sft", registry)


def test_a_transform_of_a_stranger(tmp_path, make_distribution):
    stranger(make_distribution)
    path = write(
        tmp_path / "rows.jsonl", [*rows("x", 30), *({"prompt": f"P{n}", "completion": "No."} for n in range(10))]
    )
    assert {"has_word", "theirs"} <= Registry.load().transforms.keys()
    data = built(path, "data.transforms=[has_word, theirs]", "data.heldout_frac=0.3")
    assert all("Answer" in one.completion for one in [*data.train, *data.heldout])
    report, second = data.info.transforms
    assert (report.dropped + report.heldout_dropped, report.reasons) == (10, {"no word": report.dropped})
    assert report.examples[0].file == "rows.jsonl" and report.examples[0].reason == "no word: Answer"
    assert report.owner == "stranger-sets 0.4" and report.before == report.kept + report.dropped
    assert (second.kept, second.dropped, second.added) == (len(data.train), 0, 0)
    assert data.info.train.records == len(data.train)


@pytest.mark.parametrize(
    ("kind", "body", "text"),
    [
        ("check", "return list(records)", "returned list"),
        ("check", "return Transformed(list(records)[1:])", "lost count"),
        ("dedup", "return Transformed(list(records), added=list(records)[:1])", "adds records"),
        ("augment", "return Transformed(list(records)[1:], [(records[0], 'why')])", "drops records"),
        (
            "check",
            "import dataclasses; return Transformed([dataclasses.replace(r) for r in records])",
            "changed records",
        ),
        ("check", "1 / 0", "failed: ZeroDivisionError"),
    ],
)
def test_a_transform_that_breaks_its_contract_is_named(tmp_path, make_distribution, kind, body, text):
    stranger(make_distribution, body, kind)
    with pytest.raises(PluginError, match=text) as caught:
        built(write(tmp_path / "rows.jsonl", rows("x", 9)), "data.transforms=[theirs]")
    assert "'theirs'" in caught.value.what and "stranger-sets 0.4" in caught.value.what


def test_a_wrong_kind_costs_a_warning(make_distribution):
    stranger(make_distribution, kind="magic")
    registry = Registry.load()
    assert "theirs" not in registry.transforms and any("kind is 'magic'" in line for line in registry.warnings)


def test_filters_judge_drawn_heldout_records_and_not_those_that_the_user_brings(tmp_path, make_distribution):
    stranger(make_distribution)
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "sft.jsonl", rows("x", 9))
    write(folder / "heldout.jsonl", [{"prompt": "Own", "completion": "No."}])
    data = built(folder, "data.transforms=[has_word]")
    assert [one.completion for one in data.heldout] == ["No."] and len(data.heldout_prompts) == 1


def test_no_added_record_has_a_heldout_prompt(tmp_path, make_distribution):
    body = "return Transformed(list(records), added=[*context.heldout, *records])"
    stranger(make_distribution, body, "augment")
    data = built(write(tmp_path / "rows.jsonl", rows("x", 40)), "data.transforms=[theirs]")
    assert data.info.transforms[0].added == data.info.transforms[0].kept == len(data.train) / 2
    assert not {one.prompt_key for one in data.train} & {one.prompt_key for one in data.heldout}


def test_what_a_check_drops_is_set_aside_with_its_line(tmp_path, make_distribution):
    stranger(make_distribution, "return Transformed(records[1:], [(records[0], 'seen: in the test')])")
    data = built(write(tmp_path / "rows.jsonl", rows("x", 9)), "data.transforms=[theirs]", "data.heldout_frac=0")
    [row] = data.set_aside
    assert (row.file, row.line, row.reason) == ("rows.jsonl", 1, "seen: in the test")
    assert data.quarantined == [] and data.info.quarantined == 0


def test_a_set_with_nothing_left_is_refused(tmp_path):
    path = write(tmp_path / "rows.jsonl", rows("x", 9))
    with pytest.raises(DataError, match="leaves no training record") as caught:
        built(path, "data.transforms=[{name: length, min_chars: 999}]")
    assert "rows.jsonl:" in caught.value.where


def test_transforms_are_done_before_the_mixture_is_drawn(tmp_path, files, make_distribution):
    stranger(make_distribution)
    write(files["b"], [*rows("b", 20), *({"prompt": f"P{n}", "completion": "No."} for n in range(80))])
    cfg, registry, _ = typed_config(
        ["stage=sft", *(f"data.mixture.{name}.path={path}" for name, path in files.items()),
         "data.transforms=[has_word]", "data.heldout_frac=0"]
    )  # fmt: skip
    sources = dataset_for(cfg, "sft", registry).info.mixture
    assert (sources["a"].available, sources["b"].available) == (40, 20)


# 5. The key.


def key_of(*words: str, version: str = "") -> str:
    cfg, registry, _ = typed_config(["stage=sft", "reuse=false", *words])
    if version:
        entry = registry.transforms["has_word"]
        registry.transforms["has_word"] = replace(entry, spec=replace(entry.spec, version=version))
    return make_plan(cfg, registry).target.key


def test_the_key_knows_transforms_and_their_versions(tmp_path, lab, make_distribution):
    stranger(make_distribution)
    path = write(tmp_path / "rows.jsonl", rows("x", 30))
    common = ["model=custom", f"model.source={lab.model}", f"data.path={path}"]
    plain, with_one = key_of(*common), key_of(*common, "data.transforms=[has_word]")
    assert plain != with_one == key_of(*common, "data.transforms=[{name: has_word}]")
    assert with_one != key_of(*common, "data.transforms=[{name: has_word, word: Ans}]")
    assert with_one == key_of(*common, "data.transforms=[has_word]", version="1")
    assert with_one != key_of(*common, "data.transforms=[has_word]", version="2")


def test_the_key_does_not_know_where_a_mixture_lies(tmp_path, lab, files):
    common = ["model=custom", f"model.source={lab.model}"]
    moved = {name: tmp_path / f"moved_{name}.jsonl" for name in files}
    for name, path in files.items():
        moved[name].write_bytes(path.read_bytes())
    keys = [key_of(*common, *(f"data.mixture.{name}.path={path}" for name, path in some.items()))
            for some in (files, moved)]  # fmt: skip
    assert keys[0] == keys[1]
    assert keys[0] != key_of(*common, *(f"data.mixture.{name}.path={path}" for name, path in files.items()),
                             "data.mix_rate_max=20")  # fmt: skip


# 6. A whole run.


def test_a_run_tells_what_its_set_was_made_of(tmp_path, lab, tiny_cli, make_distribution):
    stranger(make_distribution, "return Transformed(records[1:], [(records[0], 'seen: in the test')])")
    words = [word for word in lab.sft(tmp_path / "runs", "stage.max_steps=1") if not word.startswith("data.path")]
    outcome = tiny_cli(
        [*words, "stage.save_every_steps=0", f"data.mixture.pairs.path={lab.data / 'preference.jsonl'}",
         f"data.mixture.few.path={lab.data / 'heldout.jsonl'}", "data.mixture.few.cap=2",
         "data.transforms=[{name: length, min_chars: 3}, theirs]"]
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    for text in ("few: 2 drawn of 2", "length: ", "theirs: ", "seen 1"):
        assert text in outcome.out
    [folder] = [path.parent for path in (tmp_path / "runs").rglob("result.json")]
    result = json.loads((folder / "result.json").read_text())
    assert {"filters", "stranger"} <= result["time_by_plugin"].keys()
    data = result["data"]
    assert data["sources"]["few"] == 2 and data["records"] == sum(data["sources"].values())
    assert [step["name"] for step in data["transforms"]] == ["length", "theirs"]
    [row] = map(json.loads, (folder / "quarantine.jsonl").read_text().splitlines())
    assert row["reason"] == "seen: in the test" and row["file"].startswith(("pairs/", "few/"))
    plan = json.loads((folder / "plan.json").read_text())["data"]
    assert plan["mixture"]["few"]["weight"] > 0 and plan["transforms"][1]["owner"] == "stranger-sets 0.4"
    for name in ("report.html", "report.md"):
        text = (folder / name).read_text()
        assert "Set building" in text and "seen: in the test" in text
