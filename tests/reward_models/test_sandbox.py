"""What a program in the sandbox cannot do, each tried for real; and the scorer that runs tests in it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.api import ConfigError, GuardedScorer, PluginError, ScorerContext, ScoreRequest
from reward_models import CodeConfig, modify_plan, register_reward_models
from reward_models.code import program, record_tests
from reward_models.sandbox import CHILD, NOBODY, Limits, Sandbox, diagnose
from reward_models.sandbox_filter import ARCHITECTURES, KEYCTL, REFUSED, filter_of, number_of

SECONDS = 5.0


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    try:
        return Sandbox(Limits(seconds=SECONDS))
    except PluginError as error:
        pytest.skip(f"no namespaces here: {error}")


def processes_with(mark: str) -> list[int]:
    """Ids of living processes whose command line or environment holds `mark`."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and mark.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def error_of(sandbox: Sandbox, code: str) -> str:
    outcome = sandbox.run(code)
    assert outcome.report is not None, outcome
    return outcome.report.get("error", "")


def test_tests_are_run_one_by_one(sandbox):
    outcome = sandbox.run("def f(x):\n    return x + K", ["assert f(1) == 3", "assert f(1) == 4", "f("], setup="K = 2")
    assert outcome.report["tests"][0] is None
    assert outcome.report["tests"][1].startswith("AssertionError")
    assert outcome.report["tests"][2].startswith("SyntaxError")
    assert not outcome.timed_out


@pytest.mark.slow  # burns the whole time limit
def test_an_endless_loop_ends_at_the_time_limit(sandbox):
    began = time.monotonic()
    outcome = sandbox.run("while True: pass")
    assert outcome.timed_out and outcome.report is None
    assert SECONDS <= time.monotonic() - began < SECONDS + 10


def test_a_fork_bomb_is_counted_and_killed(sandbox):
    code = """
import os, sys, time
made = 0
try:
    while True:
        if os.fork() == 0:
            os.setsid()
            time.sleep(600)
        made += 1
except OSError as error:
    raise RuntimeError(f"{made} {type(error).__name__}")
"""
    before = set(processes_with("sandbox_child.py"))
    assert error_of(sandbox, code) == f"RuntimeError: {Limits.processes - 1} BlockingIOError"
    assert set(processes_with("sandbox_child.py")) <= before  # though each had a session of its own


def test_an_exponential_fork_bomb_leaves_nothing(sandbox):
    before = set(processes_with("sandbox_child.py"))
    outcome = sandbox.run("import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass")
    assert outcome.timed_out
    deadline = time.monotonic() + 5
    while set(processes_with("sandbox_child.py")) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert set(processes_with("sandbox_child.py")) <= before


def test_no_session_of_its_own_outlives_the_time_limit(sandbox):
    code = """
import ctypes, os
ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)  # not even without the signal of its parent's death
os.setsid()
while True: pass
"""
    before = set(processes_with("sandbox_child.py"))
    assert sandbox.run(code).timed_out
    deadline = time.monotonic() + 5
    while set(processes_with("sandbox_child.py")) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert set(processes_with("sandbox_child.py")) <= before


def test_ten_gigabytes_cannot_be_had(sandbox):
    assert error_of(sandbox, "data = bytearray(10 << 30)").startswith("MemoryError")


@pytest.mark.parametrize("place", ["/usr/new", "/new", "/etc/passwd", f"{sys.base_prefix}/new"])
def test_files_outside_its_folder_cannot_be_written(sandbox, place):
    assert "Error" in error_of(sandbox, f"open({place!r}, 'a').write('x')")
    assert not Path("/new").exists() and not Path("/usr/new").exists()


