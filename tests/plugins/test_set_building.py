"""The built-in transforms: filters, de-duplication, contamination check, augmentation."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from core.config.typed import typed_config
from core.data.loading import load_records
from core.data.records import Message, Record
from core.data.transforms import TransformContext, words_of
from core.errors import ConfigError, DataError
from core.planning.named_data import dataset_for
from core.settings.convert import from_plain
from plugins.augment import Operation, Target, WordsConfig
from plugins.augment import words as augment
from plugins.contamination import Action, ContaminationConfig
from plugins.contamination import overlap as contamination
from plugins.dedup import ExactConfig, NearConfig, exact, near
from plugins.filters import LanguageConfig, LengthConfig, QualityConfig, language, rules

DATA = Path(os.environ.get("PREFTUNE_TEST_DATA") or Path(__file__).parents[2].parent / "shared" / "data")
VOCABULARY = [f"word{number}" for number in range(400)]


def record(prompt: str, completion: str | None = "Yes.", line: int = 1, **fields) -> Record:
    asked = (Message("user", prompt),) if prompt else ()
    return Record(**{"prompt": asked, "completion": completion, "meta": {"file": "f.jsonl", "line": line}, **fields})


def context(*heldout: Record, seed: int = 17) -> TransformContext:
    return TransformContext(heldout, seed)


def real(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"{name} is not at hand")
    return DATA / name


# 1. Filters.


def test_length():
    judge = rules.length(LengthConfig(min_chars=5, max_words=4))
    assert judge(record("one two", "three")) == "" and judge(record("one two three", "four five")).startswith(
        "too long"
    )
    assert judge(record("a", "b")) == "too short: 3 characters, min_chars=5"
    assert rules.length(LengthConfig(of="completion", min_chars=3))(record("a long prompt", "b"))


PROSE = (
    "The keeper of the lighthouse climbed the stairs each evening and lit the lamp. Ships that passed in the dark knew "
    "its beam, and their crews would have been lost without it. When the winter storms came, he stayed awake to watch "
    "over the glass, for he had been told that one night of neglect could cost many lives to be saved by nobody else."
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PROSE, ""),
        ("too few words", "number of words"),
        (" ".join(["extraordinarily-hyphenated-compounds"] * 30 + PROSE.split()[:30]), "mean word length"),
        (PROSE + " #" * 8, "hash signs"),
        ("\n".join(f"- {line}" for line in PROSE.split(".") if line.strip()), "bullet lines"),
        ("\n".join(f"{line} ..." for line in PROSE.split(".") if line.strip()), "ellipsis lines"),
        (PROSE + " 12 34 56 78" * 5, "alphabetic words"),
        (
            " ".join(word for word in PROSE.split() if word.lower() not in rules.STOP_WORDS) + " again" * 12,
            "stop words",
        ),
        ("\n".join([PROSE] * 3), "duplicate lines"),
        (PROSE + " buy cheap watches online now" * 12, "most frequent 2 words"),
    ],
)
def test_quality_rules_one_by_one(text, reason):
    assert rules.fault(text, QualityConfig()).partition(":")[0] == reason


def test_language():
    judge = language.build(LanguageConfig(keep=["en", "de"]))
    assert judge(record("Where is the nearest railway station?", "It is behind the church, to the left.")) == ""
    assert judge(record("Wo ist der nächste Bahnhof?", "Er liegt gleich hinter der Kirche auf der linken Seite.")) == ""
    french = record("Où se trouve la gare la plus proche ?", "Elle est derrière l'église, sur votre gauche.")
    assert judge(french).startswith("language fr")
    assert judge(record("Où ?", "Ici.")) == ""  # too short to say
    with pytest.raises(ConfigError, match="no language 'xx'"):
        language.build(LanguageConfig(keep=["xx"]))


def test_words_of_scripts_with_and_without_spaces():
    assert words_of("Don’t STOP, Ｆｕｌｌ-width!") == ["don", "t", "stop", "full", "width"]
    assert words_of("你好 world") == ["你", "好", "world"]


# 2. De-duplication.


def test_exact_duplicates_go_and_the_first_stays():
    rows = [record("Hello, World!", line=1), record("hello   world", line=2), record("Hello", line=3),
            record("held OUT", line=4), record("Hello, World!", "No.", line=5)]  # fmt: skip
    outcome = exact.build(ExactConfig())(rows, context(record("Held out.", line=9)))
    assert [one.meta["line"] for one in outcome.records] == [1, 3, 5]
    assert [reason for _, reason in outcome.dropped] == [
        "equal to an earlier record: f.jsonl, line 1", "equal to a held-out record: f.jsonl, line 9",
    ]  # fmt: skip
    strict = exact.build(ExactConfig(loose=False))(rows, context(record("Held out.")))
    assert len(strict.records) == 5
    assert len(exact.build(ExactConfig(of="prompt"))(rows, context()).records) == 3


def test_records_that_differ_in_label_or_system_message_are_not_equal():
    system = (Message("system", "Be brief."), Message("user", "Hello"))
    rows = [record("Hello", label=True), record("Hello", label=False), Record(prompt=system, completion="Yes.")]
    assert len(exact.build(ExactConfig())(rows, context()).records) == 3


def jaccard(one: Record, other: Record, n: int) -> float:
    sets = [
        set(near.ngrams("\n".join([record.prompt[0].content, record.completion or ""]), n)) for record in (one, other)
    ]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def planted(rng: random.Random, count: int) -> list[tuple[Record, Record]]:
    """Pairs of texts of 120 words; the second has 0 to 12 of them exchanged."""
    pairs = []
    for number in range(count):
        words = rng.choices(VOCABULARY, k=120)
        changed = list(words)
        for place in rng.sample(range(120), rng.randint(0, 12)):
            changed[place] = rng.choice(VOCABULARY)
        pairs.append((record(" ".join(words), line=2 * number), record(" ".join(changed), line=2 * number + 1)))
    return pairs


def test_near_duplicates_are_those_over_the_threshold_and_no_others():
    pairs = planted(random.Random(3), 300)
    outcome = near.build(NearConfig(threshold=0.7))([one for pair in pairs for one in pair], context())
    dropped = {one.meta["line"] for one, _ in outcome.dropped}
    alike = {second.meta["line"] for first, second in pairs if jaccard(first, second, 3) >= 0.7}
    assert 50 < len(alike) < 250
    assert dropped <= alike  # none by mistake: the sets decide
    assert len(dropped) >= 0.98 * len(alike)  # found by MinHash with the probability that it promises


def test_near_duplicates_of_heldout_records_do_not_stay():
    first, second = planted(random.Random(4), 1)[0]
    far = record("something else entirely that nobody has held out", line=7)
    outcome = near.build(NearConfig(threshold=0.5))([second, far], context(first))
    assert outcome.records == [far]
    assert outcome.dropped[0][1].startswith("near to a held-out record: f.jsonl, line 0, Jaccard")
    short = near.build(NearConfig())([record("Hi", "Ho", line=1), record("Hi", "Ho", line=2), record("", "", line=3),
                                      record("", "", line=4)], context())  # fmt: skip
    assert [one.meta["line"] for one in short.records] == [1, 3, 4]  # nothing to compare is no duplicate


@pytest.mark.parametrize(("threshold", "permutations"), [(0.5, 128), (0.8, 128), (0.95, 256), (1.0, 64), (0.1, 100)])
def test_bands_find_pairs_at_the_threshold(threshold, permutations):
    bands = near.bands_for(threshold, permutations)
    rows = permutations // bands
    assert bands * rows == permutations
    assert 1 - (1 - threshold**rows) ** bands >= near.RECALL


# 3. Contamination.

SECRET = "the quick brown fox jumps over the lazy dog while nine purple owls watch in silence"


def test_overlaps_are_found_counted_and_dropped(tmp_path):
    (tmp_path / "eval.jsonl").write_text(
        "\n".join(
            json.dumps({"q": text, "n": {"a": ["short"]}})
            for text in (SECRET, "one two three four five", "clean " * 20)
        )
    )
    rows = [record(f"Well, {SECRET.upper()}!", line=1), record("nothing of it", line=2),
            record("x", "the quick brown fox jumps over the lazy dog while", line=3)]  # fmt: skip
    config = ContaminationConfig(against=[str(tmp_path / "eval.jsonl")])
    outcome = contamination.build(config)(rows, context())
    assert [one.meta["line"] for one in outcome.records] == [2, 3]  # 10 words in a row are not 13
    assert "eval.jsonl, line 1" in outcome.dropped[0][1] and "the quick brown fox" in outcome.dropped[0][1]
    assert outcome.facts["evaluation_items"] == 2 and outcome.facts["evaluation_items_found"] == 1
    assert outcome.facts["by_file"] == {"eval.jsonl": {"items": 2, "found": 1}}
    config.ngram, config.min_words = 9, 5
    assert [one.meta["line"] for one in contamination.build(config)(rows, context()).records] == [2]


def test_a_short_n_gram_needs_no_other_setting(tmp_path):
    (tmp_path / "eval.txt").write_text("one two three four five\nsix seven\n")
    rows = [record("zero one two three four", line=1), record("one two three and six seven", line=2)]
    config = from_plain(ContaminationConfig, {"name": "contamination", "against": [str(tmp_path)], "ngram": 4})
    outcome = contamination.build(config)(rows, context())
    assert [one.meta["line"] for one in outcome.records] == [2]


def test_a_short_evaluation_text_overlaps_as_a_whole(tmp_path):
    (tmp_path / "eval.txt").write_text("how many moons does the planet mars really have\nshort one\n")
    rows = [record("Tell me: how many moons does the planet Mars really have?", line=1), record("short one", line=2)]
    outcome = contamination.build(ContaminationConfig(against=[str(tmp_path)]))(rows, context())
    assert [one.meta["line"] for one in outcome.records] == [2]


def test_warn_and_refuse():
    rows = [record(SECRET, line=1), record("clean", line=2)]
    warned = contamination.build(ContaminationConfig(action=Action.warn))(rows, context(record(SECRET, line=8)))
    assert warned.records == rows and warned.dropped == []
    assert warned.warnings == ["1 training records overlap with 1 of 1 evaluation items"]
    with pytest.raises(DataError, match="1 training records overlap") as caught:
        contamination.build(ContaminationConfig(action=Action.refuse))(rows, context(record(SECRET, line=8)))
    assert "f.jsonl, line 1" in caught.value.where and "line 8" in caught.value.where


def test_columns_bound_what_is_compared(tmp_path):
    (tmp_path / "eval.jsonl").write_text(json.dumps({"text": "other", "note": SECRET}))
    config = ContaminationConfig(against=[str(tmp_path / "eval.jsonl")], columns=["text"], heldout=False)
    assert contamination.build(config)([record(SECRET)], context()).dropped == []


# 4. Augmentation.


@pytest.fixture
def synonyms(tmp_path):
    path = tmp_path / "synonyms.json"
    path.write_text(json.dumps({"big": ["large", "huge"], "house": ["home"]}))
    return str(path)


@pytest.mark.parametrize("seed", range(5))
def test_operations_do_what_they_say(synonyms, seed):
    text = "See the Big house, there are two  of them.\nBy the river."
    words = sorted(text.split())

    def edit(operation: Operation, **settings) -> str:
        config = WordsConfig(operation=operation, synonyms=synonyms, **settings)
        return augment.edited(text, config, augment.read_synonyms(synonyms), random.Random(seed))

    swapped = edit(Operation.swap)
    assert swapped != text and sorted(swapped.split()) == words
    deleted = edit(Operation.delete, rate=0.3).split()
    assert len(deleted) == len(words) - round(0.3 * len(words)) and set(deleted) < set(words)
    masked = edit(Operation.mask, mask="[M]", rate=0.2)
    assert masked.count("[M]") == round(0.2 * len(words)) and "  " in masked and "\n" in masked
    replaced = edit(Operation.synonym)
    assert replaced.replace("Large", "Big").replace("Huge", "Big").replace("home,", "house,") == text != replaced
    inserted = edit(Operation.insert)
    assert len(inserted.split()) == len(words) + 1 and set(inserted.split()) - set(words) <= {"large", "huge", "home"}


def test_nothing_to_edit_is_nothing_added(synonyms):
    config = WordsConfig(operation=Operation.synonym, synonyms=synonyms)
    outcome = augment.build(config)([record("No such word here")], context())
    assert outcome.added == [] and outcome.warnings and outcome.facts["nothing_to_edit"] == 1
    assert augment.edited("one", WordsConfig(operation=Operation.delete), {}, random.Random(0)) == "one"


def test_only_the_users_last_message_is_edited():
    prompt = (Message("system", "Be very kind"), Message("user", "first of all"), Message("assistant", "well then"),
              Message("user", "now something else entirely"))  # fmt: skip
    row = Record(prompt=prompt, completion="The very answer", meta={"file": "f", "line": 3, "source": "s"})
    [new] = augment.build(WordsConfig())([row], context()).added
    assert new.prompt[:3] == prompt[:3] and new.completion == row.completion and new.prompt[3] != prompt[3]
    assert new.meta == {**row.meta, "augmented": "swap"}
    text = record("", None, text="a raw text of words")
    [edited] = augment.build(WordsConfig(of=Target.text))([text], context()).added
    assert sorted((edited.text or "").split()) == sorted("a raw text of words".split())


def test_augmentation_depends_on_seed_and_record_alone():
    rows = [record(f"tell me of the number {number} please", line=number) for number in range(200)]
    work = augment.build(WordsConfig(share=0.5, copies=2))
    once = [one.key for one in work(rows, context()).added]
    assert (
        once
        == [one.key for one in work(rows, context()).added]
        != [one.key for one in work(rows, context(seed=1)).added]
    )
    assert {one.key for one in work(rows[:50], context()).added} <= set(once)
    assert abs(len(once) / 2 - 100) < 3 * (200 * 0.25) ** 0.5


@pytest.mark.parametrize("text", ["not json", "[]", '{"a": "b"}', "{}"])
def test_synonyms_that_cannot_be_used(tmp_path, text):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="synonyms"):
        augment.build(WordsConfig(operation=Operation.synonym, synonyms=str(path)))


# 5. Real data, by the command line's words.


def real_set(*words: str):
    cfg, registry, _ = typed_config(["stage=sft", *words])
    return dataset_for(cfg, "sft", registry)


def test_a_real_mixture_with_transforms():
    alpaca = real("llamafactory_demos/alpaca_en_demo.json")
    chats = real("tinker_conversations/conversations.jsonl")
    data = real_set(
        f"data.mixture.alpaca.path={alpaca}", f"data.mixture.chats.path={chats}", "data.mix_rate_max=300",
        "data.transforms=[{name: length, min_chars: 40}, dedup_exact, {name: contamination}]",
    )  # fmt: skip
    sources, steps = data.info.mixture, data.info.transforms
    assert sources["alpaca"].records == 300 and sources["chats"].passes == 1.0
    assert steps[1].dropped >= 1  # the published file has equal rows
    assert {one.meta["source"] for one in data.heldout_prompts[:2]} == {"alpaca", "chats"}


def test_planted_copies_of_a_real_test_set_are_found(tmp_path):
    tests = load_records([real("ifbench/IFBench_test.jsonl")]).records[:5]
    rows = [{"prompt": f"Please answer this. {one.prompt[0].content}", "completion": "Yes."} for one in tests]
    rows += [{"prompt": f"Is {number} even?", "completion": "Maybe."} for number in range(50)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    item = f"{{name: contamination, against: ['{real('ifbench/IFBench_test.jsonl')}']}}"
    data = real_set(f"data.path={path}", f"data.transforms=[{item}]", "data.heldout_frac=0")
    assert sorted(row.line for row in data.set_aside) == [1, 2, 3, 4, 5] and len(data.train) == 50
