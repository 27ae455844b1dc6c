"""A program that nobody has read, run with limits: no network, its own files, little time, memory and few processes.

`Sandbox.run` starts `sandbox_child.py` as a script of its own. With `confine` (Linux) that script makes namespaces of
its own for users, mounts, processes, network, IPC and host name before the program starts:

- files: a new root in memory of at most `disk_mb`, in which Python and the system's libraries are mounted read-only.
  Nothing else of the machine's files is there, and what is written is gone with the program;
- network: an interface-less namespace;
- processes: the program is the first process of its namespace, so that killing it kills whatever it started;
- users: it is root of nothing, and where preftune itself runs as root, its processes count as the user 65534.

Resource limits hold in any case: processor time, address space, file size, open files, number of processes; and the
wall clock. Without `confine` they are all there is: the program can read and write what its user can, use the network,
and, where it starts processes in sessions of their own, outlive its time limit. Linux alone, from 5.14 on with
`confine`.
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

CHILD = Path(__file__).with_name("sandbox_child.py")
NOBODY = 65534
"""The user that processes of a root-run sandbox count as."""
START_S = 10.0
"""Time to set the namespaces up, beside the program's own."""
MAX_REPORT_BYTES = 65536


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    seconds: float = 5.0
    """Wall clock; processor time is rounded up to whole seconds."""
    memory_mb: int = 512
    """Address space of each process."""
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
        job = {**asdict(self.limits), "code": code, "tests": tests or [], "setup": setup, "confine": self.confine,
               "user": NOBODY if os.geteuid() == 0 else 0, "libraries": _libraries()}  # fmt: skip
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
        if b"running" not in said:
            _kill(process, 0)
            assert process.stderr is not None
            lines = process.stderr.read().decode(errors="replace").strip().splitlines()
            raise SandboxError(lines[-1][:200] if lines else "it did not start")
        return next((int(line.removeprefix(b"child ")) for line in said if line.startswith(b"child ")), 0)

    def _wait(self, process: subprocess.Popen[bytes], read_fd: int, first: int) -> Outcome:
        """Wait for the report's end or the time limit."""
        deadline = time.monotonic() + self.limits.seconds
        data = bytearray()
        ended = False
        while not ended and (left := deadline - time.monotonic()) > 0:
            if select.select([read_fd], [], [], left)[0]:
                piece = os.read(read_fd, 65536)
                data += piece
                ended = not piece or len(data) > MAX_REPORT_BYTES
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
