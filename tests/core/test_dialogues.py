"""Which tokens of a dialogue are trained, by decoding them: eight families of chat templates and more."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, normalizers, pre_tokenizers

from core.data.records import Message, Record
from core.errors import DataError, ModelError
from core.testing.tiny import CHAT_TEMPLATE, tiny_tokenizer
from core.tokens import pieces
from core.tokens.codec import TEMPLATE_TEXT, ChatCodec, Dialogue, check_embedding
from core.tokens.encoding import ExampleMaker, fault
from core.tokens.examples import Demonstration, check_trained
from core.tokens.supervision import Supervision, TooLong, TrainOn
from core.tokens.templates import training_twin

TEMPLATES = Path(importlib.util.find_spec("trl").origin).parent / "chat_templates"
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
ENDS = {
    "cohere": "<|END_OF_TURN_TOKEN|>", "gemma": "<end_of_turn>", "gemma3": "<end_of_turn>", "llama3": "<|eot_id|>",
    "llama3_1": "<|eot_id|>", "phi3": "<|end|>", "lfm2": "<|im_end|>", "qwen2_5": "<|im_end|>",
    "qwen3": "<|im_end|>", "qwen3_instruct_2507": "<|im_end|>", "gptoss": "<|return|>", "qwen3_5_think": "<|im_end|>",
    "deepseek_r1_distill": "<｜end▁of▁sentence｜>", "cohere2": "<|END_OF_TURN_TOKEN|>",
}  # fmt: skip
LEADS = {
    "qwen3": EMPTY_THOUGHT, "gptoss": "<|channel|>final<|message|>", "qwen3_5_think": "\n</think>\n\n",
    "deepseek_r1_distill": "\n</think>\n\n",
}  # fmt: skip
TRAILS = {"cohere2": "<|END_RESPONSE|>"}
CALL = '{"name": "get_weather", "arguments": {"city": "Oslo"}}'
TOOL = json.dumps(
    {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
)
CALLS = {
    "qwen2_5": f"<tool_call>\n{CALL}\n</tool_call>",
    "qwen3": f"{EMPTY_THOUGHT}<tool_call>\n{CALL}\n</tool_call>",
    "llama3_1": '{"name": "get_weather", "parameters": {"city": "Oslo"}}',
    "qwen3_5_think": "\n</think>\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n"
    "</function>\n</tool_call>",
    # These drop tool calls in silence, so they stand as text.
    **{
        name: f"{LEADS.get(name, '')}<tool_call>\n{CALL}\n</tool_call>{TRAILS.get(name, '')}"
        for name in ("cohere", "cohere2", "gemma", "gemma3", "llama3", "phi3", "lfm2", "deepseek_r1_distill")
    },
}


def codec_for(name: str) -> ChatCodec:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": [ENDS[name]]})
    tokenizer.eos_token = ENDS[name]
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return ChatCodec(tokenizer, 4096)


@pytest.fixture(scope="module", params=sorted(ENDS))
def named(request: pytest.FixtureRequest) -> tuple[str, ChatCodec]:
    return request.param, codec_for(request.param)


def trained(codec: ChatCodec, turns: list[Message], tools: tuple[str, ...] = ()) -> list[str]:
    """Decoded tokens of each assistant turn."""
    marked = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
    texts = []
    for layout, dialogue in zip(made := codec.lay_out(turns, tools, marked), codec.encode(made), strict=True):
        assert codec.tokenizer.decode(dialogue.ids) == layout.text
        for _, _, turn in layout.spans:
            own = [token for token, owner in zip(*dialogue, strict=True) if owner == turn]
            assert own[-1] == codec.eos and own.count(codec.eos) == 1
            texts.append(codec.tokenizer.decode(own))
    return texts


def expected(name: str, answers: list[str]) -> list[str]:
    return [f"{LEADS.get(name, '')}{answer}{TRAILS.get(name, '')}{ENDS[name]}" for answer in answers]


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_trained_tokens_are_the_answers_and_their_ends(named, rounds, system):
    name, codec = named
    answers = ["two", "three\nand four", "☕ red, blue."][:rounds]
    turns = [Message("system", "Be short.")] if system else []
    for index, answer in enumerate(answers):
        turns += [Message("user", f"Question {index}"), Message("assistant", answer)]
    assert trained(codec, turns) == expected(name, answers)
    assert trained(codec, turns)[-1] == codec.tokenizer.decode(codec.completions(answers[-1:])[0])


@pytest.mark.parametrize("name", sorted(CALLS))
def test_tool_calls_are_trained_and_results_are_not(name):
    codec = codec_for(name)
    turns = [
        Message("system", "Be short."), Message("user", "Weather in Oslo?"), Message("assistant", "", calls=(CALL,)),
        Message("tool", "12 degrees"), Message("assistant", "It is 12."),
    ]  # fmt: skip
    call, answer = trained(codec, turns, (TOOL,))
    assert call == CALLS[name] + ENDS[name]
    assert answer == expected(name, ["It is 12."])[0]
    text = codec.layout.prompt(turns[:4], (TOOL,))
    assert "12 degrees" in text and "Weather of a city" in text and "Be short." in text


def test_prompts_are_the_beginning_of_the_dialogue(named):
    _, codec = named
    turns = [Message("user", "Question"), Message("assistant", "two")]
    (dialogue,) = codec.encode(codec.lay_out(turns, (), [1]))
    prompt = codec.prompts([turns[:1]])[0]
    assert dialogue.ids[: len(prompt)] == prompt
    assert dialogue.ids[len(prompt) :] == codec.completions(["two"])[0]
    assert set(dialogue.owners[: len(prompt)]) == {TEMPLATE_TEXT}


def test_reasoning_is_trained_where_it_was_written():
    turns = [Message("user", "q"), Message("assistant", "two", reasoning="hm"), Message("user", "r"),
             Message("assistant", "three")]  # fmt: skip
    assert trained(codec_for("qwen3"), turns) == [
        "<think>\nhm\n</think>\n\ntwo<|im_end|>", f"{EMPTY_THOUGHT}three<|im_end|>"
    ]  # fmt: skip
    assert trained(codec_for("llama3"), turns)[0] == "<think>\nhm\n</think>\n\ntwo<|eot_id|>"
    assert trained(codec_for("deepseek_r1_distill"), turns)[0] == "hm\n</think>\n\ntwo<｜end▁of▁sentence｜>"


def test_a_template_that_forgets_thoughts_has_its_twin_or_is_unrolled():
    turns = [Message("user", "q"), Message("assistant", "two"), Message("user", "r"), Message("assistant", "three")]
    assert training_twin((TEMPLATES / "qwen3.jinja").read_text()) == (TEMPLATES / "qwen3_training.jinja").read_text()
    assert len(codec_for("qwen3").lay_out(turns, (), [1, 3])) == 1
    apart = codec_for("qwen3")
    apart.layout.twin = None
    first, second = apart.lay_out(turns, (), [1, 3])
    assert second.text.startswith(apart.layout.prompt(turns[:3]))  # as generation sees it: without the first thought
    assert EMPTY_THOUGHT in first.text and second.text.count("<think>") == 1
    with pytest.raises(DataError, match="not prefix-preserving"):
        apart.dialogue(turns)


# ---- any dialogue ------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Co")), min_size=1, max_size=20).filter(
    lambda text: bool(text.strip()) and "<" not in text
)
ROUNDS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4)
TINY = ChatCodec(tiny_tokenizer(), 4096)
TRIMMING = codec_for("llama3")


@settings(max_examples=300, deadline=None)
@given(st.none() | TEXT, ROUNDS)
def test_any_dialogue_trains_its_answers(system, rounds):
    turns = [Message("system", system)] if system else []
    for asked, answered in rounds:
        turns += [Message("user", asked), Message("assistant", answered)]
    assert trained(TINY, turns) == [f"{answered}<|im_end|>" for _, answered in rounds]
    assert trained(TRIMMING, turns) == [f"{answered.strip()}<|eot_id|>" for _, answered in rounds]


@settings(max_examples=200, deadline=None)
@given(ROUNDS, st.data())
def test_any_weights_reach_their_tokens_and_no_others(rounds, data):
    turns = []
    for asked, answered in rounds:
        turns += [Message(role, text, data.draw(st.sampled_from([None, 0.0, 0.5, 2.0])))
                  for role, text in (("user", asked), ("assistant", answered))]  # fmt: skip
    run = Maker(TINY)
    record = Record(prompt=tuple(turns[:-1]), completion=turns[-1].content, weight=turns[-1].weight)
    examples = run.make.demonstrations([record], Supervision(TrainOn.assistant))
    weights = [turn.weight if turn.weight is not None else float(turn.role == "assistant") for turn in turns]
    if not any(weight for weight, turn in zip(weights, turns, strict=True) if turn.role == "assistant"):
        assert not examples and len(run.dropped) == 1
        return
    said: dict[float, str] = {}
    for token, weight in zip(examples[0].ids, examples[0].weights, strict=True):
        said.setdefault(weight, "")
        said[weight] += TINY.tokenizer.convert_ids_to_tokens(token)
    last = max(i for i, turn in enumerate(turns) if turn.role == "assistant" and weights[i])
    for weight in (0.5, 1.0, 2.0):
        texts = [turn.content + "<|im_end|>" * (turn.role == "assistant")
                 for i, turn in enumerate(turns[: last + 1]) if weights[i] == weight]  # fmt: skip
        decoded = TINY.tokenizer.backend_tokenizer.decoder.decode([said.get(weight, "")]) if said.get(weight) else ""
        assert decoded == "".join(texts)


# ---- pieces ------------------------------------------------------------------------------------------------------

WORDS = st.lists(st.sampled_from([*"aZ9.'-(\u0301é日\n\t ", " ", " ", "'s", "<|im_end|>", "the"]), max_size=12).map(
    "".join
)


@settings(max_examples=300, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=4), st.sampled_from(["gpt2", *pieces.RULES, "nfc"]))
def test_the_ids_of_a_text_are_those_of_its_pieces(texts, rule):
    tokenizer = RULED[rule]
    made = pieces.PieceTokenizer(tokenizer)
    whole = tokenizer(texts, add_special_tokens=False)["input_ids"]
    many = texts * pieces.FEWEST
    assert (
        made(many) == whole * pieces.FEWEST and made(many[: pieces.FEWEST]) == (whole * pieces.FEWEST)[: pieces.FEWEST]
    )
    assert made._apart and all("".join(pieces.pieces(text)) == text for text in texts)


def ruled(rule: str) -> Any:
    tokenizer = tiny_tokenizer()
    backend = tokenizer.backend_tokenizer
    if rule == "nfc":
        backend.normalizer = normalizers.NFC()
    elif rule != "gpt2":
        backend.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(rule), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)
        ])  # fmt: skip
    return tokenizer


RULED = {rule: ruled(rule) for rule in ("gpt2", *pieces.RULES, "nfc")}


def test_tokenizers_that_join_words_are_not_cut():
    def changed(**parts: Any) -> bool:
        tokenizer = tiny_tokenizer()
        for name, part in parts.items():
            setattr(tokenizer.backend_tokenizer, name, part)
        return pieces.cuts_at_spaces(tokenizer.backend_tokenizer)

    assert changed()
    assert not changed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True))
    assert not changed(pre_tokenizer=pre_tokenizers.ByteLevel(False, use_regex=False))
    assert not changed(pre_tokenizer=pre_tokenizers.Split(Regex(r".+"), "isolated"))
    assert not changed(normalizer=normalizers.Replace(" ", "_"))
    spaced = tiny_tokenizer()
    spaced.add_tokens(["of the"])
    assert not pieces.cuts_at_spaces(spaced.backend_tokenizer)
    # What the rules do not tell is found by the texts that are tokenised both ways.
    wrong = pieces.PieceTokenizer(spaced)
    wrong._may_cut = lambda: True
    texts = ["one of the two"] * pieces.FEWEST
    assert wrong(texts) == spaced(texts, add_special_tokens=False)["input_ids"]


# ---- weights -----------------------------------------------------------------------------------------------------


@dataclass
class Maker:
    """An ExampleMaker, and what it dropped."""

    codec: ChatCodec
    limit: int = 4096
    dropped: list[tuple[Record, str]] = field(default_factory=list)

    @property
    def make(self) -> ExampleMaker:
        return ExampleMaker(self.codec, self.limit, lambda record, reason: self.dropped.append((record, reason)))


TWO_ROUNDS = Record(
    prompt=(Message("system", "Be short."), Message("user", "one"), Message("assistant", "two"), Message("user", "x")),
    completion="three",
    meta={"file": "rows/some.jsonl.gz"},
)


def weighed(supervision: Supervision, record: Record = TWO_ROUNDS) -> dict[float, str]:
    (example,) = Maker(TINY).make.demonstrations([record], supervision)
    kept: dict[float, list[int]] = {}
    for token, weight in zip(example.ids, example.weights, strict=True):
        kept.setdefault(weight, []).append(token)
    return {weight: TINY.tokenizer.decode(tokens) for weight, tokens in kept.items()}


def test_which_turns_are_trained():
    end = "<|im_end|>"
    assert weighed(Supervision())[1.0] == f"three{end}"
    assert weighed(Supervision(TrainOn.assistant))[1.0] == f"two{end}three{end}"
    everything = TINY.tokenizer.decode(TINY.dialogue(TWO_ROUNDS.turns()).ids)
    assert weighed(Supervision(TrainOn.all)) == {0.0: "<|im_start|>", 1.0: everything.removeprefix("<|im_start|>")}
    by_role = weighed(Supervision(TrainOn.assistant, {"user": 0.25, "assistant": 2.0}))
    assert by_role[2.0] == f"two{end}three{end}" and by_role[0.25] == "onex"
    assert weighed(Supervision(TrainOn.last, {"assistant": 2.0}))[2.0] == f"three{end}"


def test_the_weight_of_a_message_wins():
    prompt = list(TWO_ROUNDS.prompt)
    prompt[2] = prompt[2]._replace(weight=0.5)
    record = Record(prompt=tuple(prompt), completion="three", weight=3.0)
    kept = weighed(Supervision(TrainOn.last, {"assistant": 2.0}), record)
    assert (kept[0.5], kept[3.0]) == ("two<|im_end|>", "three<|im_end|>")
    kept = weighed(Supervision(TrainOn.all), Record(prompt=tuple(prompt), completion="three", weight=0.0))
    assert kept[0.0] == "<|im_start|>three<|im_end|>" and kept[0.5] == "two<|im_end|>"


def test_examples_know_their_source():
    (example,) = Maker(TINY).make.demonstrations([TWO_ROUNDS])
    assert example.source == "some"


# ---- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (Record(prompt=(Message("user", "a"),), completion="b<|im_end|>c"), "holds the end-of-turn token '<|im_end|>'"),
        (Record(prompt=(Message("user", "a"),), completion="b<|endoftext|>"), "padding token '<|endoftext|>'"),
        (Record(prompt=(Message("user", "a"),), completion="b", weight=0.0), "no assistant turn has a weight"),
        (Record(prompt=(Message("user", "a"),), completion="b " * 5000), "more than model.max_length=4096"),
    ],
)
def test_rows_that_go_to_quarantine(record, reason):
    run = Maker(TINY)
    assert run.make.demonstrations([record, TWO_ROUNDS])[0].source == "some"
    assert len(run.dropped) == 1 and reason in run.dropped[0][1]
    assert run.dropped[0][0] is record


def test_a_row_that_the_template_refuses_goes_to_quarantine():
    run = Maker(codec_for("gemma"))
    twice = Record(prompt=(Message("user", "a"), Message("user", "b")), completion="c")
    assert len(run.make.demonstrations([twice, Record(prompt=(Message("user", "a"),), completion="b")])) == 1
    assert "must alternate" in run.dropped[0][1]
    assert not run.make.pairs([Record(prompt=twice.prompt, chosen="a", rejected="b")])


OPENED = (Message("assistant", "Welcome here."), Message("user", "Go"))
REFUSE_AN_OPENING = {"gemma", "gemma3", "cohere", "cohere2"}
"""Families whose templates take no dialogue that the assistant opens."""


@pytest.mark.parametrize("train_on", [TrainOn.last, TrainOn.assistant])
@pytest.mark.parametrize("system", [False, True])
def test_a_dialogue_that_the_assistant_opens_trains_or_goes_to_quarantine(named, train_on, system):
    name, codec = named
    run = Maker(codec)
    prompt = (*([Message("system", "Be kind.")] if system else []), *OPENED)
    made = run.make.demonstrations([Record(prompt=prompt, completion="Gone.")], Supervision(train_on))
    run.make.pairs([Record(prompt=prompt, chosen="Gone.", rejected="No.")])
    run.make.prompts([Record(prompt=prompt)], 5)
    if name in REFUSE_AN_OPENING:
        assert not made and all("refuses a dialogue" in reason for _, reason in run.dropped) and len(run.dropped) == 3
        return
    shown = "".join(
        codec.tokenizer.decode([token for token, weight in zip(row.ids, row.weights, strict=True) if weight])
        for row in made
    )
    if not made:
        reasons = {"qwen3_5_think": "No user query", "deepseek_r1_distill": "opens with the assistant"}
        assert train_on is TrainOn.assistant and reasons[name] in run.dropped[0][1]
        return
    answers = ["Gone."] if train_on is TrainOn.last else ["Welcome here.", "Gone."]
    assert all(answer in shown for answer in answers) and shown.count(codec.tokenizer.eos_token) == len(answers)
    assert "Go" not in shown.replace("Gone.", "") and ("Welcome" in shown) == (train_on is TrainOn.assistant)


def test_cutting_instead_of_dropping():
    whole = Maker(TINY).make.demonstrations([TWO_ROUNDS], Supervision(TrainOn.assistant))[0]
    limit = whole.tokens - 3
    run = Maker(TINY, limit)
    (ended,) = run.make.demonstrations([TWO_ROUNDS], Supervision(TrainOn.assistant, too_long=TooLong.cut_end))
    (started,) = run.make.demonstrations([TWO_ROUNDS], Supervision(TrainOn.assistant, too_long=TooLong.cut_start))
    assert (ended.ids, ended.weights) == (whole.ids[:limit], whole.weights[:limit])
    assert (started.ids, started.weights) == (whole.ids[3:], [0.0, *whole.weights[4:]])
    run = Maker(TINY, 8)
    assert not run.make.demonstrations([TWO_ROUNDS], Supervision(too_long=TooLong.cut_end))
    assert "cut off" in run.dropped[0][1]


def test_an_end_that_is_never_trained_is_refused():
    run = Maker(TINY, 22)
    long = Record(prompt=(Message("user", "a"),), completion="one two three " * 9)
    examples = run.make.demonstrations([long], Supervision(too_long=TooLong.cut_end))
    assert examples and examples[0].trained
    with pytest.raises(DataError, match="end-of-turn token is never trained"):
        check_trained(examples, TINY.eos)
    check_trained(Maker(TINY).make.demonstrations([long]), TINY.eos)


def test_two_bos_tokens_are_found():
    codec = codec_for("llama3")
    bos = codec.tokenizer.bos_token_id
    assert "two BOS" in fault(Demonstration([bos, bos, 5, codec.eos], [0, 0, 1.0, 1.0]), codec)
    assert not fault(Demonstration([bos, 5, codec.eos], [0, 1.0, 1.0]), codec)


def test_tokens_without_a_row_in_the_embedding_are_refused():
    codec = ChatCodec(tiny_tokenizer(), 512, rows=300)
    check_embedding(codec, 299, "here")
    with pytest.raises(ModelError, match="embedding has 300 rows"):
        check_embedding(codec, 300, "here")
    late = next(i for i in range(300, 320))
    text = codec.tokenizer.convert_tokens_to_string([codec.tokenizer.convert_ids_to_tokens(late)])
    with pytest.raises(ModelError, match="embedding has 300 rows"):
        Maker(codec).make.demonstrations([Record(prompt=(Message("user", "a"),), completion=text * 3)])


def test_padding_is_not_the_end():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    codec = ChatCodec(tokenizer, 64)
    assert codec.pad != codec.eos and tokenizer.pad_token_id == codec.pad


def test_presets(tmp_path):
    from core.settings.schema import ModelConfig
    from core.tokens.codec import load_codec

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    bare = load_codec(tmp_path, ModelConfig(source=str(tmp_path)))
    assert "no chat template" in bare.notes[0]
    turns = [Message("user", "a"), Message("assistant", "b")]
    assert bare.tokenizer.decode(bare.dialogue(turns).ids) == TINY.tokenizer.decode(TINY.dialogue(turns).ids)
    assert bare.tokenizer.chat_template.replace("{{ eos_token }}", "<|im_end|>") == CHAT_TEMPLATE.replace(" ", " ")
    alpaca = load_codec(tmp_path, ModelConfig(source=str(tmp_path), chat_template="alpaca"))
    text = alpaca.tokenizer.decode(alpaca.dialogue(turns).ids)
    assert text.startswith("Below is an instruction") and text.endswith(
        "### Instruction:\na\n\n### Response:b<|im_end|>"
    )
    assert isinstance(alpaca.dialogue(turns), Dialogue)
    with pytest.raises(ModelError, match="alpaca"):
        load_codec(tmp_path, ModelConfig(source=str(tmp_path), chat_template="nope"))
