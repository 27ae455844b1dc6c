"""SIGTERM, SIGINT and SIGHUP end a process where it is: with a checkpoint, a last line, the usual exit code, no orphan,
and to be resumed to the bit."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from run_kit import (
    FAKES,
    Lab,
    ask_at,
    ask_when,
    assert_same,
    finish,
    kill_at,
    only_folder,
    read_json,
    run_apart,
    run_folders,
)

from core import signals
from core.testing import warm

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def sigint_is_heeded() -> Iterator[None]:
    """For the processes that a test starts. A shell that runs a script starts what it puts into the background with
    SIGINT ignored, and all that is started from there ignores it too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


# ---- a process by itself --------------------------------------------------------------------------------------------


class Child:
    """A small program that obeys; `ready` waits for the line that it prints."""

    def __init__(self, body: str, **more: object) -> None:
        code = "import os, sys, time, signal, subprocess\nfrom core import signals\n" + textwrap.dedent(body)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
        )  # type: ignore[call-overload]

    def ready(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


OBEYING = """
    try:
        with signals.obeyed():
            print("ready", flush=True)
            {0}
    except KeyboardInterrupt as error:
        print(f"{{error}} after {{globals().get('done', 'nothing')}}", flush=True)
        sys.exit(signals.exit_code(error))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_is_raised_where_the_process_is(number: int, code: int) -> None:
    child = Child(OBEYING.format("time.sleep(60)"))
    assert child.ready() == "ready"
    child.ask(number)
    ended, out, err = child.end()
    assert (ended, out) == (code, f"{signal.Signals(number).name} after nothing\n")
    assert "a second signal ends it at once" in err and "Traceback" not in err


def test_a_held_block_ends_first() -> None:
    child = Child(
        OBEYING.format("""
            with signals.held():
                with signals.held():
                    print("within", flush=True)
                    until = time.monotonic() + 0.5
                    while time.monotonic() < until:
                        time.sleep(0.01)
                done = "all of it"
            time.sleep(60)""")
    )
    assert (child.ready(), child.ready()) == ("ready", "within")
    child.ask(signal.SIGTERM)
    assert child.end()[:2] == (143, "SIGTERM after all of it\n")


def test_signals_of_one_moment_are_one() -> None:
    child = Child(
        OBEYING.format("""
            try:
                print("asleep", flush=True)
                time.sleep(60)
            finally:
                time.sleep(0.7)
                done = "the end"
""")
    )
    assert (child.ready(), child.ready()) == ("ready", "asleep")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):  # a terminal, a launcher, the terminal again
        child.ask(number)
        time.sleep(0.05)
    code, out, _ = child.end()
    assert code in (130, 143) and out.endswith("after the end\n")


def test_a_second_signal_ends_it_at_once_with_its_children() -> None:
    """Also where the main thread is busy outside Python and hears of nothing."""
    child = Child(
        OBEYING.format("""
            import ctypes
            with signals.held():
                one = subprocess.Popen(["sleep", "60"], start_new_session=True)
                print(one.pid, flush=True)
                ctypes.CDLL(None).sleep(60) or ctypes.CDLL(None).sleep(60)
                time.sleep(60)""")
    )
    assert child.ready() == "ready"
    grandchild = int(child.ready())
    child.ask(signal.SIGTERM)
    time.sleep(3)
    began = time.monotonic()
    child.ask(signal.SIGTERM)
    assert child.end()[0] == 143 and time.monotonic() - began < 20
    until = time.monotonic() + 5
    while _alive(grandchild):
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_what_was_ignored_stays_ignored(number: int) -> None:
    """SIGHUP under nohup, SIGINT in the background of a script. The others are heeded."""
    child = Child(OBEYING.format("time.sleep(60)"), preexec_fn=lambda: signal.signal(number, signal.SIG_IGN))
    assert child.ready() == "ready"
    child.ask(number)
    time.sleep(0.3)
    assert child.process.poll() is None
    other = signal.SIGHUP if number == signal.SIGTERM else signal.SIGTERM
    child.ask(other)
    assert child.end()[:2] == (128 + other, f"{other.name} after nothing\n")


def test_a_forked_process_does_not_answer_for_its_parent() -> None:
    child = Child(
        OBEYING.format("""
            pid = os.fork()
            if not pid:
                time.sleep(60)
            time.sleep(0.1)
            os.kill(pid, signal.SIGTERM)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), signals.pending())""")
    )
    assert child.ready() == "ready"
    assert child.end()[:2] == (0, f"{-signal.SIGTERM} 0\n")


def test_a_swallowed_signal_is_raised_again_at_the_next_check() -> None:
    child = Child(
        OBEYING.format("""
            try:
                print("asleep", flush=True)
                time.sleep(60)
            except BaseException:
                done = "swallowed"
            signals.check()""")
    )
    assert (child.ready(), child.ready()) == ("ready", "asleep")
    child.ask(signal.SIGTERM)
    assert child.end()[:2] == (143, "SIGTERM after swallowed\n")


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    with signals.obeyed(), signals.obeyed():
        assert signal.getsignal(signal.SIGTERM) is not before[1]
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before
    assert signals.pending() == 0


def _alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


# ---- whole runs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def straight_sft(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of the demonstrations, left alone, evaluated between its steps."""
    folder = tmp_path_factory.mktemp("straight_sft")
    words = lab.sft(folder / "runs", *RARELY)
    assert run_apart(words, folder / "out.txt") == 0, (folder / "out.txt").read_text()
    return only_folder(folder / "runs", "sft")


