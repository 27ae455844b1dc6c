"""`stage=cft`: what each arm trains on, where the directive stands, and the unit checks of the method."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_domain import WORDS, write_texts
from transformers import AutoModelForCausalLM

from core.config.typed import typed_config
from core.errors import ConfigError
from core.planning.make import make_plan
from core.platform.registry import Registry
from core.platform.switches import MODULES_VARIABLE
from core.results import StageResult
from plugins.cft.adaptive import judged, repeats
from plugins.cft.library import NEGATIVE, STUDY
from plugins.cft.stage import SEPARATOR, chunk_example

ARMS = ("cft", "cft_fixed", "cft_negative", "cpt")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return {"domain": write_texts(tmp_path_factory.mktemp("texts") / "domain.jsonl", WORDS, 30)}


@pytest.fixture
def cft(make_stage, texts):
    def make(*words):
        return make_stage(
            "stage=cft", f"data.path={texts['domain']}", "model.max_length=256", "stage.chunk_tokens=24",
            "stage.directive_tokens=120", "stage.batch_size=8", "stage.max_steps=4", *words,
        )  # fmt: skip

    return make


def drawn(stage, epochs=1):
    """(directive, example) of each passage, pass by pass."""
    cft = stage.stage
    return [
        [(cft.directive(passage.index, epoch), cft.example(passage, epoch)) for passage in stage.data.train]
        for epoch in range(epochs)
    ]


# 1. The library.


def test_ten_categories_of_directives_that_differ():
    texts = [text for group in STUDY.values() for text in group]
    assert len(STUDY) == 10 and all(len(group) == 3 for group in STUDY.values())
    assert len(set(texts)) == 30 and not set(texts) & {text for group in NEGATIVE.values() for text in group}


# 2. Masks.


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=2), st.lists(st.integers(0, 50), max_size=9),
    st.lists(st.integers(0, 50), min_size=1, max_size=9),
)  # fmt: skip
def test_ignored_tokens_are_begin_and_directive(begin, directive, chunk):
    example = chunk_example(begin, directive, chunk)
    assert list(example.ids) == begin + directive + chunk
    assert list(example.weights) == [0.0] * (len(begin) + len(directive)) + [1.0] * len(chunk)


@pytest.mark.parametrize("arm", ARMS)
def test_what_is_trained_decodes_to_the_documents_and_nothing_of_the_directives(cft, texts, arm):
    stage = cft(f"stage.arm={arm}")
    codec = stage.run.codec
    held = {record.text for record in stage.run.plan.dataset.heldout}
    wanted = "".join(
        f"{json.loads(line)['text']}<|im_end|>"
        for line in texts["domain"].read_text().splitlines()
        if json.loads(line)["text"] not in held
    )
    (examples,) = drawn(stage)
    kept = [
        token
        for _, example in examples
        for token, weight in zip(example.ids, example.weights, strict=True)
        if weight == 1
    ]
    assert codec.tokenizer.decode(kept) == wanted
    for directive, example in examples:
        context = [t for t, weight in zip(example.ids, example.weights, strict=True) if weight == 0]
        wanted_context = "<|im_end|>" + (f"{directive}{SEPARATOR}" if directive else "")
        assert codec.tokenizer.decode(context) == wanted_context
        assert (directive is None) == (arm == "cpt")


def test_arms_share_chunks_order_and_target_tokens(cft):
    made = {arm: cft(f"stage.arm={arm}") for arm in ARMS}
    targets = {
        arm: [
            [[t for t, w in zip(example.ids, example.weights, strict=True) if w] for _, example in drawn(stage)[0]],
            [stage.collect(step).metrics["target_tokens"] for step in range(4)],
        ]
        for arm, stage in made.items()
    }
    assert all(target == targets["cpt"] for target in targets.values())
    context = {arm: stage.collect(0).metrics["context_tokens"] for arm, stage in made.items()}
    assert context["cpt"] == 8 and all(context[arm] > 80 for arm in ARMS if arm != "cpt")


def test_directives_are_drawn_anew_each_pass_and_equal_for_equal_seeds(cft):
    first, second = ([text for text, _ in part] for part in drawn(cft(), epochs=2))
    assert first != second and len(set(first)) > 10
    assert first == [text for text, _ in drawn(cft())[0]]
    assert first != [text for text, _ in drawn(cft("runtime.seed=5"))[0]]
    assert len({text for text, _ in drawn(cft("stage.arm=cft_fixed"))[0]}) == 1
    negative = {text for group in NEGATIVE.values() for text in group}
    assert {text for text, _ in drawn(cft("stage.arm=cft_negative"))[0]} <= negative


def test_every_packed_sequence_begins_with_its_own_directive(cft):
    stage = cft("stage.micro_batch_tokens=400")
    (rows,) = stage.collect(0).updates
    assert len(rows) > 1
    texts = {text for group in STUDY.values() for text in group}
    seen = 0
    for row in rows:
        for root, _ in row.packed.leaves:
            context = stage.run.codec.tokenizer.decode(row.packed.input_ids_T[slice(*root)].tolist())
            assert context.removeprefix("<|im_end|>").removesuffix(SEPARATOR) in texts
            seen += 1
    assert seen == 8


def test_end_token_follows_documents_or_every_chunk(cft):
    eos = cft().run.codec.eos
    ends = [passage.chunk[-1] == eos for passage in cft().data.train]
    assert 0 < sum(ends) < len(ends)
    assert all(passage.chunk[-1] == eos for passage in cft("stage.end_every_chunk=true").data.train)


# 3. The loss.


def loss_of(stage, example):
    from plugins.sft.stage import weighted_nll, weighted_rows

    (row,) = weighted_rows([example], 4096)
    with torch.no_grad():
        return weighted_nll(stage.models, row).item()


def test_loss_is_the_mean_over_text_tokens(cft):
    stage = cft()
    (_, example), *_ = drawn(stage)[0]
    model = AutoModelForCausalLM.from_pretrained(stage.models.start.folder)
    ids = torch.tensor([list(example.ids)])
    labels = ids.clone()
    labels[0, [place for place, weight in enumerate(example.weights) if weight == 0]] = -100
    assert (labels == -100).sum() == len(example.ids) - example.trained
    with torch.no_grad():
        assert loss_of(stage, example) == pytest.approx(model(ids, labels=labels).loss.item(), abs=1e-5)


def test_another_directive_changes_the_context_of_the_loss_alone(cft):
    stage = cft()
    passage = stage.data.train[0]
    one, other = (stage.stage.behind(passage.chunk, STUDY[name][0]) for name in ("reflection", "questions"))
    assert one.trained == other.trained
    assert loss_of(stage, one) != pytest.approx(loss_of(stage, other), abs=1e-4)


def test_context_carries_no_gradient_of_its_own(cft):
    """With weight on nothing but the passage, the gradient equals that of a sum over the passage's tokens alone."""
    from plugins.sft.stage import weighted_nll, weighted_rows

    stage = cft("stage.arm=cft_fixed")
    (_, example), *_ = drawn(stage)[0]
    parameters = [parameter for _, parameter in stage.models.policy.trainable()]
    (row,) = weighted_rows([example], 4096)
    ours = torch.autograd.grad(weighted_nll(stage.models, row), parameters)
    model = AutoModelForCausalLM.from_pretrained(stage.models.start.folder)
    ids = torch.tensor([list(example.ids)])
    logprob = torch.log_softmax(model(ids).logits[0, :-1].float(), dim=1).gather(1, ids[0, 1:, None])[:, 0]
    first = example.weights.index(1.0)
    loss = -logprob[first - 1 :].mean()
    theirs = torch.autograd.grad(loss, list(model.parameters()))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=2e-5)


