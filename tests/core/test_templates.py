"""Thought, frame and answer: what is trained and what is scored under every template that trl ships, however data write
the thought; and templates that would hang, or take all memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.data.records import Message, Record
from core.data.turns import to_messages
from core.errors import DataError, ModelError, PreftuneError
from core.settings.schema import ModelConfig
from core.testing import templates
from core.testing.templates import ANSWER, ASKED, THOUGHT, WRITTEN, codec_of, shipped, trained_text
from core.testing.tiny import CHAT_TEMPLATE, tiny_tokenizer
from core.tokens import rendering
from core.tokens.codec import ChatCodec, load_codec
from core.tokens.encoding import ExampleMaker

PLAIN_TEXT_ALONE = {"idefics3", "llava_next", "smolvlm"}
"""Templates that drop a content that is a text."""
NO_THOUGHTS = {"qwen3_5_nothink"}
"""Templates whose opening closes the thought."""
WAYS = [way for way in WRITTEN if way != "none"]


def maker(codec: ChatCodec, dropped: list[str]) -> ExampleMaker:
    return ExampleMaker(codec, 4096, lambda _record, reason: dropped.append(reason))


def said_once(text: str) -> bool:
    """Whether a trained text holds one thought, one answer, in this order, and no mark twice."""
    marks = ("<think>", "</think>", "<|channel>", "<channel|>", "analysis", "final<", "to=self", "to=user")
    return (
        text.count(THOUGHT) == text.count(ANSWER) == 1
        and text.index(THOUGHT) < text.index(ANSWER)
        and all(text.count(mark) <= 1 for mark in marks)
    )


@pytest.mark.parametrize("name", sorted(set(shipped()) - PLAIN_TEXT_ALONE - NO_THOUGHTS))
def test_one_thought_one_answer_one_end(name):
    codec = codec_of(name)
    native = codec.layout.frame.parts
    opening = codec.tokenizer.decode(codec.prompts([[Message("user", ASKED)]])[0])
    canonical = trained_text(codec, WRITTEN["field"])
    for way in WAYS:
        if not native and way not in ("field", "inline"):
            continue  # the text stays as it was written
        turn = WRITTEN[way]
        # As a demonstration.
        trained = trained_text(codec, turn)
        assert trained == canonical, way
        assert said_once(trained) and trained.endswith(codec.layout.eos), way
        assert trained.count(codec.layout.eos) == 1, way
        assert (opening + trained).count("<think>") <= 1 + opening.count("<think>"), way
        # As a side of a pair, where the text alone is to be had.
        if not turn.reasoning:
            other = turn.content.replace(ANSWER, "It is 3.")
            dropped: list[str] = []
            record = Record(prompt=(Message("user", ASKED),), chosen=turn.content, rejected=other)
            (pair,) = maker(codec, dropped).pairs([record])
            assert not dropped and codec.tokenizer.decode(pair.chosen) == canonical, way
            assert codec.tokenizer.decode(pair.rejected) == canonical.replace(ANSWER, "It is 3."), way
    # As a completion that was sampled.
    (ids,) = codec.encode(codec.lay_out([Message("user", ASKED), WRITTEN["field"]], (), [1]))
    drawn = [token for token, owner in zip(*ids, strict=True) if owner == 1]
    said = codec.said(drawn)
    assert (said.thought, said.answer) == (THOUGHT, ANSWER)
    behind = codec.tokenizer.decode(drawn[said.answer_at :], skip_special_tokens=True)
    assert behind.strip().removesuffix("<|END_RESPONSE|>") == ANSWER
    # Cut off inside the thought: nothing is answered.
    cut = codec.said(drawn[: said.answer_at // 2])
    assert not cut.answer and cut.thought and cut.thought[:5] in THOUGHT


@pytest.mark.parametrize("name", sorted(set(shipped()) - PLAIN_TEXT_ALONE))
def test_an_answer_alone_is_the_answer(name):
    codec = codec_of(name)
    trained = trained_text(codec, WRITTEN["none"])
    assert trained.count(ANSWER) == 1 and trained.endswith(codec.layout.eos)
    (ids,) = codec.completions([ANSWER])
    assert codec.tokenizer.decode(ids) == trained
    assert codec.said(ids)[:2] == ("", ANSWER)
    assert codec.said(ids[:-1])[:2] == ("", ANSWER)  # cut off before the end of the turn


@pytest.mark.parametrize("name", sorted(NO_THOUGHTS & set(shipped())))
def test_a_thought_that_a_template_has_no_place_for_is_refused(name):
    codec = codec_of(name)
    for way in WAYS:
        with pytest.raises(DataError, match="has a thought, and the chat template opens turns behind a closed one"):
            trained_text(codec, WRITTEN[way])


@pytest.mark.parametrize("name", sorted(PLAIN_TEXT_ALONE & set(shipped())))
def test_a_template_that_drops_texts_is_refused(name):
    with pytest.raises(PreftuneError, match=r"drops the text of a plain turn|has no attribute 'text'"):
        codec_of(name)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking", "thought"])
@pytest.mark.parametrize("name", ["gptoss", "qwen3", "deepseek_r1_distill", "lfm2_2_5", "gemma4", "llama3"])
def test_a_thought_of_any_name_stands_where_the_family_has_it(name, key):
    codec = codec_of(name)
    (turn,) = to_messages([{"role": "assistant", "content": ANSWER, key: THOUGHT}], "messages")
    assert trained_text(codec, turn) == trained_text(codec, WRITTEN["field"])


def test_a_thought_without_an_answer_is_refused():
    codec = codec_of("qwen3")
    for text in ("<think>\nNo end.", "<think>\nNo answer.\n</think>\n\n"):
        with pytest.raises(DataError, match="is a thought without an answer"):
            trained_text(codec, Message("assistant", text))
        dropped: list[str] = []
        record = Record(prompt=(Message("user", "q"),), chosen=ANSWER, rejected=text)
        assert not maker(codec, dropped).pairs([record])
        assert "the completion is a thought without an answer" in dropped[0]
    # A template without thoughts takes a text as it stands.
    assert trained_text(codec_of("llama3"), Message("assistant", "<think>\nNo end.")) == "<think>\nNo end.<|eot_id|>"


def test_a_text_that_speaks_of_the_mark_is_no_thought():
    text = "Write <think> before a thought and </think> behind it."
    for name in ("qwen3", "llama3", "gptoss"):
        codec = codec_of(name)
        assert codec.said(codec.completions([text])[0])[:2] == ("", text)
        if name != "qwen3":
            assert text in trained_text(codec, Message("assistant", text))
    with pytest.raises(DataError, match="rewrites the text"):  # Qwen 3's template takes it for one
        trained_text(codec_of("qwen3"), Message("assistant", text))


@pytest.mark.parametrize("name", ["qwen3", "deepseek_r1_distill", "gptoss", "glm4moe", "qwen2_5"])
def test_exact_gives_a_right_answer_one(name):
    from core.scoring.guarded import ScorerContext
    from core.tokens.requests import score_request
    from reward_models import ExactConfig, NumericConfig
    from reward_models.numeric import Numeric
    from reward_models.rules import build_exact

    codec = codec_of(name)
    record = Record(prompt=(Message("user", "Is 0 a number?"),), answer="yes")
    exact = build_exact(ExactConfig(name="exact"), ScorerContext())
    maths = Numeric(NumericConfig(name="numeric", symbolic=False))

    def scores(written: str) -> list[float]:
        said = codec.said(codec.tokenise([written])[0])
        request = score_request(record, said)
        numeric = score_request(Record(prompt=record.prompt, answer="4"), said)
        return [scorer.score([one])[0].value for scorer, one in ((exact, request), (maths, numeric))]

    frame = codec.layout.frame
    assert scores(frame.write("", "yes")) == [1.0, 0.0]
    assert scores(frame.write("It is \\boxed{4}, or no.", "yes")) == [1.0, 0.0]
    assert scores(frame.write("It is \\boxed{5}.", "The answer is 4")) == [0.0, 1.0]
    assert scores(frame.write("It is \\boxed{4}. yes", "no").partition("yes")[0]) == [0.0, 0.0]  # cut off


def test_ends_and_padding_in_pairs_are_no_second_end():
    codec = codec_of("qwen3")

    def pair(chosen: str) -> list[str] | str:
        dropped: list[str] = []
        record = Record(prompt=(Message("user", "q"),), chosen=chosen, rejected="no")
        made = maker(codec, dropped).pairs([record])
        return [codec.tokenizer.decode(made[0].chosen)] if made else dropped[0]

    once = ["<think>\n\n</think>\n\nyes<|im_end|>"]
    assert pair("yes") == pair("yes<|im_end|>") == pair("yes<|im_end|>\n") == once
    assert "holds the end-of-turn token '<|im_end|>'" in pair("yes<|im_end|>more")
    assert "padding token '<|endoftext|>'" in pair("yes<|endoftext|>")
    turns = [Message("user", "q"), Message("assistant", "yes<|im_end|>")]
    assert codec.tokenizer.decode(codec.dialogue(turns).ids).count("<|im_end|>") == 2


# ---- where a template puts things ----------------------------------------------------------------------------------

LAST_USER = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
    "{% else %}{% set turns = messages %}{% endif %}{{ bos_token }}{% for message in turns %}"
    "{% if message['role'] == 'user' %}[INST] "
    "{% if loop.last and system is defined %}{{ system + '\\n\\n' }}{% endif %}"
    "{{ message['content'] }}[/INST]{% else %} {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
"""As Mistral's: the system message stands in the last user turn, which only a prompt has."""


