"""Confinement of a process that parses untrusted media, on Linux and without root.

`confine` gives up, for the calling process and for good, what a decoder does not need. Each layer holds on its own:

    no_new_privileges  a set-user-id program that is executed gains nothing
    namespaces         a user and a network namespace of its own: no network interface, not even loopback
    capabilities       none, and none to be gained
    landlock           no file or device can be opened and no TCP port used but those that the caller names; no signal
                       or abstract socket reaches a process outside; no process outside can be traced
    seccomp            an allow-list of system calls: no exec, no new process, no ptrace, no socket (or none but of the
                       Internet), no executable memory

Descriptors that are open already stay usable; that is how a decoder gets its input and its shared memory. A kernel that
lacks a layer is not an error: `Posture` says which layers hold, and `require` refuses to go on without them. Everything
is done by system calls through ctypes, since the packages for Landlock and seccomp on the package index are younger
than the kernel interfaces that they wrap. The constants are from the kernel's user-space headers (linux/landlock.h,
linux/seccomp.h, linux/filter.h, asm/unistd.h). The process must have one thread. What is imported after `confine` fails
to load.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import json
import os
import pkgutil
import platform
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from index.errors import SandboxUnavailable

__all__ = ["LAYERS", "Posture", "confine", "filter_system_calls", "isolate", "load_submodules", "probe", "require"]

LAYERS = ("no_new_privileges", "namespaces", "capabilities", "landlock", "seccomp")
"""Names of the layers, in the order in which they are applied."""

_ESSENTIAL = frozenset({"no_new_privileges", "landlock", "seccomp"})
"""Layers that `require` asks for. The others add depth, and many containers forbid them."""


@dataclass(frozen=True, slots=True)
class Posture:
    """Which layers of confinement hold in a process."""

    layers: dict[str, str]
    """For each of `LAYERS` the empty string where it holds, else why it does not."""

    @property
    def missing(self) -> list[str]:
        """Names of the layers that do not hold."""
        return [name for name in LAYERS if self.layers.get(name, "was not applied")]

    @property
    def sufficient(self) -> bool:
        """Whether a process so confined reaches no file, no network and no other process."""
        return not _ESSENTIAL.intersection(self.missing)

    def __str__(self) -> str:
        if not self.missing:
            return "all layers hold: " + ", ".join(LAYERS)
        return "; ".join(f"{name}: {self.layers.get(name) or 'holds'}" for name in LAYERS)


def isolate(
    *,
    readable: Sequence[str | Path] = (),
    writable: Sequence[str | Path] = (),
    connect: Sequence[int] | None = None,
    devices: Sequence[str | Path] = (),
) -> Posture:
    """Confine the calling process by every layer but the filter of system calls; it cannot be undone.

    Args:
        readable: files and folders that may be opened for reading.
        writable: folders in which files and folders may be made, and files written and removed.
        connect: None for no network at all; else the network stays, and TCP connections go to these ports only.
        devices: device files that may be opened, read, written and controlled (`ioctl`).

    Returns:
        The layers that hold. Nothing is raised: a kernel without Landlock is no reason to decode without seccomp.
    """
    network = connect is not None
    return _applied(
        {
            "no_new_privileges": lambda: _prctl(_PR_SET_NO_NEW_PRIVS, 1),
            "namespaces": _keep_network if network else _leave_namespaces,
            "capabilities": _drop_capabilities,
            "landlock": lambda: _apply_landlock(readable, writable, connect, devices),
        }
    )


def load_submodules(package: ModuleType, *, but: Sequence[str] = ()) -> None:
    """Import every module below a package, for one that imports some of them late, which a confined process cannot.

    Args:
        package: the package, such as `av`.
        but: full names of modules to leave out.
    """
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if module.name not in but:
            importlib.import_module(module.name)


def filter_system_calls(*, network: bool = False, files: bool = False, devices: bool = False) -> Posture:
    """Add the filter of system calls. A process that was isolated may do this later, for instance after a fork.

    Args:
        network: allow the calls of sockets; Landlock still bounds where they lead.
        files: allow the calls that open files; Landlock still bounds which.
        devices: allow the calls that open and control a device; Landlock still bounds which.
    """
    return _applied({"seccomp": lambda: _apply_seccomp(network=network, files=files, devices=devices)})


def confine(
    *,
    readable: Sequence[str | Path] = (),
    writable: Sequence[str | Path] = (),
    connect: Sequence[int] | None = None,
) -> Posture:
    """`isolate`, then `filter_system_calls` to match: all layers at once."""
    isolated = isolate(readable=readable, writable=writable, connect=connect)
    filtered = filter_system_calls(network=connect is not None, files=bool(readable or writable))
    return Posture({**isolated.layers, **filtered.layers})


def _applied(steps: Mapping[str, Callable[[], None]]) -> Posture:
    layers: dict[str, str] = {}
    for name, step in steps.items():
        if sys.platform != "linux":
            layers[name] = f"exists on Linux only, this is {sys.platform}"
            continue
        try:
            step()
            layers[name] = ""
        except OSError as error:
            layers[name] = error.strerror or str(error)
    return Posture(layers)


def probe() -> Posture:
    """The layers that hold on this machine, tried in a process of their own."""
    root = str(Path(__file__).parents[2])
    run = subprocess.run(
        [sys.executable, "-P", "-m", "ingest.decoding.confinement"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([root, *[p for p in sys.path if p]])},
    )
    try:
        return Posture(json.loads(run.stdout))
    except ValueError:
        why = (run.stderr.strip().splitlines() or ["no message"])[-1]
        return Posture(dict.fromkeys(LAYERS, f"the trial ended with exit code {run.returncode}: {why}"))


def require(posture: Posture) -> None:
    """Raise SandboxUnavailable unless the layers that matter hold."""
    if not posture.sufficient:
        raise SandboxUnavailable(
            f"untrusted media cannot be decoded in a sandbox on this machine ({posture}); use Linux 5.13 or newer with "
            "Landlock enabled and a container profile that allows it, or leave out --require-sandbox"
        )


# ---- system calls ----------------------------------------------------------------------------------------------------

_PR_SET_NAME, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 15, 24, 38
_CLONE_THREAD, _CLONE_NEWUSER, _CLONE_NEWNET, _CLONE_NEWIPC = 0x00010000, 0x10000000, 0x40000000, 0x08000000
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # the same on every architecture
_LIBC = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _prctl(option: int, argument: int) -> None:
    _check(_LIBC.prctl(option, ctypes.c_ulong(argument), 0, 0, 0), "prctl")


def _keep_network() -> None:
    raise OSError(errno.ENOTSUP, "not applied, because the process needs the network")


def _leave_namespaces() -> None:
    if _LIBC.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC) < 0:
        _check(_LIBC.unshare(_CLONE_NEWNET | _CLONE_NEWIPC), "unshare")  # with CAP_SYS_ADMIN and no user namespaces


def _drop_capabilities() -> None:
    for capability in range(64):
        if _LIBC.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) < 0:
            break  # past the kernel's last one, or without the right to: then there is none to lose
    header = struct.pack("<Ii", 0x20080522, 0)  # version 3, this thread
    nothing = bytes(24)
    _check(_LIBC.capset(header, nothing), "capset")


# ---- Landlock --------------------------------------------------------------------------------------------------------

_FS_ALL = {1: 13, 2: 14, 3: 15, 5: 16}  # how many access rights of files each version of the interface knows
_FS_EXECUTE, _FS_WRITE, _FS_READ_FILE, _FS_READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_FS_REMOVE_FILE, _FS_MAKE_DIR, _FS_MAKE_REG, _FS_TRUNCATE, _FS_IOCTL_DEV = 1 << 5, 1 << 7, 1 << 8, 1 << 14, 1 << 15
_NET_BIND, _NET_CONNECT = 1 << 0, 1 << 1
_SCOPE_ABSTRACT_SOCKET, _SCOPE_SIGNAL = 1 << 0, 1 << 1
_RULE_PATH, _RULE_PORT = 1, 2


def _apply_landlock(
    readable: Sequence[str | Path],
    writable: Sequence[str | Path],
    connect: Sequence[int] | None,
    devices: Sequence[str | Path] = (),
) -> None:
    version = _check(_LIBC.syscall(_LANDLOCK_CREATE, None, 0, 1), "landlock")
    rights = max(count for since, count in _FS_ALL.items() if since <= version)
    handled = (1 << rights) - 1
    attributes = struct.pack("<Q", handled)
    if version >= 4:
        attributes += struct.pack("<Q", _NET_BIND | _NET_CONNECT)
    if version >= 6:
        attributes += struct.pack("<Q", _SCOPE_ABSTRACT_SOCKET | _SCOPE_SIGNAL)
    ruleset = _check(_LIBC.syscall(_LANDLOCK_CREATE, attributes, len(attributes), 0), "landlock_create_ruleset")
    try:
        read = _FS_READ_FILE | _FS_READ_DIR
        write = read | _FS_WRITE | _FS_REMOVE_FILE | _FS_MAKE_DIR | _FS_MAKE_REG | _FS_TRUNCATE
        control = _FS_READ_FILE | _FS_READ_DIR | _FS_WRITE | _FS_IOCTL_DEV
        for paths, access in ((readable, read), (writable, write), (devices, control)):
            for path in paths:
                _allow_path(ruleset, path, access & handled)
        for port in connect or ():
            if version >= 4:
                rule = struct.pack("<QQ", _NET_CONNECT, port)
                _check(_LIBC.syscall(_LANDLOCK_ADD, ruleset, _RULE_PORT, rule, 0), "landlock_add_rule")
        _check(_LIBC.syscall(_LANDLOCK_RESTRICT, ruleset, 0), "landlock_restrict_self")
    finally:
        os.close(ruleset)


def _allow_path(ruleset: int, path: str | Path, access: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not Path(path).is_dir():
            access &= _FS_READ_FILE | _FS_WRITE | _FS_TRUNCATE | _FS_EXECUTE | _FS_IOCTL_DEV
        rule = struct.pack("<Qi", access, descriptor)
        _check(_LIBC.syscall(_LANDLOCK_ADD, ruleset, _RULE_PATH, rule, 0), "landlock_add_rule")
    finally:
        os.close(descriptor)


# ---- seccomp ---------------------------------------------------------------------------------------------------------

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_LOAD, _JUMP_EQUAL, _JUMP_SET, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_PROT_EXEC = 4
_AF_NETLINK = 16  # socket.AF_NETLINK exists on Linux only

# (x86_64, aarch64); None where the architecture has no such call.
_MEMORY_AND_TIME: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "lseek": (8, 62), "munmap": (11, 215), "brk": (12, 214),
    "fstat": (5, 80), "newfstatat": (262, 79), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67), "readv": (19, 65), "writev": (20, 66), "mremap": (25, 216), "madvise": (28, 233),
    "poll": (7, None),
    "ppoll": (271, 73), "dup": (32, 23), "getpid": (39, 172), "gettid": (186, 178), "exit": (60, 93),
    "exit_group": (231, 94),
    "fcntl": (72, 25), "getrusage": (98, 165), "sysinfo": (99, 179), "times": (100, 153), "sigaltstack": (131, 132),
    "uname": (63, 160), "futex": (202, 98), "sched_yield": (24, 124), "sched_getaffinity": (204, 123),
    "set_robust_list": (273, 99), "set_tid_address": (218, 96), "rseq": (334, 293), "membarrier": (324, 283),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "nanosleep": (35, 101),
    "gettimeofday": (96, 169), "time": (201, None), "getrandom": (318, 278), "restart_syscall": (219, 128),
    "getcpu": (309, 168), "arch_prctl": (158, None), "get_mempolicy": (239, 236), "sched_getscheduler": (145, 120),
    "sched_getparam": (143, 121), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176),
    "getegid": (108, 177),
}  # fmt: skip
_FILES: dict[str, tuple[int | None, int | None]] = {
    "openat": (257, 56), "open": (2, None), "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439),
    "stat": (4, None), "lstat": (6, None), "statx": (332, 291), "readlink": (89, None), "readlinkat": (267, 78),
    "getdents64": (217, 61), "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276), "unlink": (87, None),
    "unlinkat": (263, 35), "ftruncate": (77, 46), "fsync": (74, 82), "fdatasync": (75, 83), "pwrite64": (18, 68),
    "getcwd": (79, 17), "fstatfs": (138, 44), "flock": (73, 32), "umask": (95, 166), "fadvise64": (221, 223),
    "mkdir": (83, None), "mkdirat": (258, 34),
}  # fmt: skip
_DEVICES: dict[str, tuple[int | None, int | None]] = {
    "openat": (257, 56), "open": (2, None), "access": (21, None), "faccessat": (269, 48), "stat": (4, None),
    "statx": (332, 291), "readlink": (89, None), "readlinkat": (267, 78), "getdents64": (217, 61), "ioctl": (16, 29),
    "eventfd2": (290, 19), "pipe2": (293, 59), "sched_setaffinity": (203, 122), "sched_get_priority_max": (146, 125),
    "sched_get_priority_min": (147, 126), "mlock": (149, 228), "munlock": (150, 229), "mincore": (27, 232),
    "mbind": (237, 235), "set_mempolicy": (238, 237), "epoll_create1": (291, 20), "epoll_ctl": (233, 21),
    "epoll_wait": (232, None), "epoll_pwait": (281, 22),
}  # fmt: skip
_NETWORK: dict[str, tuple[int | None, int | None]] = {
    "connect": (42, 203), "sendto": (44, 206), "recvfrom": (45, 207), "sendmsg": (46, 211),
    "recvmsg": (47, 212), "sendmmsg": (307, 269), "recvmmsg": (299, 243), "shutdown": (48, 210), "bind": (49, 200),
    "getsockname": (51, 204), "getpeername": (52, 205), "setsockopt": (54, 208), "getsockopt": (55, 209),
    "listen": (50, 201),
    "accept4": (288, 242), "select": (23, None), "pselect6": (270, 72), "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_wait": (232, None), "epoll_pwait": (281, 22), "eventfd2": (290, 19), "pipe2": (293, 59), "ioctl": (16, 29),
}  # fmt: skip
_LOUD: dict[str, tuple[int | None, int | None]] = {
    "execve": (59, 221), "execveat": (322, 281), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "fork": (57, None), "vfork": (58, None), "mount": (165, 40), "unshare": (272, 97),
    "setns": (308, 268), "bpf": (321, 280), "init_module": (175, 105), "kexec_load": (246, 104),
    "pidfd_getfd": (438, 438),
    "io_uring_setup": (425, 425), "userfaultfd": (323, 282), "perf_event_open": (298, 241), "keyctl": (250, 219),
}  # fmt: skip
_CHECKED: dict[str, tuple[int, int]] = {
    "mmap": (9, 222), "mprotect": (10, 226), "clone": (56, 220), "clone3": (435, 435), "tgkill": (234, 131),
    "prlimit64": (302, 261), "prctl": (157, 167), "socket": (41, 198),
}  # fmt: skip


def _apply_seccomp(*, network: bool, files: bool, devices: bool = False) -> None:
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOTSUP, f"seccomp: no list of system calls for {machine}")
    program = _program(machine, network=network, files=files, devices=devices)
    buffer = ctypes.create_string_buffer(program, len(program))
    filter_ = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    number = {"x86_64": 317, "aarch64": 277}[machine]
    _check(_LIBC.syscall(number, 1, 1, filter_), "seccomp")  # SECCOMP_SET_MODE_FILTER for all threads


def _program(machine: str, *, network: bool, files: bool, devices: bool) -> bytes:
    """The filter: instructions of classic BPF, 8 bytes each. Offsets: 0 the call, 4 the architecture, 16 + 8 n argument
    n."""
    column = 0 if machine == "x86_64" else 1
    out: list[tuple[int, int, int, int]] = []

    def load(offset: int) -> None:
        out.append((_LOAD, 0, 0, offset))

    def answer(value: int) -> None:
        out.append((_RETURN, 0, 0, value))

    def when(test: int, value: int, result: int) -> None:
        """Return `result` where the loaded word passes `test` against `value`."""
        out.append((test, 0, 1, value))
        answer(result)

    load(4)
    out.append((_JUMP_EQUAL, 1, 0, _ARCHITECTURES[machine]))
    answer(_KILL)
    load(0)
    if column == 0:
        when(_JUMP_AT_LEAST, 0x40000000, _KILL)  # the x32 interface has numbers of its own
    allowed = {
        **_MEMORY_AND_TIME,
        **(_FILES if files else {}),
        **(_NETWORK if network else {}),
        **(_DEVICES if devices else {}),
    }
    for numbers in allowed.values():
        if numbers[column] is not None:
            when(_JUMP_EQUAL, int(numbers[column] or 0), _ALLOW)
    for numbers in _LOUD.values():
        if numbers[column] is not None:
            when(_JUMP_EQUAL, int(numbers[column] or 0), _KILL)

    def checked(name: str, *rules: tuple[int, int, int, int], otherwise: int) -> None:
        """For one system call: (argument, test, value, result) in order, else `otherwise`."""
        body = 3 * len(rules) + 1
        out.append((_JUMP_EQUAL, 0, body, _CHECKED[name][column]))
        for argument, test, value, result in rules:
            load(16 + 8 * argument)
            when(test, value, result)
        answer(otherwise)

    refused = _ERRNO | errno.EPERM
    checked("mmap", (2, _JUMP_SET, _PROT_EXEC, refused), otherwise=_ALLOW)
    checked("mprotect", (2, _JUMP_SET, _PROT_EXEC, refused), otherwise=_ALLOW)
    checked("clone", (0, _JUMP_SET, _CLONE_THREAD, _ALLOW), otherwise=_KILL)
    checked("clone3", otherwise=_ERRNO | errno.ENOSYS)  # its flags lie behind a pointer; libc then uses clone
    checked("tgkill", (0, _JUMP_EQUAL, os.getpid(), _ALLOW), otherwise=refused)
    checked("prlimit64", (2, _JUMP_EQUAL, 0, _ALLOW), otherwise=refused)
    checked("prctl", (0, _JUMP_EQUAL, _PR_SET_NAME, _ALLOW), otherwise=refused)
    if network:  # the C library asks for its addresses by netlink; no Unix socket, whose path Landlock does not see
        families = (socket.AF_INET, socket.AF_INET6, _AF_NETLINK)
        checked("socket", *((0, _JUMP_EQUAL, int(family), _ALLOW) for family in families), otherwise=refused)
    answer(refused)
    return b"".join(struct.pack("HBBI", *instruction) for instruction in out)


if __name__ == "__main__":
    print(json.dumps(confine().layers))  # noqa: T201
