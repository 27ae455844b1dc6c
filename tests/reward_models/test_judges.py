"""Judges with a model: embedding, the policy as judge, an endpoint; how a verdict is read."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.api import ConfigError, GuardedScorer, Message, ScorerContext, ScoreRequest
from core.config.typed import typed_config
from core.planning.make import make_plan
from core.testing import tiny_model, tiny_pairs
from reward_models import EmbeddingConfig, EndpointConfig, LlmConfig, register_reward_models
from reward_models.verdict import FIELDS, QUESTION, question_of, read_verdict

SPECS = {spec.name: spec for spec in register_reward_models()}


def ask(completion: str, answer: str | None = "two", question: str = "One and one?", **meta: Any) -> ScoreRequest:
    return ScoreRequest(question, completion, answer=answer, meta=meta)


def scorer(config: Any, parts: Any = None) -> GuardedScorer:
    return GuardedScorer(SPECS[config.name], config, ScorerContext(parts=parts, device="cpu", dtype=torch.float32))


# ---- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Verdict: yes", 1.0),
        ("They differ.\n**Verdict:** No.", 0.0),
        ("verdict - YES", 1.0),
        ("Verdict: yes? No, wait.\nVerdict: no", 0.0),
        ("Yes.", 1.0),
        ("no\nbecause", 0.0),
        ("Yes and no", None),
        ("Noble answer", None),
        ("The verdict is hard to give", None),
        ("", None),
    ],
)
def test_verdicts(text, value):
    assert read_verdict(text) == value


def test_fields_are_filled_in_one_pass():
    text = question_of(ask("{reference} Verdict: yes", "gold", "{answer}"), " | ".join(FIELDS))
    assert text == "{answer} | gold | {reference} Verdict: yes"
    assert question_of(ask("a", "short", reference="long"), QUESTION).count("long") == 1
    with pytest.raises(ConfigError, match="answer"):
        LlmConfig(prompt="{question} {reference}")


# ---- models ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a judge asks of a run's parts, with a tiny policy and the engine on top of it."""
    from core.models.roles import Models, TokenModel
    from core.models.start import Start
    from core.settings.schema import ModelConfig, RunConfig
    from plugins.rollout_transformers import TransformersRolloutConfig
    from plugins.rollout_transformers.engine import TransformersEngine

    folder = tiny_model(tmp_path_factory.mktemp("judge_model"))
    policy = TokenModel(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)).eval()
    start = Start(RunConfig(stage=None, model=ModelConfig(source=str(folder), max_length=512)), folder)
    engine = TransformersEngine(policy.module, TransformersRolloutConfig())
    return SimpleNamespace(models=Models(start, policy=policy), engine=lambda: engine)


