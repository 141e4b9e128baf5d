"""`python -m tests.support.without_landlock COMMAND...` runs a command as on a kernel that has no Landlock.

A seccomp filter answers landlock_create_ruleset with ENOSYS; everything else is as it is.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

_LANDLOCK_CREATE_RULESET = 444
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ERRNO, _ALLOW = 0x00050000, 0x7FFF0000


def main() -> None:
    """Install the filter and become the command."""
    program = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (_LOAD, 0, 0, 0),
            (_JUMP_EQUAL, 0, 1, _LANDLOCK_CREATE_RULESET),
            (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
            (_RETURN, 0, 0, _ALLOW),
        )
    )
    buffer = ctypes.create_string_buffer(program, len(program))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    if libc.prctl(22, 2, struct.pack("HxxxxxxP", 4, ctypes.addressof(buffer)), 0, 0):  # PR_SET_SECCOMP
        raise OSError(ctypes.get_errno(), "seccomp")
    os.execv(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
