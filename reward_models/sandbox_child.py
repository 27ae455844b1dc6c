"""A script that confines itself and then runs a program: started by reward_models.sandbox, which explains it.

Standard library alone, and nothing of preftune: it runs with `python -I -S`. In: one line of JSON, the job; with
`confine` a second line once the user map stands. Out: the lines `ready` (namespaces stand, the user map is awaited),
`running` with a JSON list of what could not be had, and `child` with the number of the program's process where that is
another; then the report, as JSON, to the file descriptor that the first argument names. Errors of the setting-up go to
standard error, and the exit code is 1.
"""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import resource
import signal
import sys
from pathlib import Path

# Linux, <sched.h>, <sys/mount.h>, <linux/mount.h>, <linux/prctl.h>, <linux/capability.h>; the system call's number is
# the same on every architecture.
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38
SECCOMP_MODE_FILTER, KEYCTL_JOIN_SESSION_KEYRING = 2, 1
CAPABILITY_VERSION_3, LAST_CAPABILITY = 0x20080522, 63
DEVICES = ("null", "zero", "urandom", "random")
HOST = "sandbox"
MOST_FILES = 4096
"""Each costs kernel memory, an empty one too."""


class Filter(ctypes.Structure):
    """struct sock_fprog of <linux/filter.h>."""

    _fields_ = (("length", ctypes.c_ushort), ("lines", ctypes.c_void_p))


def _call(function: str, *arguments: object) -> None:
    """A function of libc; OSError where it fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments) == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{function}: {os.strerror(code)}")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    texts = [None if text is None else ctypes.c_char_p(text.encode()) for text in (source, target, kind, data)]
    _call("mount", texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])


def _read_only(target: str) -> None:
    """Make a mount with all below it read-only, other flags kept."""
    attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, 0, 0, 0)
    _call("syscall", ctypes.c_long(SYS_MOUNT_SETATTR), ctypes.c_int(AT_FDCWD), ctypes.c_char_p(target.encode()),
          ctypes.c_uint(AT_RECURSIVE), attributes, ctypes.c_size_t(ctypes.sizeof(attributes)))  # fmt: skip


def enter_namespaces() -> None:
    """Namespaces of this process's own, and users in them as soon as the parent has mapped them."""
    _call("unshare", CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS)
    say("ready")
    if sys.stdin.readline().strip() != "go":
        raise OSError("no user map was made")
    for function in ("sethostname", "setdomainname"):
        _call(function, HOST.encode(), ctypes.c_size_t(len(HOST)))


def enter_root(root: Path, libraries: list[str], disk_mb: int, user: int) -> None:
    """Make `root` the root: empty but for libraries, a few devices, /tmp and the working folder."""
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", str(root), "tmpfs", MS_NOSUID | MS_NODEV, f"size={disk_mb}m,nr_inodes={MOST_FILES},mode=755")
    for library in map(Path, libraries):
        place = root / library.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if library.is_symlink():  # /lib is often a link into /usr
            place.symlink_to(library.readlink())
            continue
        _mount_point(place, library.is_dir())
        _mount(str(library), str(place), None, MS_BIND | MS_REC)
        _read_only(str(place))
    (root / "dev").mkdir()
    for name in DEVICES:
        _mount_point(root / "dev" / name, folder=False)
        _mount(f"/dev/{name}", str(root / "dev" / name), None, MS_BIND)
    for name in ("tmp", "work"):
        (root / name).mkdir()
        os.chown(root / name, user, user)
    os.chroot(root)
    os.chdir("/work")


def _mount_point(place: Path, folder: bool) -> None:
    place.mkdir(parents=True, exist_ok=True) if folder else place.touch()


def give_up_rights(user: int) -> None:
    """No capability now or after an exec, and the given user where it is not the present one."""
    for capability in range(LAST_CAPABILITY + 1):
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)  # those that the kernel lacks are refused
    if user != os.geteuid():
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    _call("capset", header, (ctypes.c_uint32 * 6)())


def leave_keyrings(keyctl: int | None) -> str:
    """Join a session keyring of one's own, which ends with the last process in it; what could not be had."""
    if keyctl is None:
        return "kernel keyrings: their system call is not known on this machine"
    try:
        _call("syscall", ctypes.c_long(keyctl), ctypes.c_long(KEYCTL_JOIN_SESSION_KEYRING), None)
    except OSError as error:
        return "" if error.errno == errno.ENOSYS else f"kernel keyrings: {error}"
    return ""


def filter_calls(lines: str | None) -> str:
    """Let the kernel refuse system calls from here on; what could not be had.

    lines: the filter in hexadecimal digits, see reward_models.sandbox_filter; None where this machine has none.
    """
    if lines is None:
        return "a filter of system calls: none is known for this machine"
    data = ctypes.create_string_buffer(bytes.fromhex(lines))
    wanted = Filter(len(lines) // 16, ctypes.addressof(data))
    try:
        _call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(wanted), 0, 0)
    except OSError as error:
        return f"a filter of system calls: {error}"
    return ""


def limit(job: dict) -> None:
    """Resource limits, soft and hard alike."""
    megabyte = 1 << 20
    limits = {
        resource.RLIMIT_CPU: math.ceil(job["seconds"]) + 1,
        resource.RLIMIT_AS: job["memory_mb"] * megabyte,
        resource.RLIMIT_FSIZE: job["disk_mb"] * megabyte,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 1,  # too little for any dump; 0 still sends one to a handler behind a pipe
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: 256,
        # The script that waits outside counts too where it is of the same user.
        resource.RLIMIT_NPROC: job["processes"] + (1 if job["confine"] and not job["user"] else 0),
    }
    for name, value in limits.items():
        _, hard = resource.getrlimit(name)
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (allowed, allowed))


def run(job: dict) -> dict:
    """What the program did: see Sandbox.run."""
    names: dict = {"__name__": "__main__"}
    try:
        code, setup = (compile(job[part], "<program>", "exec") for part in ("code", "setup"))
        try:
            exec(setup, names)  # noqa: S102 - what the sandbox is for
            parts = [code]
        except NameError:  # it builds on what the program defines, as two of MBPP do
            parts = [code, setup]
        for part in parts:
            exec(part, names)  # noqa: S102
    except BaseException as error:
        return {"error": _describe(error)}
    results: list[str | None] = []
    for test in job["tests"]:
        try:
            exec(compile(test, "<test>", "exec"), names)  # noqa: S102
            results.append(None)
        except BaseException as error:
            results.append(_describe(error))
    return {"tests": results}


def _describe(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:200]
    except BaseException:
        return type(error).__name__


def say(line: str) -> None:
    """A line for the parent."""
    os.write(1, f"{line}\n".encode())


def main() -> None:
    """Confine, limit, run, report."""
    report_fd = int(sys.argv[1])
    job = json.loads(sys.stdin.readline())
    lacking = [leave_keyrings(job["keyctl"])]
    if job["confine"]:
        enter_namespaces()
        enter_root(Path(job["folder"]), job["libraries"], job["disk_mb"], job["user"])
        child = os.fork()
        if child:
            os.close(report_fd)
            say(f"child {child}")
            _, status = os.waitpid(child, 0)
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
    if job["confine"] or job["user"]:
        give_up_rights(job["user"])
    # Should preftune be killed, the program ends with it. After the change of user, which takes this setting away.
    _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    limit(job)
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    lacking.append(filter_calls(job["filter"]))
    say(f"running {json.dumps([text for text in lacking if text])}")
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    report = run(job)
    data = json.dumps(report).encode()
    while data:
        data = data[os.write(report_fd, data) :]
    os._exit(0)


if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        os._exit(1)
