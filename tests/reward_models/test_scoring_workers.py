"""The guard around scorers: hangs, crashes and faults cost one score each, are counted, and are never zeros."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from bad_scorers import IN_PROCESS, ISOLATED, BadConfig

from core.api import ConfigError, GuardedScorer, PluginError, RewardConfig, RewardSpec, ScorerContext, ScoreRequest
from core.scoring.guarded import checked, involved, summarise
from core.scoring.pool import WorkerPool
from core.settings.convert import from_plain
from core.types import Score

CONTEXT = ScorerContext(specs={"bad": ISOLATED, "bad_here": IN_PROCESS})
ROOT = Path(__file__).parents[2]


def ask(*completions: str) -> list[ScoreRequest]:
    return [ScoreRequest("p", completion) for completion in completions]


@pytest.fixture
def isolated():
    scorer = GuardedScorer(ISOLATED, BadConfig(timeout_s=1.0), CONTEXT)
    yield scorer
    scorer.close()


def pids(scorer: GuardedScorer) -> list[int]:
    return [worker.process.pid for worker in scorer._pool._workers]


def alive(pid: int) -> bool:
    """Running, i.e. neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_values_come_back_in_order(isolated):
    numbers = [str(i) for i in range(500)]
    assert [score.value for score in isolated.score(ask(*numbers))] == [float(i) for i in range(500)]
    assert isolated.errors == 0
    assert isolated.scored == 500
    assert isolated.seconds > 0
    assert isolated.score([]) == []


def test_workers_start_at_the_first_request_and_stay(isolated):
    assert pids(isolated) == []
    isolated.score(ask("1", "2", "3"))
    first = pids(isolated)
    isolated.score(ask("1", "2", "3"))
    assert first and pids(isolated) == first
    assert len(first) <= min(2, os.cpu_count())


def test_one_request_needs_one_worker(isolated):
    isolated.score(ask("1"))
    assert len(pids(isolated)) == 1


def test_a_hang_is_killed_and_costs_one_score(isolated):
    isolated.score(ask("1", "1"))
    start = time.monotonic()
    scores = isolated.score(ask("1", "hang", "2", "3", "4"))
    took = time.monotonic() - start
    assert [score.value for score in scores] == [1.0, None, 2.0, 3.0, 4.0]
    assert scores[1].error == "timed out after 1 s"
    assert 1.0 <= took < 10
    assert isolated.errors == 1


def test_every_request_has_its_own_deadline():
    """Ten requests lie in a worker's pipe at once: 1.5 s together is over the limit, 0.15 s each is not."""
    scorer = GuardedScorer(ISOLATED, BadConfig(timeout_s=1.0), CONTEXT)
    try:
        assert [score.value for score in scorer.score(ask(*["sleep 0.15"] * 80))] == [1.0] * 80
    finally:
        scorer.close()


def test_requests_behind_a_hang_are_not_lost(isolated):
    completions = [str(i) for i in range(300)]
    for index in (0, 150, 299):
        completions[index] = "hang"
    scores = isolated.score(ask(*completions))
    assert [i for i, score in enumerate(scores) if score.error] == [0, 150, 299]
    assert all(score.value == float(i) for i, score in enumerate(scores) if not score.error)
    assert isolated.errors == 3


@pytest.mark.parametrize(
    ("completion", "error"),
    [
        ("exit", "the worker exited with code 3"),
        ("segfault", "the worker was killed by signal 11 (SIGSEGV)"),
        ("sysexit", "SystemExit: 4"),
        ("raise", "ValueError: no such thing"),
        ("nan", "the value is not finite: nan"),
        ("inf", "the value is not finite: inf"),
        ("nanpart", "part 'a' is not finite: nan"),
        ("none", "the scorer returned neither a value nor an error"),
        ("both", "it failed"),
        ("float", "TypeError: the scorer must return Score objects, got float"),
        ("one too many", "ValueError: the scorer returned 2 scores for 1 requests"),
        ("memory", "MemoryError"),
    ],
)
def test_a_fault_is_an_error_and_never_a_zero(isolated, completion, error):
    scores = isolated.score(ask("1", completion, "2"))
    assert [score.value for score in scores] == [1.0, None, 2.0]
    assert scores[1].error == error
    assert isolated.errors == 1
    assert isolated.messages == {error: 1}
    assert [score.value for score in isolated.score(ask("3", "4"))] == [3.0, 4.0]


