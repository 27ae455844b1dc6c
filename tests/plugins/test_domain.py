"""`stage=domain`: chunks, replay share, perplexity, and a larger vocabulary up to the reloaded artifact."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.artifacts.artifact import seal
from core.config.typed import typed_config
from core.errors import ConfigError, ModelError
from core.models.packed import pack_texts
from core.planning.make import make_plan
from core.platform.registry import Registry
from core.results import StageResult
from core.testing.tiny import tiny_model, tiny_tokenizer
from core.torch_api import Demonstration
from plugins.domain.stage import mixed
from plugins.domain.vocabulary import learn_pieces
from plugins.shared.texts import chunked, cut

WORDS = "myocardial infarction thrombolysis tumour necrosis factor patients were treated with placebo".split()
GENERAL = "the red number is after the blue number and the green color is the name of one".split()


def write_texts(path: Path, words: list[str], count: int, seed: int = 0) -> Path:
    rng = random.Random(seed)
    with path.open("w") as file:
        for index in range(count):
            text = " ".join(rng.choices(words, k=rng.randint(5, 30))) + f" {index}."
            file.write(json.dumps({"text": text}) + "\n")
    return path


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    return {
        "domain": write_texts(folder / "domain.jsonl", WORDS, 40),
        "replay": write_texts(folder / "replay.jsonl", GENERAL, 40, seed=1),
        "retention": write_texts(folder / "retention.jsonl", GENERAL, 10, seed=2),
    }


@pytest.fixture
def domain(make_stage, texts):
    def make(*words):
        return make_stage(
            "stage=domain", f"data.path={texts['domain']}", "stage.chunk_tokens=24", "stage.batch_size=8", *words,
        )  # fmt: skip

    return make


# 1. Chunks.


@given(st.lists(st.lists(st.integers(0, 99), min_size=2, max_size=40), max_size=6), st.integers(2, 12), st.booleans())
def test_every_token_but_the_first_is_trained_exactly_once(documents, size, join):
    chunks = chunked(documents, size, join)
    assert all(2 <= len(chunk) <= size for chunk in chunks)
    wanted = [list(itertools.chain(*documents))[1:]] if join else [document[1:] for document in documents]
    assert [token for chunk in chunks for token in chunk[1:]] == [token for part in wanted for token in part]
    if not join:
        places = iter(chunks)
        for document in documents:
            rebuilt = document[:1]
            while len(rebuilt) < len(document):
                chunk = next(places)
                assert chunk[0] == rebuilt[-1]
                rebuilt += chunk[1:]
            assert rebuilt == document


def test_overlap_of_one_token_is_context():
    assert cut([1, 2, 3, 4, 5, 6], 3) == [[1, 2, 3], [3, 4, 5], [5, 6]]


def test_trained_tokens_decode_to_the_documents_and_their_ends(domain, texts):
    stage = domain("stage.epochs=1")
    tokenizer = stage.run.codec.tokenizer
    rows = [json.loads(line)["text"] for line in texts["domain"].read_text().splitlines()]
    held = {record.text for record in stage.run.plan.dataset.heldout}
    wanted = sorted(f"{text}<|im_end|>" for text in rows if text not in held)
    # Chunks of one document, joined at their overlap: the weight of every token but the document's first is 1.
    trained = sum(chunk.trained for chunk in stage.data.train)
    assert trained == sum(len(tokenizer(text)["input_ids"]) for text in rows if text not in held)
    assert all(list(chunk.weights) == [0.0] + [1.0] * (len(chunk.ids) - 1) for chunk in stage.data.train)
    whole = [tokenizer.decode(chunk.ids) for chunk in stage.data.train if chunk.ids[-1] == tokenizer.eos_token_id]
    assert len(whole) == len(wanted) and all(any(text.endswith(tail) for text in wanted) for tail in whole)


def test_joined_chunks_are_full(domain):
    stage = domain("stage.join=true", "stage.epochs=1")
    lengths = sorted(len(chunk.ids) for chunk in stage.data.train)
    assert lengths[1] == lengths[-1] == 24
    assert any(stage.run.codec.eos in chunk.ids[1:-1] for chunk in stage.data.train)


def test_another_end_token(domain):
    stage = domain("stage.end_token='<|endoftext|>'", "stage.epochs=1")
    ends = {chunk.ids[-1] for chunk in stage.data.train if len(chunk.ids) < 24}
    assert ends == {stage.run.codec.tokenizer.convert_tokens_to_ids("<|endoftext|>")}
    with pytest.raises(ConfigError, match="no token"):
        domain("stage.end_token=nope")


# 2. Replay.


def chunk_of(size: int, token: int) -> Demonstration:
    return Demonstration([token] * size, [0.0] + [1.0] * (size - 1))


@given(
    st.lists(st.integers(2, 9), min_size=1, max_size=12), st.lists(st.integers(2, 9), min_size=1, max_size=5),
    st.floats(0.05, 0.9), st.integers(0, 99),
)  # fmt: skip
def test_replay_keeps_its_share_at_every_place(ours, theirs, fraction, seed):
    domain_chunks = [chunk_of(size, index) for index, size in enumerate(ours)]
    order, replayed = mixed(domain_chunks, [chunk_of(size, 100) for size in theirs], fraction, None, 2.0, seed)
    counts = {True: 0, False: 0}
    for chunk, flag in zip(order, replayed, strict=True):
        assert flag == (chunk.ids[0] == 100)
        counts[flag] += chunk.trained
        assert abs(counts[True] - fraction * sum(counts.values())) <= 8
    taken = [chunk.ids[0] for chunk, flag in zip(order, replayed, strict=True) if not flag]
    assert len(taken) == 2 * len(ours)
    assert sorted(taken[: len(ours)]) == sorted(taken[len(ours) :]) == list(range(len(ours)))
    assert (order, replayed) == mixed(
        domain_chunks, [chunk_of(size, 100) for size in theirs], fraction, None, 2.0, seed
    )


def test_replay_is_counted_in_the_steps(domain, texts):
    stage = domain(f"stage.replay.path={texts['replay']}", "stage.replay.fraction=0.25", "stage.epochs=2")
    rows = stage.fit()
    assert sum(row["replay_tokens"] for row in rows) / sum(row["target_tokens"] for row in rows) == pytest.approx(
        0.25, abs=0.01
    )
    assert len(rows) == stage.total_steps() == math.ceil(len(stage.data.order) / 8)


def test_max_steps_bound_the_order(domain):
    stage = domain("stage.max_steps=3")
    assert stage.total_steps() == 3 and len(stage.data.order) == 24


# 3. Scores.


def test_perplexities_are_those_of_a_plain_forward_pass(domain, texts):
    stage = domain("stage.epochs=1")
    metrics = stage.evaluate().metrics
    tokenizer, model = stage.run.codec.tokenizer, AutoModelForCausalLM.from_pretrained(stage.models.start.folder)
    total = count = size = 0
    for record in stage.run.plan.dataset.heldout:
        ids = [*tokenizer(record.text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        size += len(record.text.encode())
        for start in range(0, len(ids) - 1, 23):
            part = torch.tensor([ids[start : start + 24]])
            with torch.no_grad():
                total += model(part, labels=part).loss.item() * (part.shape[1] - 1)
            count += part.shape[1] - 1
    assert metrics["heldout_loss"] == pytest.approx(total / count, rel=1e-5)
    assert metrics["heldout_perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
    assert metrics["heldout_bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-5)


def test_training_shows_what_was_learned_in_the_report(domain):
    stage = domain("stage.max_steps=12", "stage.lr=1e-2")
    stage.fit()
    first, last = stage.recorder.first.metrics, stage.recorder.last.metrics
    assert last["heldout_perplexity"] < 0.5 * first["heldout_perplexity"]
    recorder = stage.recorder
    section = stage.stage.report_section(
        StageResult("domain", first=recorder.first.metrics, last=recorder.last.metrics)
    )
    assert section.title == "Held-out text"
    assert f"{last['heldout_perplexity']:.4g}" in section.html and "| bits per byte |" in section.markdown


def test_a_chunk_over_the_context_is_refused(texts):
    cfg, registry, _ = typed_config(
        ["stage=domain", f"data.path={texts['domain']}", "model.max_length=64", "stage.chunk_tokens=65"]
    )
    with pytest.raises(ConfigError, match=r"over model\.max_length=64"):
        make_plan(cfg, registry)


def test_files_beside_the_data_are_in_the_key_and_must_exist(texts, tmp_path):
    replay = tmp_path / "replay.txt"
    arguments = ["stage=domain", f"data.path={texts['domain']}", f"stage.replay.path={replay}"]
    cfg, _, _ = typed_config(arguments)
    with pytest.raises(ConfigError, match="does not exist") as caught:
        make_plan(cfg, Registry.load())
    assert caught.value.where == "stage.replay.path"
    keys = []
    for text in ("one\n", "two\n"):
        replay.write_text(text)
        keys.append(make_plan(cfg, Registry.load()).target.key)
    assert keys[0] != keys[1]


# 4. New tokens.


def test_learned_pieces_join_old_tokens_by_count():
    tokenizer = tiny_tokenizer()
    pieces = learn_pieces(tokenizer, ["necrosis necrosis necrosis tumour"] * 3, 6)
    known = tokenizer.get_vocab()
    assert len(pieces) == 6 and not {piece.text for piece in pieces} & set(known)
    for piece in pieces:
        assert piece.text == piece.left + piece.right
        assert tokenizer.decode(list(piece.ids)).strip() in "necrosis tumour"
        assert "".join(tokenizer.convert_ids_to_tokens(list(piece.ids))) == piece.text


def test_a_tokenizer_of_another_kind_is_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")))
    with pytest.raises(ModelError, match="not BPE"):
        learn_pieces(words, ["a a"], 1)


def test_sentencepiece_like_tokenizers_get_pieces_inside_words():
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    alphabet = [*"▁abcdefghijklmnopqrstuvwxyz"]
    backend.train_from_iterator(["a b"], trainers.BpeTrainer(
        vocab_size=40, special_tokens=["<unk>"], initial_alphabet=alphabet, show_progress=False))  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    pieces = learn_pieces(tokenizer, ["necrosis of tumour"] * 5, 30)
    assert any(piece.text == "▁necrosis" for piece in pieces)
    assert all("▁" not in piece.text[1:] for piece in pieces)


def extended(domain, *words):
    return domain("stage.new_tokens=24", "stage.max_steps=6", "stage.lr=1e-2", *words)


def test_old_text_keeps_its_ids_and_new_text_grows_shorter(domain, texts):
    stage = extended(domain)
    old = AutoTokenizer.from_pretrained(stage.run.cfg.model.source)
    new = AutoTokenizer.from_pretrained(stage.models.start.folder)
    first = len(old)
    assert {token: new.get_vocab()[token] for token in old.get_vocab()} == old.get_vocab()
    assert len(new) == first + 24 == stage.models.policy.config.vocab_size
    for line in texts["retention"].read_text().splitlines():
        text = json.loads(line)["text"]
        ids = new(text)["input_ids"]
        assert max(ids) >= first or ids == old(text)["input_ids"]
    plain = "one two three <|im_end|> éß 漢 four"
    assert new(plain)["input_ids"] == old(plain)["input_ids"]
    text = "myocardial infarction necrosis"
    ids = new(text)["input_ids"]
    assert len(ids) < 0.6 * len(old(text)["input_ids"]) and new.decode(ids) == text
    assert any(token >= first for chunk in stage.data.train for token in chunk.ids)


def test_new_rows_start_as_means_and_old_logits_are_unchanged(domain, tmp_path):
    for kind in ("pieces", "mean"):
        stage = extended(domain, f"stage.new_rows={kind}")
        old = AutoModelForCausalLM.from_pretrained(stage.run.cfg.model.source)
        new = AutoModelForCausalLM.from_pretrained(stage.models.start.folder)
        before, after = old.get_input_embeddings().weight, new.get_input_embeddings().weight
        first = before.shape[0]
        assert torch.equal(after[:first], before)
        assert new.get_output_embeddings().weight is after
        if kind == "mean":
            assert torch.allclose(after[first:], before.mean(dim=0).expand(24, -1), atol=1e-6)
        else:
            tokenizer = AutoTokenizer.from_pretrained(stage.run.cfg.model.source)
            piece = AutoTokenizer.from_pretrained(stage.models.start.folder).convert_ids_to_tokens(first)
            joined = tokenizer.backend_tokenizer.decoder.decode([piece])
            parts = tokenizer(joined)["input_ids"]
            assert torch.allclose(after[first], before[parts].mean(dim=0), atol=1e-6)
        ids = torch.tensor([[5, 9, 11, 30]])
        with torch.no_grad():
            assert torch.allclose(new(ids).logits[..., :first], old(ids).logits, atol=1e-5)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_rows_first_leaves_all_else_bit_identical(domain, dtype):
    stage = extended(domain, "stage.new_rows_steps=6", f"runtime.dtype={dtype}")
    before = stage.weights()
    rows = stage.fit()
    after = stage.weights()
    first = len(AutoTokenizer.from_pretrained(stage.run.cfg.model.source))
    for name, tensor in before.items():
        if "embed_tokens" in name or "lm_head" in name:
            assert torch.equal(after[name][:first], tensor[:first])
            assert not torch.equal(after[name][first:], tensor[first:])
        else:
            assert torch.equal(after[name], tensor), name
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_after_the_first_steps_everything_trains(domain):
    stage = extended(domain, "stage.new_rows_steps=3")
    before = stage.weights()
    stage.fit()
    after = stage.weights()
    assert all(not torch.equal(after[name], tensor) for name, tensor in before.items() if tensor.ndim > 1)


def test_rows_first_resumes_to_the_same_bits(domain):
    straight = extended(domain, "stage.new_rows_steps=3")
    straight.fit()
    stage = extended(domain, "stage.new_rows_steps=3", "stage.save_every_steps=2")
    loop = stage.loop()
    for _ in range(2):
        loop.one_step()
    loop._save()
    again = extended(domain, "stage.new_rows_steps=3")
    (again.run.folder / "checkpoints").symlink_to(stage.run.folder / "checkpoints")
    again.run.plan.state = "resume"
    again.fit()
    for name, tensor in straight.weights().items():
        assert torch.equal(again.weights()[name], tensor), name


def untied(folder: Path) -> Path:
    """A tiny model with a head of its own and more rows than tokens, as padded vocabularies have."""
    tiny_model(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, tie_word_embeddings=False)
    model.resize_token_embeddings(328, mean_resizing=False)
    torch.nn.init.normal_(model.lm_head.weight, std=0.1)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("words", [[], ["peft=lora", "peft.merge=true"]], ids=["full", "lora"])
def test_the_artifact_holds_the_new_rows(domain, tmp_path, monkeypatch, tied, words):
    from core.artifacts.verify import check_artifact

    if not tied:
        words = [*words, f"model.source={untied(tmp_path / 'untied')}"]
    stage = extended(domain, *words)
    monkeypatch.setattr(
        "core.artifacts.artifact.verify_in_fresh_process", lambda job: {"ok": True, "checks": check_artifact(job)}
    )
    stage.fit()
    plan, folder = stage.run.plan, stage.run.folder
    artifact = seal(plan, stage.models, folder, lambda part: stage.stage.export(stage.models, part))
    assert all(check["ok"] for check in artifact["verification"]["checks"]), artifact["verification"]
    folder = stage.run.folder / "artifact"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("myocardial")["input_ids"] == stage.models.codec.tokenizer("myocardial")["input_ids"]
    ids = tokenizer("myocardial infarction")["input_ids"]
    assert max(ids) >= 320
    with torch.no_grad():
        ours = stage.models.policy(pack_texts([ids]))[0]
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged" if words and "peft=lora" in words else folder)
    start = AutoModelForCausalLM.from_pretrained(stage.models.start.folder)
    for end in ("get_input_embeddings", "get_output_embeddings"):
        trained, begun = getattr(merged, end)().weight, getattr(start, end)().weight
        assert not torch.equal(trained[320:344], begun[320:344]), end
        if "peft=lora" in words:
            assert torch.equal(trained[:320], begun[:320]) and torch.equal(trained[344:], begun[344:])
    with torch.no_grad():
        logprobs = torch.log_softmax(merged(torch.tensor([ids])).logits[0, :-1].float(), dim=1)
    theirs = logprobs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    assert torch.allclose(ours, theirs, atol=1e-3)


def test_the_rollout_engine_samples_with_the_new_tokens(domain):
    from core.types import Sampling

    stage = extended(domain)
    engine = stage.run.parts.evaluation_engine()
    ids = stage.models.codec.tokenizer("myocardial infarction")["input_ids"]
    scores = torch.tensor(engine.score([ids])[0])
    with torch.no_grad():
        assert torch.allclose(scores, stage.models.policy(pack_texts([ids]))[0], atol=1e-4)
    (rollout,) = engine.generate([ids], Sampling(max_new_tokens=4, temperature=0.0, seed=1))
    assert len(rollout.completion_ids) == 4
    assert (stage.models.start.plain / "config.json").is_file()
    assert json.loads((stage.models.start.plain / "config.json").read_text())["vocab_size"] == 344


def test_an_adapter_that_cannot_train_rows_is_refused(texts):
    cfg, registry, _ = typed_config(["stage=domain", f"data.path={texts['domain']}", "stage.new_tokens=4", "peft=ia3"])
    with pytest.raises(ConfigError, match="cannot train the rows"):
        make_plan(cfg, registry)


def test_decay_and_rows_first_exclude_each_other(texts):
    with pytest.raises(ConfigError, match="weight_decay"):
        typed_config(["stage=domain", "stage.new_tokens=4", "stage.new_rows_steps=2", "stage.weight_decay=0.1"])
