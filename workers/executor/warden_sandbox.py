"""The warden's part of the sandbox: the last steps of a child before it turns into bubblewrap, and reading what that says."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import signal
from collections.abc import Iterable
from typing import Any

from workers.executor import logfile, procfs
from workers.executor.programs import require_program

MAX_FILES = 65_536
_FIRST_SIGNAL_CODE = 128
_NOT_MADE = 1
"""Bubblewrap's status when it fails, as of many a program."""
_MAX_SAID = 500


def enter(spec: dict[str, Any], program: str, status_fd: int) -> tuple[list[str], dict[str, str]]:
    """Return bubblewrap's command line and environment for a program, with the descriptors it names open.

    Only for a child to be, whose limits it sets. Raises OSError when the program is none: bubblewrap would hand an unknown
    file to a shell.
    """
    if "=" in program:
        # env(1) would take it for a variable.
        raise OSError(errno.EINVAL, "the path of a program in a sandbox may not hold the character '='")
    require_program(program)
    sandbox, env = spec["sandbox"], spec["env"]
    for group in sandbox["groups"]:
        _join(group)
    _set_limits(sandbox)
    if sandbox["uid"] is not None:
        # Its own pipes, so that it may open /dev/stdout and /dev/stderr once more.
        for fd in (1, 2):
            os.fchown(fd, sandbox["uid"], sandbox["uid"])
    filter_fd = os.open(sandbox["filter"], os.O_RDONLY)
    people_fd = os.memfd_create("passwd")
    os.write(people_fd, sandbox["people"].encode())
    os.lseek(people_fd, 0, os.SEEK_SET)
    for fd in (filter_fd, people_fd, status_fd):
        os.set_inheritable(fd, True)
    bwrap, *options = sandbox["options"]
    handed = ["--seccomp", str(filter_fd), "--json-status-fd", str(status_fd)]
    # First of the mounts, since the last of them make the tree read-only.
    handed += ["--perms", "0755", "--dir", "/etc", "--perms", "0444", "--ro-bind-data", str(people_fd), "/etc/passwd"]
    # The job's own variables come last of all: an LD_PRELOAD of its must not reach a program that stands outside.
    variables = [f"{name}={value}" for name, value in env.items()]
    inside = [*sandbox["inside"], sandbox["env"], "-i", "--", *variables, program, *spec["argv"][1:]]
    return [bwrap, *handed, *options, "--", *inside], {procfs.MARKER: env[procfs.MARKER], "LANG": "C.UTF-8"}


def _join(group: str) -> None:
    """Put the calling process into a control group, and so all that it will start."""
    try:
        fd = os.open(f"{group}/cgroup.procs", os.O_WRONLY)
        try:
            os.write(fd, b"0")
        finally:
            os.close(fd)
    except OSError as error:
        raise OSError(errno.EIO, f"its control group cannot be entered ({error.strerror}: {group})") from error


def remove_groups(parents: Iterable[str]) -> None:
    """Remove control groups and those in them, of which all processes have ended; what cannot be removed stays."""
    for parent in parents:
        with contextlib.suppress(OSError), os.scandir(parent) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    with contextlib.suppress(OSError):
                        os.rmdir(entry.path)
        with contextlib.suppress(OSError):
            os.rmdir(parent)


def _set_limits(sandbox: dict[str, Any]) -> None:
    """Bound the child's open files and the size of each file; the number of its processes is set inside."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if sandbox["file_limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (sandbox["file_limit"], sandbox["file_limit"]))


class Report:
    """What a sandbox has said so far, as lines of JSON."""

    __slots__ = ("_text", "init")

    def __init__(self) -> None:
        self._text = b""
        self.init = 0
        """The id, outside, of the first process in its process namespace; 0 as long as there is none."""

    def takes(self, data: bytes) -> bool:
        """Whether this is more of it, and neither its end nor the error of a child that did not get as far."""
        return bool(data) and (bool(self._text) or data.startswith(b"{"))

    def add(self, data: bytes) -> bool:
        """Take more; return whether the sandbox has come to be with this."""
        self._text += data
        if self.init or b"\n" not in self._text:
            return False
        self.init = int(json.loads(self._text.split(b"\n", 1)[0]).get("child-pid", 0))
        return self.init > 0

    def failure(self, status: int, log: logfile.BoundedLog | None) -> bytes:
        """Return why there was no sandbox, if bubblewrap's status says so, in the words that it left in the log."""
        if b'"exit-code"' in self._text or not os.WIFEXITED(status) or os.WEXITSTATUS(status) != _NOT_MADE:
            return b""
        return f"the sandbox could not be made: {_last_words(log.path) if log else ''}".encode()


def true_status(status: int) -> int:
    """Return the status of the job for that of bubblewrap, which like a shell turns a deadly signal into 128 and its number."""
    number = os.WEXITSTATUS(status) - _FIRST_SIGNAL_CODE if os.WIFEXITED(status) else 0
    return number if number in signal.valid_signals() else status


def _last_words(path: str) -> str:
    """Return the end of a log, on one line."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _MAX_SAID))
        return " ".join(file.read().decode("utf-8", "replace").split())
    return ""
