"""Ray jobs on a node: the supervisor in front of the job's command, the token, and the short way to Ray's folder.

The supervisor (``suanli.ray_job``) runs with the job's rights, inside the job's walls. It is told the token by a file in the job's own home:
a command line can be read by everybody on the node, and that of a sandbox holds all of its environment.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from workers.executor.types import Launch

CODES = frozenset({70, 126, 127})
"""With these a supervisor exits when the cluster failed or the command could not be run; its last line on stderr says why."""
SAYS = b"suanli: "
_TOKEN = "home/.ray/auth_token"  # noqa: S105
"""Where Ray looks for it by itself, too."""
_SANDBOX_FOLDER = "/tmp/ray"  # noqa: S108
"""Ray's folder in a sandbox, which has a /tmp of its own."""
_FOLDER = "tmp/ray"
"""And where the job sees the node's /tmp: so that its files are counted, and go, with the attempt's."""
_MAX_SAID = 1000
_RUN = "import sys; sys.path.append(sys.argv.pop(1)); from suanli.ray_job.supervisor import main; sys.exit(main())"


def home() -> str:
    """The folder of the package that has the supervisor; a sandbox must show it. "" when it is not installed."""
    spec = importlib.util.find_spec("suanli")
    return next(iter(spec.submodule_search_locations or ()), "") if spec is not None else ""


def furnish(folder: Path, launch: Launch) -> None:
    """Put the token in a new attempt's folder; raises OSError."""
    if launch.ray is None:
        return
    path = folder / _TOKEN
    path.parent.mkdir(mode=0o700)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(launch.ray.token)


def front(launch: Launch, folder: str, env: Mapping[str, str], sandboxed: bool) -> list[str]:
    """The command line that goes in front of the job's own; empty for any other job."""
    if launch.ray is None:
        return []
    where = ["--folder", _SANDBOX_FOLDER]
    if not sandboxed:
        where = ["--folder", f"{_link(folder)}/r", "--link-to", f"{folder}/{_FOLDER}"]
    return [
        *(sys.executable, "-P", "-c", _RUN, os.path.dirname(home())),
        *("--python", env["SUANLI_PYTHON"], "--token", f"{folder}/{_TOKEN}", *where),
        *("--cpu-milli", str(launch.cpu_milli), "--gpus", str(len(launch.gpu_indices))),
        *("--memory-mib", str(launch.memory_mib), "--store-mib", str(launch.ray.object_store_mib), "--"),
    ]


def said(launch: Launch, folder: Path, code: int | None) -> str:
    """The sentence that the supervisor of a ray job ended with; empty when its command ended by itself."""
    if launch.ray is None or code not in CODES:
        return ""
    with contextlib.suppress(OSError), open(folder / "stderr.log", "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _MAX_SAID))
        last = file.read().rstrip().rpartition(b"\n")[2]
        if last.startswith(SAYS):
            return last.removeprefix(SAYS).decode("utf-8", "replace")
    return ""


def _link(folder: str) -> str:
    """A way to an attempt's folder that is short enough for Ray's sockets, on a node where jobs see the node's own /tmp."""
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:10]
    return f"{_links()}/{digest}"


def _links() -> str:
    return f"{tempfile.gettempdir()}/suanli-{os.geteuid()}"


def clear(folder: Path) -> None:
    """Remove the short way to an attempt's folder, if it had one."""
    with contextlib.suppress(OSError):
        os.unlink(_link(str(folder)))


def clear_all(attempts: Path) -> None:
    """Remove what an executor that was killed has left: short ways to folders below ``attempts``."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(_links())):
            if entry.is_symlink() and os.readlink(entry.path).startswith(f"{attempts}/"):
                os.unlink(entry.path)
