"""Which system calls a program in the sandbox may not make, as a filter that the kernel runs (seccomp BPF).

Namespaces and resource limits do not cover them: memory that no limit counts (System V and POSIX IPC, memfd, pages held
by pipes), kernel keyrings, sockets of other families than the internet's, the kernel's log, and what is used to break
out (new namespaces, BPF, io_uring, ptrace, mounts). Everything else passes. Numbers of system calls differ by
architecture: those of x86-64 and AArch64 are known here, elsewhere there is no filter, and the sandbox says so.
"""

from __future__ import annotations

import errno
import platform
import struct

# <linux/bpf_common.h>, <linux/seccomp.h>, <linux/audit.h>
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_OTHER_ABI = 0x40000000
"""Bit of the x32 calls of an x86-64 kernel."""
_NEW_NAMESPACES = 0x7E020080
"""CLONE_NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET."""
_UNIX, _INET, _INET6 = 1, 2, 10

ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""Machine to its number in the kernel's audit interface and its column below."""

REFUSED: dict[str, tuple[int, int]] = {
    # memory that RLIMIT_AS does not count, and that may outlive the program
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195),
    "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192),
    "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187),
    "mq_open": (240, 180), "mq_unlink": (241, 181),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "vmsplice": (278, 75), "io_setup": (206, 0),
    # keyrings
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    # what others do, and what the kernel tells of the machine
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "syslog": (103, 116), "perf_event_open": (298, 241), "fanotify_init": (300, 262),
    "lookup_dcookie": (212, 18),
    # ways out
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "bpf": (321, 280), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "sethostname": (170, 161), "setdomainname": (171, 162),
}  # fmt: skip
"""System call to its number on x86-64 and on AArch64."""
SOCKET, SOCKETPAIR, CLONE, CLONE3 = (41, 198), (53, 199), (56, 220), (435, 435)
KEYCTL = REFUSED["keyctl"]


def number_of(call: tuple[int, int]) -> int | None:
    """Number of a system call on this machine; None where it is not known."""
    known = ARCHITECTURES.get(platform.machine())
    return call[known[1]] if known else None


def filter_of(network: bool) -> bytes | None:
    """The filter for this machine, as the kernel takes it (struct sock_filter each); None where there is none.

    network: let sockets of every family pass, for a program that may use the network anyway.
    """
    known = ARCHITECTURES.get(platform.machine())
    if known is None:
        return None
    architecture, column = known
    lines = [
        _line(_LOAD, _ARCHITECTURE), _line(_EQUAL, architecture, 1, 0), _line(_RETURN, _KILL),
        _line(_LOAD, _NUMBER), _line(_AT_LEAST, _OTHER_ABI, 0, 1), _refusal(errno.ENOSYS),
    ]  # fmt: skip
    for call in REFUSED.values():
        lines += [_line(_EQUAL, call[column], 0, 1), _refusal(errno.EPERM)]
    # Its flags lie in memory, which a filter cannot see; libraries fall back to clone, whose flags it sees.
    lines += [_line(_EQUAL, CLONE3[column], 0, 1), _refusal(errno.ENOSYS)]
    lines += [_line(_EQUAL, CLONE[column], 0, 4), _line(_LOAD, _FIRST_ARGUMENT), _line(_ANY_BIT, _NEW_NAMESPACES, 0, 1),
              _refusal(errno.EPERM), _line(_RETURN, _ALLOW)]  # fmt: skip
    for call, families in ((SOCKET, (_UNIX, _INET, _INET6)), (SOCKETPAIR, (_UNIX,))):
        if not network:
            checks = [_line(_EQUAL, family, len(families) - place, 0) for place, family in enumerate(families)]
            lines += [_line(_EQUAL, call[column], 0, len(checks) + 3), _line(_LOAD, _FIRST_ARGUMENT), *checks,
                      _refusal(errno.EAFNOSUPPORT), _line(_RETURN, _ALLOW)]  # fmt: skip
    return b"".join([*lines, _line(_RETURN, _ALLOW)])


def _line(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One instruction; `if_true` and `if_false` are how many of the next ones a jump leaves out."""
    return struct.pack("HBBI", code, if_true, if_false, value)


def _refusal(code: int) -> bytes:
    return _line(_RETURN, _ERRNO | code)
