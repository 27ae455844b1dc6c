"""A program that nobody has read, run with limits: no network, its own files, little time, memory and few processes.

`Sandbox.run` starts `sandbox_child.py` as a script of its own. With `confine` (Linux) that script makes namespaces of
its own for users, mounts, processes, network, IPC and host name before the program starts:

- files: a new root in memory of at most `disk_mb`, in which Python and the system's libraries are mounted read-only.
  Nothing else of the machine's files is there, and what is written is gone with the program;
- network: an interface-less namespace;
- processes: the program is the first process of its namespace, so that killing it kills whatever it started;
- users: it is root of nothing, and where preftune itself runs as root, its processes count as the user 65534;
- the host: another name, nothing in the environment, no file descriptor but the report's.

In any case there are resource limits (processor time, address space, file size, open files, number of processes), the
wall clock, a session keyring of the program's own, and a filter of system calls (`sandbox_filter.py`) against what
these limits and the namespaces do not hold: memory outside the address space, keyrings, sockets of other families.
Where the kernel does not give the keyring or the filter, `Sandbox.lacking` says so. Without `confine` that is all there
is: the program can read and write what its user can, use the network, and, where it starts processes in sessions of
their own, outlive its time limit. Linux alone, from 5.14 on with `confine`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.api import PluginError
from reward_models.sandbox_filter import KEYCTL, filter_of, number_of

CHILD = Path(__file__).with_name("sandbox_child.py")
NOBODY = 65534
"""The user that processes of a root-run sandbox count as."""
START_S = 10.0
"""Time to set the namespaces up, beside the program's own."""
MAX_REPORT_BYTES = 65536
LOOK_S = 0.05
"""How often the processes' memory is summed."""


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    seconds: float = 5.0
    """Wall clock; processor time is rounded up to whole seconds."""
    memory_mb: int = 512
    """Address space of each process, and resident memory of all together."""
    disk_mb: int = 16
    """All files together with `confine`, else each file."""
    processes: int = 8
    """Processes and threads at a time, the program itself included."""


@dataclass(frozen=True)
class Outcome:
    """How a program ended. `report` is what it was to tell; None where it did not come to that."""

    report: Any
    timed_out: bool
    code: int | None
    """Exit code, negative for a signal; None when it was killed at its time limit."""


class SandboxError(RuntimeError):
    """The sandbox could not be set up; nothing was run."""


class Sandbox:
    """Runs programs under `limits`. Raises PluginError where none can be run as asked, which is tried at once."""

    def __init__(self, limits: Limits, confine: bool = True) -> None:
        self.limits, self.confine = limits, confine
        self.lacking: list[str] = []
        """What the kernel does not give, and so is not held, as the last program found it."""
        try:
            probe = self.run("import collections, heapq, math, random, re")
            fault = None if probe.report == {"tests": []} else f"its first program ended with {probe}"
        except SandboxError as error:
            fault = str(error)
        if fault:
            raise PluginError(
                f"no {'confined ' if confine else ''}program can be run here: {fault}",
                "reward_models.sandbox",
                "allow unprivileged user namespaces, or accept that model-written programs can reach your files and "
                "the network: confine=false"
                if confine
                else "run as a user other than root",
            )

    def run(self, code: str, tests: list[str] | None = None, setup: str = "") -> Outcome:
        """Run `setup` and `code`, then each of `tests`. The report: {"tests": [error or null for each test]} or
        {"error": what kept `code` from its end}.

        Raises: SandboxError.
        """
        calls = filter_of(network=not self.confine)
        job = {**asdict(self.limits), "code": code, "tests": tests or [], "setup": setup, "confine": self.confine,
               "user": NOBODY if os.geteuid() == 0 else 0, "libraries": _libraries(), "keyctl": number_of(KEYCTL),
               "filter": calls.hex() if calls else None}  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="preftune-sandbox-", ignore_cleanup_errors=True) as folder:
            if os.geteuid() == 0 and not self.confine:
                os.chown(folder, NOBODY, NOBODY)
            return self._run({**job, "folder": folder})

    def _run(self, job: dict[str, Any]) -> Outcome:
        read_fd, report_fd = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(CHILD), str(report_fd)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=(report_fd,), start_new_session=True,
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}, cwd=job["folder"], bufsize=0,
        )  # fmt: skip
        os.close(report_fd)
        first = 0
        try:
            first = self._open(process, job)
            return self._wait(process, read_fd, first)
        finally:
            _kill(process, first)
            os.close(read_fd)

    def _open(self, process: subprocess.Popen[bytes], job: dict[str, Any]) -> int:
        """Hand over the job, and the users of the namespaces when the script says `ready`. Returns the process that
        the program runs in where it is not the script itself, else 0."""
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(job).encode() + b"\n")
            if self.confine and _line(process.stdout.fileno(), START_S) == b"ready":
                try:
                    _map_users(process.pid)
                except OSError as error:
                    raise SandboxError(f"user map: {error}") from error
                process.stdin.write(b"go\n")
        said = [_line(process.stdout.fileno(), START_S) for _ in range(2 if self.confine else 1)]
        running = next((line for line in said if line.startswith(b"running ")), None)
        if running is None:
            _kill(process, 0)
            assert process.stderr is not None
            lines = process.stderr.read().decode(errors="replace").strip().splitlines()
            raise SandboxError(lines[-1][:200] if lines else "it did not start")
        self.lacking = json.loads(running.removeprefix(b"running "))
        return next((int(line.removeprefix(b"child ")) for line in said if line.startswith(b"child ")), 0)

    def _wait(self, process: subprocess.Popen[bytes], read_fd: int, first: int) -> Outcome:
        """Wait for the report's end or the time limit."""
        deadline = time.monotonic() + self.limits.seconds
        data = bytearray()
        ended = False
        while not ended and (left := deadline - time.monotonic()) > 0:
            if select.select([read_fd], [], [], min(left, LOOK_S))[0]:
                piece = os.read(read_fd, 65536)
                data += piece
                ended = not piece or len(data) > MAX_REPORT_BYTES
            elif resident_mb(process.pid) > self.limits.memory_mb:
                _kill(process, first)
                return Outcome(None, False, -signal.SIGKILL)
        if not ended:
            _kill(process, first)
            return Outcome(None, True, None)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        _kill(process, first)
        try:
            report = json.loads(data) if len(data) <= MAX_REPORT_BYTES else None
        except ValueError:
            report = None
        return Outcome(report, False, process.returncode)