@pytest.mark.parametrize("completion", ["raise", "nan", "none", "float", "both"])
def test_in_process_faults_cost_one_score(completion):
    scorer = GuardedScorer(IN_PROCESS, BadConfig(), CONTEXT)
    scores = scorer.score(ask("1", completion, "2"))
    assert [score.value for score in scores] == [1.0, None, 2.0]
    assert scores[1].error
    assert scorer.errors == 1


def test_in_process_wrong_count_makes_the_batch_errors():
    scores = GuardedScorer(IN_PROCESS, BadConfig(), CONTEXT).score(ask("1", "one too many"))
    assert [score.error for score in scores] == ["ValueError: the scorer returned 3 scores for 2 requests"] * 2


def test_a_killed_worker_is_replaced(isolated):
    isolated.score(ask("1"))
    [old] = pids(isolated)
    isolated.score(ask("hang"))
    isolated.score(ask("1"))
    [new] = pids(isolated)
    assert new != old
    assert not alive(old)
    assert isolated._pool.started == 2


def test_a_worker_that_died_idle_costs_nothing(isolated):
    isolated.score(ask("1"))
    [old] = pids(isolated)
    os.kill(old, 9)
    assert wait_until(lambda: not alive(old))
    assert [score.value for score in isolated.score(ask("1", "2"))] == [1.0, 2.0]
    assert isolated.errors == 0


def test_close_leaves_no_process(isolated):
    isolated.score(ask(*"123456"))
    workers = pids(isolated)
    isolated.close()
    isolated.close()
    assert workers and not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert isolated.score(ask("5"))[0].value == 5.0


def test_children_of_a_hung_scorer_die_with_it(tmp_path):
    pid_file = tmp_path / "pid"
    scorer = GuardedScorer(ISOLATED, BadConfig(timeout_s=3.0), CONTEXT)
    [score] = scorer.score([ScoreRequest("p", "child", meta={"pid_file": str(pid_file)})])
    assert score.error == "timed out after 3 s"
    assert wait_until(lambda: not alive(int(pid_file.read_text(encoding="ascii"))))


def test_prints_and_reads_do_not_disturb_the_protocol(isolated):
    assert [score.value for score in isolated.score(ask("print", "read", "7"))] == [1.0, 0.0, 7.0]


def test_a_worker_never_imports_torch(isolated):
    assert isolated.score(ask("torch"))[0].value == 0.0


def test_the_whole_request_and_config_travel():
    scorer = GuardedScorer(ISOLATED, BadConfig(ratio=2.5), CONTEXT)
    try:
        odd = 'ab\u2028\n\ud800\x00"ü'
        scores = scorer.score([ScoreRequest(odd, "echo", completion_ids=(1, 2, 3)), *ask("2")])
        assert scores[0] == Score(float(len(odd)), parts={"ids": 6.0})
        assert scores[1].value == 5.0
    finally:
        scorer.close()


def test_a_request_that_is_not_json_is_an_error(isolated):
    scores = isolated.score([ScoreRequest("p", "1", meta={"a": object()}), *ask("2")])
    assert scores[0].value is None and "cannot be sent" in scores[0].error
    assert scores[1].value == 2.0


@pytest.mark.timeout(120)
def test_requests_larger_than_a_pipe_do_not_lock_up(isolated):
    requests = [ScoreRequest("x" * 300_000, str(i)) for i in range(40)]
    assert [score.value for score in isolated.score(requests)] == [float(i) for i in range(40)]


@pytest.mark.parametrize(("build", "text"), [("build_broken", "the build failed"), ("build_dying", "code 7")])
def test_a_scorer_that_cannot_be_built_is_a_plugin_error(build, text):
    spec = RewardSpec("broken", BadConfig, f"bad_scorers:{build}", isolated=True)
    scorer = GuardedScorer(spec, BadConfig(), CONTEXT)
    with pytest.raises(PluginError, match=text):
        scorer.score(ask("1"))
    assert pids(scorer) == []


def test_a_missing_implementation_is_a_plugin_error():
    with pytest.raises(PluginError, match="no_such_module"):
        GuardedScorer(RewardSpec("x", BadConfig, "no_such_module:build"), BadConfig(), CONTEXT)
    with pytest.raises(PluginError, match="nothing"):
        GuardedScorer(RewardSpec("x", BadConfig, "bad_scorers:nothing"), BadConfig(), CONTEXT)


def test_a_local_config_class_is_refused():
    @dataclass
    class Local(RewardConfig):
        pass

    with pytest.raises(PluginError, match="Local"):
        GuardedScorer(RewardSpec("x", Local, "bad_scorers:build", isolated=True), Local(), CONTEXT)