# 4. Whole runs.


@pytest.mark.parametrize("arm", ARMS)
def test_each_arm_learns_and_is_scored_without_directive(cft, texts, arm):
    stage = cft(f"stage.arm={arm}", "stage.lr=1e-2")
    stage.fit()
    first, last = stage.recorder.first.metrics, stage.recorder.last.metrics
    assert last["heldout_perplexity"] < 0.8 * first["heldout_perplexity"]
    section = stage.stage.report_section(StageResult("cft", first=first, last=last))
    assert section.title == "Held-out text" and f"Arm {arm}" in section.html


def test_all_arms_start_from_the_same_score(cft):
    scores = set()
    for arm in ARMS:
        stage = cft(f"stage.arm={arm}")
        scores.add(stage.evaluate().metrics["heldout_loss"])
    assert len(scores) == 1


def test_instruction_records_get_the_directive_in_their_first_user_message(cft, tiny_rows):
    stage = cft(f"data.path={tiny_rows}", "model.max_length=512")
    codec = stage.run.codec
    for (directive, example), passage in zip(drawn(stage)[0], stage.data.train, strict=True):
        said = passage.record.prompt[-1].content
        whole = codec.tokenizer.decode(example.ids)
        assert whole.startswith(f"<|im_start|>user\n{directive}\n\n{said}<|im_end|>")
        kept = [t for t, weight in zip(example.ids, example.weights, strict=True) if weight]
        assert codec.tokenizer.decode(kept) == f"{passage.record.completion}<|im_end|>"
    plain = cft(f"data.path={tiny_rows}", "model.max_length=512", "stage.arm=cpt")
    assert [example.trained for _, example in drawn(plain)[0]] == [example.trained for _, example in drawn(stage)[0]]
    stage.fit()
    assert stage.recorder.last.metrics["heldout_loss"] > 0


# 5. Directives of one's own.