def _line(fd: int, seconds: float) -> bytes:
    """The next line of a pipe; empty at its end and when it takes longer than `seconds`."""
    data = bytearray()
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0 and select.select([fd], [], [], left)[0]:
        byte = os.read(fd, 1)
        if byte in (b"", b"\n"):
            break
        data += byte
    return bytes(data)


def diagnose() -> list[str]:
    """What the sandbox cannot hold on this machine, a line each; asked by the command `doctor`."""
    try:
        lacking = Sandbox(Limits()).lacking
    except PluginError as error:
        return [f"{error.what}; {error.mend}"]
    return [f"programs are run, but the sandbox does not hold {text}" for text in lacking]


def resident_mb(first: int) -> float:
    """Memory of a process and all below it, in MB; a page that several have is shared out among them."""
    kilobytes, waiting = 0, [first]
    while waiting:
        folder = Path("/proc", str(waiting.pop()))
        with contextlib.suppress(OSError, ValueError):  # it has ended
            kilobytes += _kilobytes(folder)
            for task in (folder / "task").iterdir():
                waiting += map(int, (task / "children").read_text(encoding="ascii").split())
    return kilobytes / 1024


def _kilobytes(folder: Path) -> int:
    """A process's share of its pages; where it may not be read, what is resident and no file's."""
    file, names = folder / "smaps_rollup", (b"Pss_Anon:", b"Pss_Shmem:")
    try:
        lines = file.read_bytes().splitlines()
    except OSError:
        lines, names = (folder / "status").read_bytes().splitlines(), (b"RssAnon:", b"RssShmem:")
    return sum(int(line.split()[1]) for line in lines if line.startswith(names))


def _map_users(pid: int) -> None:
    """User and group 0 inside are preftune's own, for setting up; where that is root, 65534 is there for the program:
    the kernel does not count root's processes."""
    root = os.geteuid() == 0
    more = f"\n{NOBODY} {NOBODY} 1" if root else ""
    if not root:
        Path(f"/proc/{pid}/setgroups").write_text("deny", encoding="ascii")
    Path(f"/proc/{pid}/uid_map").write_text(f"0 {os.geteuid()} 1{more}", encoding="ascii")
    Path(f"/proc/{pid}/gid_map").write_text(f"0 {os.getegid()} 1{more}", encoding="ascii")


def _libraries() -> list[str]:
    """What is mounted read-only: the system's programs and libraries, and Python where it is not among them."""
    system = ["/usr", "/bin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache"]
    python = [] if sys.base_prefix.startswith("/usr") else [sys.base_prefix]
    return [path for path in [*system, *python] if Path(path).exists()]


def _kill(process: subprocess.Popen[bytes], first: int) -> None:
    """Kill and reap the script with its session.

    first: the first process of the program's namespace, which takes everything with it that the program started, in
        whatever session. It is killed while the script still waits for it, so the number cannot be another's by now.
    """
    if first and process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(first, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