def test_the_machines_files_cannot_be_seen(sandbox, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("s", encoding="ascii")
    tmp_path.chmod(0o755)
    assert error_of(sandbox, f"open({str(secret)!r})").startswith("FileNotFoundError")
    assert error_of(sandbox, "import os; raise RuntimeError(sorted(os.environ))").find("HOME") < 0


def test_what_it_writes_is_gone(sandbox):
    code = "open('note', 'w').write('a'); open('/tmp/note', 'w').write('b')"
    assert error_of(sandbox, code) == ""
    assert error_of(sandbox, "open('/tmp/note')").startswith("FileNotFoundError")
    assert not Path("/tmp/note").exists()


def test_a_full_disk_is_its_own(sandbox):
    code = "for i in range(100):\n    open(f'/tmp/{i}', 'wb').write(b'a' * (1 << 20))"
    assert "No space left" in error_of(sandbox, code)


def test_there_is_no_network(sandbox):
    code = "import socket\nsocket.create_connection(('127.0.0.1', %d), timeout=1)"
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert "Error" in error_of(sandbox, code % server.getsockname()[1])


def test_it_is_no_root_and_cannot_mount(sandbox):
    code = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
assert libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == -1
assert libc.mount(b"none", b"/usr", None, 32 | 4096, None) == -1
try:
    os.chroot("/tmp")
except PermissionError:
    pass
else:
    raise RuntimeError("allowed")
"""
    assert error_of(sandbox, code) == ""


TRIES = f"""
import ctypes, errno, os
numbers = { ({name: number_of(call) for name, call in REFUSED.items()})!r}
libc = ctypes.CDLL(None, use_errno=True)
def attempt(call, *arguments):
    done = libc.syscall(ctypes.c_long(numbers[call]), *(ctypes.c_long(one) for one in arguments))
    raise RuntimeError("done" if done != -1 else errno.errorcode[ctypes.get_errno()])
"""
filtered = pytest.mark.skipif(platform.machine() not in ARCHITECTURES, reason="no filter for this machine")


def test_nothing_is_lacking_where_the_kernel_gives_all(sandbox):
    assert sandbox.lacking == []


@filtered
@pytest.mark.parametrize("call", REFUSED)
def test_calls_that_no_limit_holds_are_refused(sandbox, call):
    assert error_of(sandbox, TRIES + f"attempt({call!r}, 0, 0, 0, 0, 0)") == "RuntimeError: EPERM"


@filtered
def test_900_megabytes_cannot_be_had_beside_the_address_space(sandbox):
    assert error_of(sandbox, TRIES + f"attempt('shmget', 0, {900 << 20}, 0o1600)") == "RuntimeError: EPERM"
    assert "PermissionError" in error_of(sandbox, "import os\nos.ftruncate(os.memfd_create('m'), 900 << 20)")
    assert error_of(sandbox, "import mmap\nmmap.mmap(-1, 900 << 20)")


def test_processes_together_have_no_more_memory_than_one(sandbox):
    code = """
import mmap, os, time
for _ in range(4):
    if os.fork() == 0:
        data = SPACE
        for place in range(200):
            data[place << 20 : (place + 1) << 20] = b"a" * (1 << 20)
        time.sleep(60)
time.sleep(4)
"""
    for space in ("bytearray(200 << 20)", "mmap.mmap(-1, 200 << 20)"):
        outcome = sandbox.run(code.replace("SPACE", space))
        assert outcome.report is None and outcome.code == -signal.SIGKILL


def test_what_processes_share_counts_once(sandbox):
    code = """
import os, time
data = bytearray(300 << 20)
children = [os.fork() for _ in range(1)] + [os.fork() for _ in range(1)]
time.sleep(0.4)
if 0 in children:
    os._exit(0)
"""
    assert sandbox.run(code).report == {"tests": []}


KEYRINGS = {"session": -3, "user": -4, "session of the user": -5}


@pytest.mark.parametrize("keyring", KEYRINGS)
def test_the_keyrings_of_the_user_keep_nothing(sandbox, keyring):
    """Looked for as the user that the program runs as, who alone may see such a key; others' keys come and go."""
    name = f"preftune-{os.getpid()}-{keyring}"
    code = f"""
parts = [ctypes.create_string_buffer(part) for part in (b"user", {name.encode()!r}, b"kept")]
attempt("add_key", *map(ctypes.addressof, parts), 4, {KEYRINGS[keyring]})
"""
    assert error_of(sandbox, TRIES + code) in ("RuntimeError: EPERM", "RuntimeError: ENOSYS")
    if Path("/proc/keys").exists():
        user = NOBODY if os.geteuid() == 0 else None
        keys = subprocess.run(["cat", "/proc/keys"], user=user, capture_output=True, text=True, check=True).stdout
        assert name not in keys


@pytest.mark.parametrize("family", ["AF_VSOCK", "AF_NETLINK", "AF_PACKET", "AF_ALG", "AF_CAN", "AF_BLUETOOTH"])
@filtered
def test_sockets_of_other_families_are_cut(sandbox, family):
    code = f"import socket\nsocket.socket(socket.{family}, socket.SOCK_RAW)"
    assert "Address family not supported" in error_of(sandbox, code) or not hasattr(socket, family)


def test_an_abstract_socket_of_the_machine_cannot_be_reached(sandbox):
    name = f"\0preftune-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        code = f"import socket\nsocket.socket(socket.AF_UNIX).connect({name!r})"
        assert error_of(sandbox, code).startswith("ConnectionRefusedError")


def test_the_machines_name_is_not_told(sandbox):
    told = error_of(sandbox, "import os, socket\nraise RuntimeError(socket.gethostname(), os.uname().nodename)")
    assert told == "RuntimeError: ('sandbox', 'sandbox')"


@filtered
def test_no_namespace_can_be_opened_inside(sandbox):
    code = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    clone = number_of((56, 220))
    code += f"raise RuntimeError(libc.syscall({clone}, 0x10000011, 0, 0, 0, 0), os.strerror(ctypes.get_errno()))"
    assert error_of(sandbox, code) == "RuntimeError: (-1, 'Operation not permitted')"


def test_threads_and_programs_still_start(sandbox):
    code = """
import subprocess, threading
done = []
thread = threading.Thread(target=lambda: done.append(1))
thread.start(); thread.join()
assert done and subprocess.run(["/usr/bin/env"], capture_output=True, check=True).stdout.decode()
"""
    assert error_of(sandbox, code) == ""


def test_neither_environment_nor_file_descriptors_come_along(sandbox, monkeypatch):
    monkeypatch.setenv("PREFTUNE_TEST_SECRET", "s")
    told = error_of(sandbox, "import os\nraise RuntimeError(sorted(os.environ))")
    assert told == "RuntimeError: ['LANG', 'LC_CTYPE', 'PATH']" or told == "RuntimeError: ['LANG', 'PATH']"
    with Path(__file__).open() as file:
        os.set_inheritable(file.fileno(), True)
        code = "import os\nopen_ = []\nfor fd in range(64):\n    try: os.fstat(fd); open_.append(fd)\n"
        code += "    except OSError: pass\nraise RuntimeError(len(open_))"
        assert error_of(sandbox, code) == "RuntimeError: 4"  # three times /dev/null, and the report


@pytest.mark.parametrize("place", ["/proc/1/environ", "/proc/self/status", "/sys", "/dev/shm", "/run", "/var", "/home"])
def test_what_the_machine_tells_of_itself_is_not_there(sandbox, place):
    assert error_of(sandbox, f"import os\nos.stat({place!r})").startswith("FileNotFoundError")


def test_empty_files_are_counted_too(sandbox):
    code = "import os\nfor i in range(10000):\n    os.close(os.open(f'/tmp/{i}', os.O_CREAT))"
    assert "No space left" in error_of(sandbox, code)


def test_a_crash_leaves_no_dump(sandbox):
    code = "import resource\nraise RuntimeError(resource.getrlimit(resource.RLIMIT_CORE))"
    assert error_of(sandbox, code) == "RuntimeError: (1, 1)"


def test_what_cannot_be_held_is_told(sandbox, monkeypatch):
    monkeypatch.setattr("reward_models.sandbox_filter.platform.machine", lambda: "riscv64")
    [keyrings, calls] = Sandbox(Limits(seconds=SECONDS)).lacking
    assert (
        keyrings.startswith("kernel keyrings") and calls == "a filter of system calls: none is known for this machine"
    )
    assert any("a filter of system calls" in line for line in diagnose())
    stage = SimpleNamespace(
        spec=SimpleNamespace(rollouts=True, builds=False), state="run", warnings=[],
        cfg=SimpleNamespace(reward=CodeConfig(name="code", limit_s=SECONDS), eval=SimpleNamespace(scorer="auto")),
    )  # fmt: skip
    modify_plan(SimpleNamespace(stages=[stage]))
    assert "reward=code: the sandbox does not hold kernel keyrings" in stage.warnings[0]


def test_leaving_early_is_not_passing(sandbox):
    outcome = sandbox.run("import os\nos._exit(0)", ["assert False"])
    assert outcome.report is None and not outcome.timed_out


def test_limits_hold_without_namespaces(tmp_path):
    """The script alone, as another user with the system's Python: no namespaces, resource limits only."""
    system = shutil.which("python3", path="/usr/bin")
    if os.geteuid() != 0 or system is None:
        pytest.skip("needs root, to become another user, and a Python that others can read")
    folder = Path(tempfile.mkdtemp(prefix="preftune-test-"))
    try:
        folder.chmod(0o755)
        script = folder / CHILD.name
        shutil.copy(CHILD, script)
        script.chmod(0o644)

        def run(code: str) -> dict:
            job = {"seconds": 5, "memory_mb": 512, "disk_mb": 1, "processes": 1, "code": code, "tests": [],
                   "setup": "", "confine": False, "user": NOBODY, "libraries": [], "folder": str(folder),
                   "keyctl": number_of(KEYCTL), "filter": (filter_of(network=True) or b"").hex() or None}  # fmt: skip
            read_fd, write_fd = os.pipe()
            done = subprocess.run(
                [system, "-I", "-S", "-B", str(script), str(write_fd)], input=json.dumps(job) + "\n", timeout=60,
                pass_fds=(write_fd,), capture_output=True, text=True, check=False,
            )  # fmt: skip
            os.close(write_fd)
            with os.fdopen(read_fd) as pipe:
                text = pipe.read()
            assert text, done.stderr
            return json.loads(text)

        assert run("x = 1") == {"tests": []}
        assert run("data = bytearray(10 << 30)")["error"].startswith("MemoryError")
        assert run("import os\nos.fork()")["error"].startswith("BlockingIOError")
        assert run(f"open({str(folder / 'x')!r}, 'w')")["error"].startswith("PermissionError")
        if filter_of(network=True) is not None:  # held without namespaces too; the network is not
            for call in ("shmget", "memfd_create", "keyctl", "add_key"):
                assert run(TRIES + f"attempt({call!r}, 0, 0, 0)")["error"] == "RuntimeError: EPERM", call
        assert run("import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)") == {"tests": []}
    finally:
        shutil.rmtree(folder)


# ---- the scorer -----------------------------------------------------------------------------------------------------

MBPP = {"test_list": ["assert twice(2) == 4", "assert twice(-1) == -2"], "test_setup_code": ""}


@pytest.fixture(scope="module")
def scorer(sandbox):
    [spec] = [spec for spec in register_reward_models() if spec.name == "code"]
    scorer = GuardedScorer(spec, CodeConfig(name="code", limit_s=SECONDS, timeout_s=30), ScorerContext())
    yield scorer
    scorer.close()


def ask(completion: str, **extra: object) -> ScoreRequest:
    return ScoreRequest("p", completion, meta={"extra": {**MBPP, **extra}})


def test_programs_are_scored_by_their_tests(scorer):
    right = "Here it is:\n```python\ndef twice(x):\n    return 2 * x\n```\nDone."
    half = "[BEGIN]\ndef twice(x):\n    return x * x\n[DONE]"
    endless = "def twice(x):\n    while True: pass"
    scores = scorer.score([ask(right), ask(half), ask(endless), ask("no code at all"), ask("import os; os._exit(0)")])
    assert [score.value for score in scores] == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert scores[1].parts == {"passed": 0.5, "timed_out": 0.0}
    assert scores[2].parts["timed_out"] == 1.0
    assert scorer.errors == 0


def test_a_record_without_tests_is_an_error(scorer):
    [score] = scorer.score([ScoreRequest("p", "x = 1")])
    assert score.value is None and "no column 'test_list'" in score.error


def test_programs_and_tests_are_found():
    config = CodeConfig()
    assert program("a\n```py\nx = 1\n```\nb\n```\ny = 2\n```") == "x = 1\n\ny = 2"
    assert program("x = 1") == "x = 1"
    assert record_tests(ScoreRequest("p", "c", answer="assert True"), config) == (["assert True"], "")
    assert record_tests(ScoreRequest("p", "c", meta={"test_list": '["a", "b"]'}), config) == (["a", "b"], "")
    with pytest.raises(ValueError, match="must hold texts"):
        record_tests(ScoreRequest("p", "c", meta={"test_list": [1]}), config)


def test_the_limit_stands_below_the_workers():
    with pytest.raises(ConfigError, match="limit_s"):
        CodeConfig(limit_s=10.0)


def test_real_solutions_pass(scorer):
    data = Path(os.environ.get("PREFTUNE_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
    file = data / "mbpp" / "mbpp.jsonl"
    if not file.is_file():
        pytest.skip("no MBPP rows")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()][:12]
    requests = [ScoreRequest(row["text"], row["code"], meta={"extra": row}) for row in rows]
    assert [score.value for score in scorer.score(requests)] == [1.0] * len(rows)