def tiny_codec(template: str) -> ChatCodec:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.chat_template = template
    return ChatCodec(tokenizer, 4096)


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_the_system_message_is_trained_where_generation_has_it(rounds):
    codec = tiny_codec(LAST_USER)
    turns = [Message("system", "Be short.")]
    for index in range(rounds):
        turns += [Message("user", f"Question {index}"), Message("assistant", f"answer {index}")]
    marked = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
    for wanted in (marked, marked[-1:]):
        layouts = codec.lay_out(turns, (), wanted)
        assert sorted(turn for layout in layouts for _, _, turn in layout.spans) == wanted
        for layout in layouts:
            for start, end, turn in layout.spans:
                asked = [one.as_dict() for one in turns[:turn]]
                own = codec.tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
                assert layout.text[:start] == own and "Be short.\n\nQuestion" in own
                assert layout.text[start:end] == f" answer {turn // 2 - 1}"


def test_the_end_is_checked_where_the_template_opens_a_thought(tmp_path):
    tokenizer = tiny_tokenizer()
    opens = CHAT_TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    assert opens != CHAT_TEMPLATE
    tokenizer.chat_template = opens
    tokenizer.save_pretrained(tmp_path)
    assert load_codec(tmp_path, ModelConfig(source=str(tmp_path))).layout.frame.opened
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"ends the assistant's turn with '<\|im_end\|>'"):
        load_codec(tmp_path, ModelConfig(source=str(tmp_path)))


