"""The launcher of every Postgres program, run as a script: `python -I -S launcher.py …`.

It switches to the right user, arranges to be stopped when its parent dies, and then executes the program. It is a process
of its own because code between fork and exec is not safe in a process that has threads. It runs at every start of Postgres,
so it imports little (imports take most of the time), and nothing of this project.
"""

import ctypes
import os
import signal
import sys

_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1


def _alias(uid: int, gid: int) -> None:
    """Enter a user namespace in which root is `uid`: the exec that follows drops root's capabilities. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    texts = {"setgroups": "deny", "uid_map": f"{uid} {os.geteuid()} 1", "gid_map": f"{gid} {os.getegid()} 1"}
    if libc.unshare(_CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "user namespaces are not allowed here")
    for name, text in texts.items():
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def launch(parent: int, at_death: int, kind: str, uid: int, gid: int, folder: str, *program: str) -> None:
    """Execute `program` in `folder` as the account `kind`, `uid`, `gid`; it gets the signal `at_death` when `parent` dies."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # inherited, it may be ignored or raise KeyboardInterrupt
    if kind == "user":
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    elif kind == "alias":
        _alias(uid, gid)
    if sys.platform == "linux":  # after the change of user, which would clear it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, at_death)
    if os.getppid() != parent:  # it died before prctl took effect
        sys.exit(1)
    os.chdir(folder)
    os.execv(program[0], program)


if __name__ == "__main__":
    try:
        launch(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), *sys.argv[6:])
    except OSError as error:
        sys.exit(str(error))