RARELY = ("stage.save_every_steps=100", "stage.eval_every_steps=2")
"""No checkpoint but those of the last step and of an interruption."""


@pytest.mark.parametrize(
    ("place", "number", "resumed"),
    [("sft:step:3", signal.SIGTERM, 3), ("sft:eval:2", signal.SIGINT, 2), ("sft:eval:5", signal.SIGHUP, 5)],
)
def test_a_run_that_is_asked_to_end_is_resumed_to_the_bit(
    lab: Lab, straight_sft: Path, tmp_path: Path, place: str, number: int, resumed: int
) -> None:
    words = lab.sft(tmp_path / "runs", *RARELY)
    code, text = ask_at(words, place, tmp_path, number)
    assert code == 128 + number, text
    folder = only_folder(tmp_path / "runs", "sft")
    name = f"step-{resumed:08d}"
    assert f"the same command resumes from {name}" in text and "Traceback" not in text
    last = (folder / "log.txt").read_text().splitlines()[-1]
    assert f"interrupted by {signal.Signals(number).name} in phase 'fit'" in last and name in last
    assert run_apart(words, tmp_path / "out.txt") == 0
    assert f"resumed from {name}" in (tmp_path / "out.txt").read_text()
    assert_same(folder, straight_sft)


@pytest.fixture
def own_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages with loops of their own."""
    monkeypatch.syspath_prepend(str(FAKES))
    monkeypatch.setenv("PREFTUNE_PLUGINS", "own_loop")


def own_words(lab: Lab, stage: str, runs: Path) -> list[str]:
    return [f"stage={stage}", *lab.common(runs), "stage.max_steps=5", "stage.save_every_steps=100", "stage.lr=0.01"]


@pytest.mark.slow
@pytest.mark.parametrize("kill", [True, False])
def test_a_loop_of_the_stages_own_is_resumed_to_the_bit(lab: Lab, tmp_path: Path, own_loop: None, kill: bool) -> None:
    words = own_words(lab, "ownloop", tmp_path / "runs")
    if kill:
        words.append("stage.save_every_steps=2")
        kill_at(words, "ownloop:step:3", tmp_path)
    else:
        code, text = ask_at(words, "ownloop:step:3", tmp_path)
        assert code == 143 and "the same command resumes from step-00000003" in text, text
    assert run_apart(words, tmp_path / "out.txt") == 0, (tmp_path / "out.txt").read_text()
    assert f"resumed from step-0000000{2 if kill else 3}" in (tmp_path / "out.txt").read_text()
    assert run_apart(own_words(lab, "ownloop", tmp_path / "straight"), tmp_path / "more.txt") == 0
    folder = only_folder(tmp_path / "runs", "ownloop")
    assert_same(folder, only_folder(tmp_path / "straight", "ownloop"))
    assert read_json(folder / "result.json")["resumed_at"] == [2 if kill else 3]


@pytest.mark.slow
def test_a_loop_that_keeps_nothing_says_that_it_starts_anew(lab: Lab, tmp_path: Path, own_loop: None) -> None:
    words = own_words(lab, "forgetful", tmp_path / "runs")
    code, text = ask_at(words, "forgetful:step:3", tmp_path)
    assert code == 143 and "the same command begins again, for there is no checkpoint" in text, text
    assert run_apart(words, tmp_path / "out.txt") == 0
    assert "was begun and holds no checkpoint, so the stage starts anew" in (tmp_path / "out.txt").read_text()


@pytest.mark.slow
def test_the_main_process_of_a_chain_passes_it_on(lab: Lab, tmp_path: Path) -> None:
    """The stage that runs in a process of its own leaves a checkpoint; nothing is left running."""
    words = lab.rlhf(tmp_path / "runs", "dpo")
    code, text = ask_at(words, "sft:step:2", tmp_path)
    assert code == 143 and "the same command resumes from step-00000002" in text, text
    assert text.count("interrupted by SIGTERM") == 1 and "Traceback" not in text
    assert run_apart(words, tmp_path / "out.txt") == 0
    assert "resumed from step-00000002" in (tmp_path / "out.txt").read_text()


def _lead_a_group(words: list[str], output: Path) -> None:
    os.setsid()
    with output.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from core.__main__ import main

    sys.exit(main(words))


@pytest.mark.slow
def test_the_command_in_a_process_group(lab: Lab, tmp_path: Path) -> None:
    """As a terminal sends Ctrl-C: every process of a chain gets it, and the parent's word on top. The stage's process
    is a fresh one, for those of the warm server belong to its group."""
    output = tmp_path / "out.txt"
    process = warm.start(_lead_a_group, lab.rlhf(tmp_path / "runs", "dpo", "upstream.sft.max_steps=400"), output)
    until = time.monotonic() + 240
    while not any('"step": 3,' in path.read_text() for path in (tmp_path / "runs").glob("*/*/metrics.jsonl")):
        assert process.exitcode is None and time.monotonic() < until, output.read_text()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert finish(process) == 130
    text = output.read_text()
    assert "the same command resumes from step-" in text and "Traceback" not in text
    while _group_lives(process.pid):
        assert time.monotonic() < until
        time.sleep(0.05)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


LENGTH = ("reward=length", "reward.target_tokens=4")


WORDS = {
    "sft": ["stage=sft"],
    "instruct": ["stage=instruct"],
    "reward": ["stage=reward", "pipeline.stages=[reward]"],
    "cft": ["stage=cft", "model.max_length=256", "stage.directive_tokens=128"],
    "nlft": ["stage=nlft", "model.max_length=256", "stage.ratio=0.9", "stage.min_prob=0.0001"],
    "s3ft": ["stage=s3ft", "stage.max_new_tokens=6"],
    "dpo": ["stage=rlhf", "algorithm=dpo", "pipeline.stages=[rlhf]"],
    "grpo": ["stage=rlhf", "algorithm=grpo", "pipeline.stages=[rlhf]", *LENGTH, "stage.max_new_tokens=6",
             "stage.group_size=2"],
    "rloo": ["stage=rlhf", "algorithm=rloo", "pipeline.stages=[rlhf]", *LENGTH, "stage.max_new_tokens=6",
             "stage.group_size=2"],
    "ppo": ["stage=rlhf", "algorithm=ppo", "pipeline.stages=[rlhf]", *LENGTH, "stage.max_new_tokens=6",
            "stage.kl_target=0.5", "stage.inner_epochs=2", "stage.minibatches=2"],
}  # fmt: skip
"""Each stage, alone."""


def _rows(runs: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in runs.glob("*/*/metrics.jsonl"))


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "planning": lambda runs: True,
    "loading": lambda runs: any(runs.glob("*/*/log.txt")),
    "making": lambda runs: any(runs.glob(".builds/*/rows.jsonl")) or _rows(runs) > 0,
    "first steps": lambda runs: _rows(runs) > 1,
    "evaluating": lambda runs: _rows(runs) > 4,
    "last steps": lambda runs: _rows(runs) > 6,
    "sealing": lambda runs: any(runs.glob("*/*/.artifact*")) or any(runs.glob("*/*/artifact")),
}
"""What a run has left on the disk when it has come so far."""


@pytest.mark.long
@pytest.mark.parametrize("stage", WORDS)
def test_asked_at_random_moments_every_stage_ends_as_if_left_alone(lab: Lab, tmp_path: Path, stage: str) -> None:
    """Loading, making examples, evaluating, sampling, training, sealing: six moments, two of them of a run that was
    asked before."""

    def words(runs: Path) -> list[str]:
        more = ["stage.max_steps=6", "stage.save_every_steps=100", "stage.eval_every_steps=4"]
        return [*WORDS[stage][:1], *lab.common(runs), *more, *WORDS[stage][1:]]

    assert run_apart(words(tmp_path / "straight"), tmp_path / "out.txt") == 0, (tmp_path / "out.txt").read_text()
    straight = only_folder(tmp_path / "straight", WORDS[stage][0].partition("=")[2])
    draw, asked = random.Random(stage), 0
    for number in range(4):
        runs, output = tmp_path / f"runs-{number}", tmp_path / f"out-{number}.txt"
        for _ in range(2 if number % 2 else 1):
            output.write_text("")  # a process may end before it has opened it
            sent = draw.choice([signal.SIGTERM, signal.SIGINT])
            reached = MOMENTS[draw.choice(list(MOMENTS))]
            code = ask_when(words(runs), partial(reached, runs), draw.uniform(0, 0.15), output, sent)
            text = output.read_text()
            # Without a word: before the command began in its warm process.
            assert code in (0, 128 + sent, -sent) or not text, (code, text)
            assert "Traceback" not in text, text
            asked += code != 0
        assert run_apart(words(runs), output) == 0, output.read_text()
        found = run_folders(runs, straight.name.split("-")[1])
        done = [folder for folder in found if (folder / "result.json").exists()]
        assert len(done) == 1
        assert_same(done[0], straight)
        assert read_json(done[0] / "artifact.json")["verification"]["ok"]
        shutil.rmtree(runs)
    assert asked >= 3