def test_pool_size_is_kept():
    pool = WorkerPool("bad_scorers:build", BadConfig(), size=3)
    try:
        pool.score(ask(*[str(i) for i in range(100)]))
        assert len(pool._workers) == 3
    finally:
        pool.close()


MAIN = """
import os, sys, signal
sys.path[:0] = [{root!r}, {tests!r}]
from bad_scorers import ISOLATED, BadConfig
from core.api import GuardedScorer, ScorerContext, ScoreRequest
scorer = GuardedScorer(ISOLATED, BadConfig(timeout_s={timeout}, log={log!r}), ScorerContext())
scorer.score([ScoreRequest("p", "1")] * 4)
print(*[w.process.pid for w in scorer._pool._workers], flush=True)
{end}
"""


@pytest.mark.parametrize(
    "end",
    ["", "raise SystemExit(5)", "os.kill(os.getpid(), signal.SIGKILL)", "os.kill(os.getpid(), signal.SIGTERM)"],
)
def test_no_worker_outlives_its_parent(end, tmp_path):
    code = MAIN.format(root=str(ROOT), tests=str(Path(__file__).parent), timeout=1.0, log="", end=end)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    workers = [int(pid) for pid in run.stdout.split()]
    assert workers, run.stderr
    assert wait_until(lambda: not any(alive(pid) for pid in workers))


def test_a_hung_worker_ends_by_itself_when_its_parent_was_killed(tmp_path):
    log = tmp_path / "log"
    end = 'scorer.score([ScoreRequest("p", "hang")])'
    code = MAIN.format(root=str(ROOT), tests=str(Path(__file__).parent), timeout=2.0, log=str(log), end=end)
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert wait_until(lambda: len(log.read_text(encoding="utf8").split()) == 5)  # the fifth request hangs
    parent.kill()
    parent.communicate()
    assert any(alive(pid) for pid in workers)
    assert wait_until(lambda: not any(alive(pid) for pid in workers), 15)


def test_a_forked_child_leaves_the_workers_alone(isolated):
    isolated.score(ask("1"))
    before = pids(isolated)
    child = os.fork()
    if child == 0:
        isolated.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert [score.value for score in isolated.score(ask("1"))] == [1.0]
    assert pids(isolated) == before


def test_throughput_of_a_trivial_scorer(isolated):
    """Thousands a second; the bound leaves room for a loaded machine."""
    isolated.score(ask("1", "1"))
    start = time.perf_counter()
    isolated.score(ask(*["1"] * 5000))
    assert 5000 / (time.perf_counter() - start) > 1000


# ---- summaries and typed configs ----


def test_summarise_leaves_errors_out_of_the_mean():
    summary = summarise([Score(1.0), Score(3.0), Score(None, error="x"), Score(None, error="y")])
    assert summary == {"mean": 2.0, "std": 1.0, "count": 4.0, "errors": 2.0, "error_share": 0.5}
    assert summarise([Score(None, error="x")])["mean"] is None
    assert summarise([]) == {"mean": None, "std": None, "count": 0.0, "errors": 0.0, "error_share": 0.0}


def test_checked_makes_booleans_numbers():
    assert checked(Score(True, parts={"a": False})) == Score(1.0, parts={"a": 0.0})
    assert type(checked(Score(True)).value) is float


def test_unknown_key_names_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown key 'ratoi'") as error:
        from_plain(BadConfig, {"ratoi": 2})
    assert "did you mean 'ratio'" in str(error.value)


@pytest.mark.parametrize("values", [{"ratio": "two"}, {"ratio": True}, {"log": 3}, {"ratio": None}, {"timeout_s": -1}])
def test_bad_values_are_refused(values):
    with pytest.raises(ConfigError) as error:
        from_plain(BadConfig, values, where="here")
    assert next(iter(values)) in str(error.value)
    assert error.value.where == "here"


def test_whole_numbers_serve_as_floats():
    config = from_plain(BadConfig, {"ratio": 2})
    assert config.ratio == 2.0 and type(config.ratio) is float


def test_context_makes_guarded_scorers_and_knows_its_names():
    scorer = CONTEXT.make("bad_here", {"ratio": 3})
    assert scorer.score(ask("2"))[0].value == 6.0
    assert scorer.config.name == "bad_here"
    with pytest.raises(ConfigError, match="bad_her") as error:
        CONTEXT.make("bad_her")
    assert "did you mean 'bad_here'" in str(error.value) and "known ones: bad, bad_here" in str(error.value)
    assert involved(ISOLATED, BadConfig(), CONTEXT.specs) == [ISOLATED]
