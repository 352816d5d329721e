"""Finding the program that a job names."""

from __future__ import annotations

import contextlib
import errno
import os


def find_program(name: str, path: str, cwd: str) -> str:
    """Return the file to execute; raises FileNotFoundError or PermissionError with a sentence in ``strerror``."""
    if "/" in name:
        full = os.path.join(cwd, name)
        if not os.path.exists(full):
            raise FileNotFoundError(
                errno.ENOENT, f"there is no file {name!r} in the job's working folder or on the node"
            )
        if os.path.isdir(full) or not os.access(full, os.X_OK):
            raise PermissionError(errno.EACCES, f"{name!r} is not an executable file")
        return full
    for folder in path.split(":"):
        full = os.path.join(folder, name)
        if folder and os.access(full, os.X_OK) and not os.path.isdir(full):
            return full
    raise FileNotFoundError(errno.ENOENT, f"the node has no command {name!r} in the job's PATH")


def require_program(path: str) -> None:
    """Raise OSError when a file is neither a program nor a script whose interpreter is there, as execve would."""
    with contextlib.suppress(PermissionError), open(path, "rb") as file:
        first = file.readline(4096)
        if first.startswith(b"#!"):
            words = first[2:].split()
            if not words or not os.path.exists(words[0]):
                raise OSError(errno.ENOENT, "")
        elif not first.startswith(b"\x7fELF"):
            raise OSError(errno.ENOEXEC, "")
