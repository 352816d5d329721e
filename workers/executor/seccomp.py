"""The system calls that a sandboxed job is refused: a filter for bubblewrap, made by libseccomp.

Everything else is allowed: scientific programs use most of what is left, and what they may do with it is bounded by the
namespaces, the capabilities they lack and the files they see. Refused is what reaches the kernel's rarely used and
privileged parts, which have been the way out of sandboxes before; the list follows that of Docker and of Flatpak.
"""

from __future__ import annotations

import errno
import importlib
import socket
import tempfile
from typing import Any

DENIED = (
    # Mounts and new namespaces: with a user namespace of its own a job would have every capability within it.
    *("mount", "umount", "umount2", "pivot_root", "chroot", "unshare", "setns", "mount_setattr", "move_mount"),
    *("open_tree", "fsopen", "fsconfig", "fsmount", "fspick"),
    # Other processes, and files by handle instead of by path.
    *("ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd"),
    *("open_by_handle_at", "name_to_handle_at"),
    # The kernel itself.
    *("bpf", "perf_event_open", "userfaultfd", "kexec_load", "kexec_file_load", "init_module", "finit_module"),
    *("delete_module", "reboot", "swapon", "swapoff", "acct", "quotactl", "syslog", "lookup_dcookie", "vhangup"),
    *("iopl", "ioperm", "nfsservctl", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex"),
    # Keys are kept per user, not per namespace. io_uring carries out calls that no filter sees.
    *("keyctl", "add_key", "request_key", "io_uring_setup", "io_uring_enter", "io_uring_register"),
)
_NEW_NAMESPACES = (0x00000080, 0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
"""Flags of clone(2): time, mount, cgroup, uts, ipc, user, pid, net."""
_FAMILIES = frozenset({socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK})
"""Others reach past the network namespace (AF_VSOCK: the hypervisor) or into seldom used code of the kernel (AF_ALG)."""
_TIOCSTI = 0x5412
"""Puts characters into the input of a terminal."""


class SeccompUnavailableError(Exception):
    """There is no libseccomp on this machine."""


def program() -> bytes:
    """Return the filter as a program for this machine's kernel; raises SeccompUnavailableError."""
    try:
        seccomp: Any = importlib.import_module("pyseccomp")
    except (ImportError, RuntimeError, OSError) as error:
        raise SeccompUnavailableError(str(error)) from error
    rules = seccomp.SyscallFilter(seccomp.ALLOW)
    refused = seccomp.ERRNO(errno.EPERM)
    for name in DENIED:
        # A call that this machine's architecture does not have, or that its libseccomp is too old to know.
        if seccomp.resolve_syscall(seccomp.Arch.NATIVE, name) >= 0:
            rules.add_rule(refused, name)
    for flag in _NEW_NAMESPACES:
        rules.add_rule(refused, "clone", seccomp.Arg(0, seccomp.MASKED_EQ, flag, flag))
    # Its flags lie in memory, where no filter can look; C libraries take clone instead when they are told it is not there.
    rules.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
    rules.add_rule(refused, "ioctl", seccomp.Arg(1, seccomp.MASKED_EQ, 0xFFFFFFFF, _TIOCSTI))
    most = max(_FAMILIES)
    rules.add_rule(refused, "socket", seccomp.Arg(0, seccomp.GT, most))
    for family in set(range(most)) - _FAMILIES:
        rules.add_rule(refused, "socket", seccomp.Arg(0, seccomp.EQ, family))
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()