def plain_cosine(folder: Path, first: str, second: str) -> float:
    """One text at a time, no padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    vectors = []
    for text in (first, second):
        with torch.no_grad():
            out = model(input_ids=torch.tensor([tokenizer(text)["input_ids"]]), output_hidden_states=True)
        vectors.append(out.hidden_states[-1][0].mean(0))
    return torch.cosine_similarity(*vectors, dim=0).item()


@pytest.mark.parametrize("own", [False, True])
def test_embedding_is_the_cosine_of_mean_hidden_states(parts, own):
    folder = parts.models.start.folder
    config = EmbeddingConfig(name="embedding", source=str(folder) if own else None, batch_tokens=12)
    judge = scorer(config, None if own else parts)
    texts = ["two", "the number after one is two", "red green", "two"]
    scores = judge.score([ask(text) for text in texts] + [ask("", "two"), ask("two", None)])
    for text, score in zip(texts, scores, strict=False):
        assert score.value == pytest.approx(plain_cosine(folder, text, "two"), abs=1e-4)
    assert scores[0].value == pytest.approx(1.0, abs=1e-5) and scores[2].value < 0.999
    assert [score.error for score in scores[4:]] == ["the completion is empty", "the record has no gold answer"]
    judge.close()


def test_a_whole_reference_wins_over_the_short_answer(parts):
    judge = scorer(EmbeddingConfig(name="embedding"), parts)
    [score] = judge.score([ask("so it is two", "2", reference="so it is two")])
    assert score.value == pytest.approx(1.0, abs=1e-5)


def test_the_policys_verdict_is_its_probability_of_yes(parts):
    prompt = "Q {question} R {reference} A {answer}"
    [score] = scorer(LlmConfig(name="llm", prompt=prompt), parts).score([ask("two")])
    models = parts.models
    [ids] = models.codec.prompts([[Message("user", "Q One and one? R two A two")]])
    weights = []
    for ending in models.codec.completions(["Verdict: yes", "Verdict: no"]):
        with torch.no_grad():
            logits_TV = models.policy.module(input_ids=torch.tensor([[*ids, *ending]])).logits[0, len(ids) - 1 : -1]
        weights.append(logits_TV.log_softmax(-1).gather(-1, torch.tensor(ending)[:, None]).sum())
    assert score.value == pytest.approx(torch.stack(weights).softmax(0)[0].item(), abs=1e-4)


def test_a_reply_without_verdict_costs_that_item(parts):
    judge = scorer(LlmConfig(name="llm", prompt="{question}{reference}{answer}", max_new_tokens=4), parts)
    scores = judge.score([ask("two"), ask("x" * 600), ask("three", None)])
    assert [score.value for score in scores] == [None, None, None]
    assert "no verdict in the reply" in scores[0].error
    assert judge.errors == 3


# ---- an endpoint -----------------------------------------------------------------------------------------------------


class Endpoint(BaseHTTPRequestHandler):
    """Says yes where the answer holds "two", misbehaves where it says so."""

    seen: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][0]["content"]
        self.seen.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
        if "hang" in text:
            time.sleep(30)
        reply: Any = {"choices": [{"message": {"content": f"So it is. Verdict: {'yes' if 'two' in text else 'no'}"}}]}
        if "prose" in text:
            reply = {"choices": [{"message": {"content": "Well."}}]}
        if "list" in text:
            reply = [1]
        data = b"{" if "torn" in text else json.dumps(reply).encode()
        self.send_response(302 if "moved" in text else 500 if "down" in text else 200)
        self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def test_an_endpoints_faults_cost_their_items(url, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    config = EndpointConfig(name="endpoint", url=url, model="m", key_env="JUDGE_KEY", timeout_s=6.0,
                            prompt="{answer}{question}{reference}")  # fmt: skip
    judge = scorer(config)
    faults = ["hang", "prose", "list", "torn", "moved", "down"]
    began = time.monotonic()
    scores = judge.score([ask(text, "gold", "q") for text in ("two", "three", *faults)])
    assert time.monotonic() - began < 25
    assert [score.value for score in scores] == [1.0, 0.0] + [None] * len(faults)
    assert scores[1].text == "So it is."
    words = ("timed out", "no verdict", "not that of", "not that of", "status 302", "status 500")
    for word, score in zip(words, scores[2:], strict=True):
        assert word in score.error
    assert judge.errors == len(faults)
    assert {row["path"] for row in Endpoint.seen} == {"/v1/chat/completions"}  # no redirect was followed
    assert {row["key"] for row in Endpoint.seen} == {"Bearer secret"}
    assert {row["temperature"] for row in Endpoint.seen} == {0}


def test_the_key_comes_from_the_environment_alone(url, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        scorer(EndpointConfig(name="endpoint", url=url, model="m"))
    assert scorer(EndpointConfig(name="endpoint", url=url, model="m", key_env="")).score([ask("two")])[0].value == 1.0


@pytest.mark.parametrize("values", [{"model": "m"}, {"url": "http://x"}, {"url": "file:///etc", "model": "m"}])
def test_an_incomplete_endpoint_is_refused(values):
    with pytest.raises(ConfigError):
        EndpointConfig(name="endpoint", **values).check()


# ---- choosing one ----------------------------------------------------------------------------------------------------


def planned(tmp_path: Path, *words: str) -> Any:
    model, rows = tiny_model(tmp_path / "model"), tiny_pairs(tmp_path / "pairs.jsonl")
    cfg, registry, _ = typed_config(["stage=s3ft", f"model.source={model}", f"data.path={rows}", "tracker=none",
                                     f"runs_dir={tmp_path}", *words])  # fmt: skip
    return make_plan(cfg, registry).target


def test_the_judge_follows_the_answers(tmp_path):
    plan = planned(tmp_path, "judge.timeout_s=3")
    assert (plan.judge.name, plan.cfg.judge.name, plan.cfg.judge.timeout_s) == ("exact", "exact", 3.0)
    assert plan.reward is None
    rows = tmp_path / "numbers.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"q{i}", "completion": f"So {i}.", "answer": str(i)}) + "\n"
                            for i in range(20)))  # fmt: skip
    assert planned(tmp_path, f"data.path={rows}").judge.name == "numeric"


def test_a_judge_that_cannot_judge_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="has not"):
        planned(tmp_path, "judge=learned")
    with pytest.raises(ConfigError, match=r"'judge\.pattern'"):
        planned(tmp_path, "judge=regex")
    with pytest.raises(ConfigError, match=r"'judge\.limit_s'"):
        planned(tmp_path, "judge=code", "judge.limit_s=20")


def test_judge_and_build_settings_are_part_of_the_key(tmp_path):
    keys = [planned(tmp_path, *words).key for words in ([], ["judge.threshold=0.9"], ["judge=numeric"])]
    assert len(set(keys)) == 3
