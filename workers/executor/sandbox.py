"""The sandbox that job processes run in: bubblewrap's command line for one attempt.

A job sees a small, read-only tree made of what the node is willing to show (``_SYSTEM``, the Python environment, what its
pool adds, its data sets) with its own folders in it, at the same paths as outside so that no ``SUANLI_*`` variable changes.
What is not named does not exist in it: other attempts, the agent's state, Ray's files, people's homes.

Run by root, bubblewrap needs no user namespace, and each attempt gets a user id of its own that nobody else has. Run by
anybody else it makes a user namespace, and only the namespaces stand between two attempts.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from workers.executor import seccomp
from workers.executor.folders import PARTS
from workers.executor.isolation import Isolation, Network, Tier, tier_on
from workers.executor.packages import Install, installer_environment, run_installer
from workers.executor.types import Launch

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
_ETC = (
    *(
        "alternatives",
        "ca-certificates",
        "fonts",
        "gai.conf",
        "group",
        "host.conf",
        "hosts",
        "ld.so.cache",
        "ld.so.conf",
    ),
    *(
        "ld.so.conf.d",
        "localtime",
        "magic",
        "matplotlibrc",
        "mime.types",
        "nsswitch.conf",
        "OpenCL",
        "pki",
        "protocols",
    ),
    *("R", "services", "ssl/certs", "ssl/openssl.cnf", "timezone"),
)
_HARDWARE = ("/sys/devices/system/cpu", "/sys/devices/system/node")
_GPU_CONTROL = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset", "nvidia-caps")
_TMP_BYTES = 256 << 20
_SHM_BYTES = 1 << 30
_PLAIN_UID = 1000
"""Of a job, as it sees itself, where there are no more ids than the executor's own."""
_UIDS = (1_900_000_000, 100_000_000)
_FEW_UIDS = (40_000, 19_999)
"""First id and number of ids: unused by system, people, subordinate ids and containers; in a container, below its nobody."""
_PROBE_S = 20
_ASK = """
import importlib.util, json, sys
found = [importlib.util.find_spec(name) for name in ("algorithms", "artifacts", "protos", "suanli")]
ours = [place for spec in found if spec for place in spec.submodule_search_locations or ()]
print(json.dumps([sys.prefix, sys.base_prefix, *(p for p in sys.path if p.endswith("-packages")), *ours]))
"""