def test_directives_from_a_file(cft, tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("Read slowly.\nRead twice.\n")
    stage = cft(f"stage.directives_path={own}")
    assert {text for text, _ in drawn(stage)[0]} == {"Read slowly.", "Read twice."}
    own.write_text("word " * 200)
    with pytest.raises(ConfigError, match=r"longer than stage\.directive_tokens=120"):
        cft(f"stage.directives_path={own}")


def test_directives_from_a_plugin(cft, tmp_path, monkeypatch):
    (tmp_path / "acme_directives.py").write_text(
        "from core.api import TextSetSpec, hookimpl\n\n@hookimpl\ndef register_text_sets():\n"
        "    return [TextSetSpec('acme', 'directives', {'one': ['Read aloud.']})]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(MODULES_VARIABLE, "acme_directives")
    assert {text for text, _ in drawn(cft("stage.directives=acme"))[0]} == {"Read aloud."}
    with pytest.raises(ConfigError, match="there is no set of directives 'nope'") as caught:
        cft("stage.directives=nope")
    assert "acme" in caught.value.mend and "study" in caught.value.mend


@pytest.mark.parametrize("texts", ["{}", "{'one': []}", "{'one': ['  ']}"])
def test_an_empty_set_of_texts_costs_its_plugin_a_warning(tmp_path, monkeypatch, texts):
    (tmp_path / "acme_empty.py").write_text(
        "from core.api import TextSetSpec, hookimpl\n\n@hookimpl\ndef register_text_sets():\n"
        f"    return [TextSetSpec('acme', 'directives', {texts})]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "acme_empty", raising=False)
    monkeypatch.setenv(MODULES_VARIABLE, "acme_empty")
    registry = Registry.load()
    assert "acme" not in registry.text_sets and any("no text may be empty" in line for line in registry.warnings)


def test_own_directives_are_part_of_the_key(texts, tmp_path):
    own = tmp_path / "own.txt"
    cfg, _, _ = typed_config(["stage=cft", f"data.path={texts['domain']}", f"stage.directives_path={own}"])
    keys = set()
    for text in ("Read slowly.\n", "Read twice.\n"):
        own.write_text(text)
        keys.add(make_plan(cfg, Registry.load()).target.key)
    assert len(keys) == 2


def test_what_cannot_fit_is_refused_before_anything_is_loaded(texts):
    cfg, registry, _ = typed_config(
        ["stage=cft", f"data.path={texts['domain']}", "model.max_length=128", "stage.chunk_tokens=100"]
    )
    with pytest.raises(ConfigError, match=r"over model\.max_length=128"):
        make_plan(cfg, registry)
    with pytest.raises(ConfigError, match="adaptive"):
        typed_config(["stage=cft", "stage.adaptive=true", "stage.arm=cpt"])


# 6. Adaptive directives.


def test_written_directives_are_judged():
    passage = "The valve regulates the flow of blood between the chambers of the heart."
    assert judged(0, "c", "Think of uses. And more.", passage, "").text == "Think of uses."
    assert judged(0, "c", "Think of uses.", passage, "").state == "used"
    assert judged(0, "c", "Note that the flow of blood between chambers matters.", passage, "").state == "repeats"
    assert judged(0, "c", "Remember it is 42, always.", passage, "42").state == "answers"
    assert judged(0, "c", "Remember it is 421, always.", passage, "42").state == "used"
    assert judged(0, "c", "no sentence here", passage, "").state == "empty"
    assert repeats("THE FLOW, of blood between!", passage) and not repeats("the flow of blood", passage)


class StubEngine:
    """Writes three usable directives, one that repeats its passage and one that is none, in turn."""

    def __init__(self, run, passages):
        self.run, self.passages, self.calls = run, passages, 0

    def generate(self, prompts, sampling):
        from core.api import Rollout

        self.calls += 1
        assert len(prompts) == len(self.passages) and sampling.max_new_tokens == 120
        made = []
        for index, prompt in enumerate(prompts):
            words = self.run.codec.text(self.passages[index].chunk)
            text = [f"Look closely, number {index}.", "Ask why.", "Compare.", f"Recall {words}.", "nothing"][index % 5]
            ids = self.run.codec.tokenizer(text)["input_ids"]
            made.append(Rollout(list(prompt), ids, [0.0] * len(ids), True, 0))
        return made


def test_adaptive_directives_belong_to_their_passage_and_never_repeat_it(cft, monkeypatch):
    stage = cft("stage.adaptive=true")
    engine = StubEngine(stage.run, stage.data.train)
    monkeypatch.setattr(stage.run.parts, "evaluation_engine", lambda: engine)
    stage.make_data()
    stage.fit()
    library = {text for group in STUDY.values() for text in group}
    rows = [json.loads(line) for line in (stage.run.folder / "directives.jsonl").read_text().splitlines()]
    assert len(rows) == len(stage.data.train) and {row["category"] for row in rows} <= set(STUDY)
    for index, (text, _) in enumerate(drawn(stage)[0]):
        assert text == rows[index]["text"] if rows[index]["state"] == "used" else text in library
        assert not repeats(text, stage.run.codec.text(stage.data.train[index].chunk))
    assert {row["state"] for row in rows} >= {"used", "empty"}
    # A resumed run reads what was written.
    stage.stage.written = {}
    stage.make_data()
    assert engine.calls == 1 and stage.stage.written


def test_adaptive_directives_through_the_real_engine(cft):
    from core.errors import DataError

    stage = cft("stage.adaptive=true", "stage.max_steps=1")
    with suppress(DataError):  # a random model may write no sentence at all
        stage.make_data()
    rows = [json.loads(line) for line in (stage.run.folder / "directives.jsonl").read_text().splitlines()]
    assert len(rows) == len(stage.data.train)