# ---- limits --------------------------------------------------------------------------------------------------------

LOOP = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
BAD = {
    "by zero": ("{{ 1 // 0 }}", "ZeroDivisionError"),
    "by zero for a question": ("{{ 1 / (messages[0]['content'] | length - 6) }}", "ZeroDivisionError"),
    "undefined": ("{{ nothing.at.all }}", "undefined"),
    "no such key": ("{{ messages[0]['nothing'].strip() }}", "nothing"),
    "a wide range": ("{% for a in range(10000000000) %}{% endfor %}", "OverflowError"),
    "itself": ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "RecursionError"),
    "torn": ("{% for message in messages %}\n{{ message }", "line 2"),
    "a loop": (LOOP, "takes more than 0.2 s"),
    "a giant string": ("{{ 'a' * 9999999999 }}", "takes more than 1024 MB of memory"),
    "a giant width": ("{{ '%09999999999d' % 1 }}", "takes more than 1024 MB of memory|cannot be rendered"),
    "a doubled string": (
        "{% set s = namespace(x='ab') %}{% for a in range(60) %}{% set s.x = s.x ~ s.x %}{% endfor %}{{ s.x }}",
        "takes more than",
    ),
    "a long text": ("{{ 'a' * 2000000 }}", "makes a text of 2,00"),
    "a power": ("{{ 9 ** 9 ** 9 }}", "raises a number to a power in line 1"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_template_is_a_plain_message_with_its_file(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(rendering, "CPU_S", 0.2)
    monkeypatch.setattr(rendering, "MOST_CHARACTERS", 1 << 20)
    text, said = BAD[kind]
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    file = tmp_path / "mine.jinja"
    file.write_text(text + CHAT_TEMPLATE)
    with pytest.raises(ModelError, match=said) as caught:
        load_codec(tmp_path / "model", ModelConfig(source=str(tmp_path / "model"), chat_template=str(file)))
    assert str(file) in str(caught.value)


def test_a_row_on_which_the_template_hangs_ends_the_run(monkeypatch):
    monkeypatch.setattr(rendering, "CPU_S", 0.2)
    codec = tiny_codec("{% if 'slow' in messages[0]['content'] %}" + LOOP + "{% endif %}" + CHAT_TEMPLATE)
    dropped: list[str] = []
    good = Record(prompt=(Message("user", "quick"),), completion="yes")
    assert maker(codec, dropped).demonstrations([good]) and not dropped
    with pytest.raises(ModelError, match=r"takes more than 0.2 s.*\n.*beginning 'slow'"):
        maker(codec, dropped).demonstrations([Record(prompt=(Message("user", "slow"),), completion="yes")])


def test_a_limit_leaves_nothing_behind():
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(rendering.TemplateLimit):
        rendering.render_bounded(lambda: "a" * (1 << 34))
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_the_page_of_templates_is_current():
    page = Path(__file__).resolve().parents[2] / "docs" / "templates.md"
    assert page.read_text(encoding="utf-8") == templates.page(), "run `make docs`"


def test_requests_survive_the_way_to_a_worker():
    from core.scoring.pool import decode_request, encode_request
    from core.tokens.requests import score_request

    record = Record(prompt=(Message("system", "s"), Message("user", "q")), answer="4", tools=('{"name": "f"}',))
    codec = codec_of("qwen3")
    request = score_request(record, codec.said(codec.completions(["<think>\nhm\n</think>\n\n4"])[0]), (1,), (2, 3))
    assert decode_request(encode_request(7, request)) == (7, request)
    assert request.thought == "hm" and json.dumps(request.messages)