class Sandbox:
    """What one node has of it. ``prepare`` first; everything else is cheap.

    ``masked``: folders and files that stay hidden even below a folder that a pool shows to its jobs.
    """

    def __init__(self, root: Path, masked: Iterable[str] = ()) -> None:
        self._root = root
        self._masked = [os.path.realpath(path) for path in (str(root), *masked)]
        self._filter = root / "seccomp.bpf"
        self._shown: list[str] = []
        self._programs: dict[str, str] = {}
        self._own_uids = os.geteuid() == 0
        self._uids = _UIDS if _is_mapped(sum(_UIDS)) else _FEW_UIDS
        self.problem = "it has not been tried yet"
        """Why there is no sandbox on this node, as a part of a sentence; empty when there is one."""

    def prepare(self) -> None:
        """Find out whether it works here, by trying; blocks for a fraction of a second."""
        self.problem = self._prepare()

    def _prepare(self) -> str:
        for name in ("bwrap", "prlimit", "env", *(("setpriv",) if self._own_uids else ())):
            found = shutil.which(name)
            if found is None:
                package = {"bwrap": "bubblewrap", "env": "coreutils"}.get(name, "util-linux")
                return f"the program {name} is not on the PATH of the node's Ray: install the package {package}"
            self._programs[name] = found
        try:
            self._filter.write_bytes(seccomp.program())
            asked = subprocess.run(
                [sys.executable, "-c", _ASK], capture_output=True, check=True, cwd="/", env={}, timeout=_PROBE_S
            )
            executable = os.path.dirname(os.path.realpath(sys.executable))
            self._shown = _outermost([*_SYSTEM, *json.loads(asked.stdout), executable, sys.prefix])
            with self._filter.open("rb") as program:
                options = ["--seccomp", str(program.fileno()), *self._view(Isolation(), ()), *self._walls(False)]
                tried = subprocess.run(
                    [self._programs["bwrap"], *options, "--", *self._inside(self._uid(0), 64), "/bin/sh", "-c", ":"],
                    pass_fds=[program.fileno()],
                    capture_output=True,
                    check=False,
                    text=True,
                    timeout=_PROBE_S,
                )
        except seccomp.SeccompUnavailableError as error:
            return f"there is no libseccomp ({error}): install the package libseccomp2"
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            return f"trying it failed: {error}"
        if tried.returncode == 0:
            return ""
        said = " ".join(tried.stderr.split())[-300:] or f"status {tried.returncode}"
        return (
            f"bubblewrap cannot make one ({said}): allow user namespaces on the node (sysctl user.max_user_namespaces, "
            "kernel.unprivileged_userns_clone, AppArmor's userns rule), in a container also mounts, or run the node's Ray as root"
        )

    def problem_with(self, launch: Launch) -> str | None:
        """Return a sentence saying why the launch cannot have the isolation it must have, or None."""
        isolation = launch.isolation
        tier = tier_on(isolation, self.problem)
        if tier is None:
            return f"the pool's jobs must run in a sandbox, and this node has none: {self.problem}"
        if tier is Tier.PROCESS and launch.isolated:
            return "the job's data may only be where jobs are kept apart, and this node's jobs run without a sandbox"
        if tier is Tier.SANDBOX and isolation.network is Network.NONE and launch.world_size > 1:
            return "the pool gives its jobs no network, which the ranks of a gang need to meet"
        return None

    def wraps(self, launch: Launch) -> bool:
        """Whether a launch runs in a sandbox."""
        return tier_on(launch.isolation, self.problem) is Tier.SANDBOX

    def uid_for(self, launch: Launch, number: int) -> int | None:
        """Return the user id of the ``number``-th attempt's own; None where it runs as the executor's user."""
        return self._uid(number) if self._own_uids and self.wraps(launch) else None

    def _uid(self, number: int) -> int:
        if not self._own_uids:
            return _PLAIN_UID
        first, count = self._uids
        return first + number % count

    def spec(self, launch: Launch, folder: str, number: int, env: dict[str, str]) -> dict[str, Any]:
        """Return what the warden needs to start the launch in a sandbox; changes what ``env`` says of GPUs."""
        isolation = launch.isolation
        uid = self._uid(number)
        devices = _gpu_devices(launch.gpu_indices)
        if devices:
            # CUDA counts only what it can open, from 0.
            env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(len(launch.gpu_indices))))
        networked = isolation.network is Network.HOST or (isolation.network is Network.GANGS and launch.world_size > 1)
        shown = [*isolation.extra_read_only, *launch.data_dirs.values()]
        venv = env.get("VIRTUAL_ENV", "")
        if launch.packages and venv:
            shown.append(venv)
        options = self._view(isolation, shown, folder, launch.memory_mib)
        if devices:
            options += ["--ro-bind", "/sys", "/sys"]
            for device in devices:
                options += ["--dev-bind", device, device]
        options += _parents([f"{folder}/work"])
        for name in PARTS:
            options += ["--bind", f"{folder}/{name}", f"{folder}/{name}"]
        if launch.data_dirs:
            options += ["--ro-bind", f"{folder}/data", f"{folder}/data"]
        if launch.parameters_json is not None:
            options += ["--ro-bind", f"{folder}/parameters.json", f"{folder}/parameters.json"]
        if networked:
            options += ["--ro-bind-try", "/etc/resolv.conf", "/etc/resolv.conf"]
        options += ["--chdir", f"{folder}/work"]
        people = f"root:x:0:0::/:/bin/false\njob:x:{uid}:{uid}::{folder}/home:/bin/sh\n"
        return {
            "options": [self._programs["bwrap"], *options, *self._walls(networked)],
            "inside": self._inside(uid, isolation.processes),
            "filter": str(self._filter),
            "people": people,
            "env": self._programs["env"],
            "uid": uid if self._own_uids else None,
            "file_limit": isolation.disk_mib << 20,
        }

    def installer(self, launch: Launch) -> Install | None:
        """Return how packages of a launch are installed in a sandbox of its own, with the network; None: without one."""
        if not self.wraps(launch):
            return None
        return lambda argv, folder: self._install(argv, folder, launch.isolation)

    def _install(self, argv: list[str], folder: Path, isolation: Isolation) -> None:
        # The last id of the range: no attempt that comes before a hundred million others has it.
        uid = self._uid(-1)
        env = installer_environment(folder, os.environ)
        env = {**env, "HOME": f"{folder}/home", "TMPDIR": f"{folder}/home", "LANG": "C.UTF-8"}
        (folder / "home").mkdir()
        options = [*self._view(isolation, isolation.extra_read_only), *_parents([str(folder)])]
        options += ["--bind", str(folder), str(folder), "--chdir", str(folder)]
        for path in ("/etc/resolv.conf", "/etc/pip.conf", "/etc/passwd"):
            options += ["--ro-bind-try", path, path]
        inside = [*self._inside(uid, isolation.processes), self._programs["env"], "-i", "--"]
        inside += [f"{name}={value}" for name, value in env.items()]
        if self._own_uids:
            _give(folder, uid)
        with self._filter.open("rb") as program:
            command = [self._programs["bwrap"], "--seccomp", str(program.fileno()), *options, *self._walls(True)]
            run_installer([*command, "--", *inside, *argv], folder, {"LANG": "C.UTF-8"}, (program.fileno(),))
        if self._own_uids:
            _give(folder, os.geteuid())
        shutil.rmtree(folder / "home", ignore_errors=True)

    def _view(self, isolation: Isolation, shown: Iterable[str], folder: str = "", memory_mib: int = 0) -> list[str]:
        """The read-only tree, and the places that are empty at each start."""
        options = _parents(["/etc/passwd", "/etc/ssl/certs", *_HARDWARE])
        wanted = [*self._shown, *shown]
        paths = _outermost(wanted)
        attempt_tmp = bool(folder) and not any(_within(path, "/tmp") for path in (*paths, folder))  # noqa: S108
        if attempt_tmp:
            options += ["--bind", f"{folder}/tmp", "/tmp"]  # noqa: S108
        else:
            options += ["--perms", "1777", "--size", str(_TMP_BYTES), "--tmpfs", "/tmp"]  # noqa: S108
        options += _parents(paths)
        for path in paths:
            options += ["--symlink", os.readlink(path), path] if _is_system_link(path) else ["--ro-bind", path, path]
        for name in _ETC:
            options += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
        for path in _HARDWARE:
            options += ["--ro-bind-try", path, path]
        options += self._hide(paths, wanted)
        shm = (memory_mib << 20) or _SHM_BYTES
        options += ["--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--size", str(shm), "--tmpfs", "/dev/shm"]  # noqa: S108
        return options

    def _hide(self, paths: Iterable[str], wanted: Iterable[str]) -> list[str]:
        """Cover what is masked and would be seen below one of ``paths``, but for what is ``wanted`` below it by its own name."""
        options: list[str] = []
        for path in paths:
            real = os.path.realpath(path)
            for mask in self._masked:
                if not _within(mask, real) or not os.path.exists(mask):
                    continue
                place = path + mask[len(real) :]
                if not os.path.isdir(mask):
                    options += ["--ro-bind", os.devnull, place]
                    continue
                options += ["--tmpfs", place]
                for one in _outermost(one for one in wanted if _within(one, place) and one != place):
                    options += [*_parents([one]), "--ro-bind", one, one]
        return options

    def _walls(self, networked: bool) -> list[str]:
        # Read-only for a plain user's jobs; those of root's are other users than the owner of these folders anyway.
        options = ["--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try", "--new-session"]
        options += ["--die-with-parent", "--cap-drop", "ALL", "--remount-ro", "/dev", "--remount-ro", "/"]
        if not networked:
            options.append("--unshare-net")
        if self._own_uids:
            return [*options, "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP"]
        return [*options, "--unshare-user", "--uid", str(_PLAIN_UID), "--gid", str(_PLAIN_UID)]

    def _inside(self, uid: int, processes: int) -> list[str]:
        """The programs that turn into the job: they count its processes and, for root, give up being root."""
        inside = [self._programs["prlimit"], f"--nproc={processes}:{processes}", "--"]
        if self._own_uids:
            inside += [self._programs["setpriv"], f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
            inside += ["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--"]
        return inside


def hand_over(folder: Path, uid: int | None, deep: bool) -> None:
    """Give an attempt's folders to its own user, if it has one, with what is in them if ``deep``; raises OSError."""
    if uid is None:
        return
    for name in PARTS:
        if deep:
            _give(folder / name, uid)
        else:
            os.chown(folder / name, uid, uid, follow_symlinks=False)
    with contextlib.suppress(FileNotFoundError):
        os.chown(folder / "parameters.json", uid, uid, follow_symlinks=False)


def _give(folder: Path, uid: int) -> None:
    os.chown(folder, uid, uid, follow_symlinks=False)
    for base, folders, files in os.walk(folder):
        for one in (*folders, *files):
            os.chown(os.path.join(base, one), uid, uid, follow_symlinks=False)


def _gpu_devices(indices: Sequence[int]) -> list[str]:
    """The device files of GPUs by the driver's numbers; none where the GPUs are only declared."""
    own = [f"/dev/nvidia{index}" for index in indices]
    if not own or not all(map(os.path.exists, own)):
        return []
    return own + [path for name in _GPU_CONTROL if os.path.exists(path := f"/dev/{name}")]


def _is_mapped(uid: int) -> bool:
    """Whether this process's user namespace has a user id at all."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        ranges = [tuple(map(int, line.split())) for line in file]
    return any(first <= uid < first + count for first, _, count in ranges)


def _is_system_link(path: str) -> bool:
    return path in _SYSTEM and os.path.islink(path)


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _parents(paths: Iterable[str]) -> list[str]:
    """Options that make the folders above paths, for everybody to pass; bubblewrap would make them for the first user alone."""
    folders = sorted({str(parent) for path in paths for parent in Path(path).parents} - {"/"})
    return [word for folder in folders for word in ("--perms", "0755", "--dir", folder)]


def _outermost(paths: Iterable[str]) -> list[str]:
    """The paths that exist, without those that lie below another."""
    kept: list[str] = []
    for path in sorted({os.path.normpath(one) for one in paths}):
        # A data set or a folder to be shown is never the whole machine.
        if path != "/" and os.path.lexists(path) and not any(_within(path, one) for one in kept):
            kept.append(path)
    return kept
