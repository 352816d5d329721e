"""The environment variables of a job process, built from nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from workers.executor import procfs
from workers.executor.types import Launch

MAX_VARIABLES = 1000
MAX_ENVIRONMENT_BYTES = 128 * 1024
MAX_ARGUMENTS = 4096
MAX_ARGUMENT_BYTES = 128 * 1024 - 1
"""The kernel's own bound for one argument."""

RESERVED_PREFIX = "SUANLI_"
"""The platform's own names; a job that sets one is refused rather than run with another value than it thinks."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def problem_with(launch: Launch) -> str | None:
    """Return a sentence saying why a launch cannot be run as it is, or None.

    LD_PRELOAD and the like are allowed: job code runs with its own rights only, so they give it nothing new.
    """
    texts = [*launch.argv, *launch.env.keys(), *launch.env.values()]
    if not launch.argv or not launch.argv[0]:
        return "the command is empty"
    if any("\0" in text for text in texts):
        return "the command or its environment holds a NUL character"
    if len(launch.argv) > MAX_ARGUMENTS or any(len(os.fsencode(text)) > MAX_ARGUMENT_BYTES for text in texts):
        return f"the command has more than {MAX_ARGUMENTS} arguments or one longer than {MAX_ARGUMENT_BYTES} bytes"
    if len(launch.env) > MAX_VARIABLES or sum(len(text) for text in texts) > MAX_ENVIRONMENT_BYTES * 8:
        return "the command and its environment are too large"
    for name in launch.env:
        if not name or "=" in name:
            return f"{name!r} is no name for an environment variable"
        if name.startswith(RESERVED_PREFIX):
            return f"the environment variable {name} belongs to the platform and cannot be set by a job"
    if "/" in launch.job_id or launch.job_id in {"", ".", ".."} or len(launch.job_id) > 128 or "\0" in launch.job_id:
        return f"{launch.job_id[:128]!r} is no id of a job"
    return None


def build(launch: Launch, folder: Path, python: str = sys.executable) -> dict[str, str]:
    """Return all variables of a process. ``folder`` is its attempt folder, ``python`` the interpreter of the job."""
    base = str(folder)
    threads = str(max(1, launch.cpu_milli // 1000))
    env = {
        "PATH": f"{os.path.dirname(python)}:{_SYSTEM_PATH}",
        "LANG": "C.UTF-8",
        "HOME": f"{base}/home",
        "TMPDIR": f"{base}/tmp",  # noqa: S108
        "PYTHONUNBUFFERED": "1",
        **dict.fromkeys(_THREAD_VARIABLES, threads),
    }
    if os.path.isfile(os.path.join(os.path.dirname(os.path.dirname(python)), "pyvenv.cfg")):
        env["VIRTUAL_ENV"] = os.path.dirname(os.path.dirname(python))
    env.update(launch.env)
    # Last, so that nothing a job sets can stand in for what the platform says, ranks and GPUs included.
    env.update(_rank_variables(launch))
    env.update(_suanli_variables(launch, base))
    if launch.ray is not None:
        env["SUANLI_PYTHON"] = python
    gpus = ",".join(map(str, launch.gpu_indices))
    env["CUDA_VISIBLE_DEVICES"] = gpus
    env["NVIDIA_VISIBLE_DEVICES"] = gpus or "void"
    return env


def _rank_variables(launch: Launch) -> Mapping[str, str]:
    values = {
        "RANK": str(launch.rank),
        "WORLD_SIZE": str(launch.world_size),
        "LOCAL_RANK": str(launch.local_rank),
        "LOCAL_WORLD_SIZE": str(launch.local_world_size),
        "GROUP_RANK": str(launch.node_rank),
        "NODE_RANK": str(launch.node_rank),
    }
    if launch.master_port:
        values |= {"MASTER_ADDR": launch.master_addr, "MASTER_PORT": str(launch.master_port)}
    return values


def _suanli_variables(launch: Launch, base: str) -> Mapping[str, str]:
    keep = launch.keep
    values = {
        procfs.MARKER: base,
        "SUANLI_JOB_ID": launch.job_id,
        "SUANLI_JOB_NAME": keep.name,
        "SUANLI_ATTEMPT": str(launch.attempt),
        "SUANLI_INSTITUTION": keep.institution,
        "SUANLI_PROJECT": keep.project,
        "SUANLI_USER": keep.user,
        "SUANLI_REGION": keep.region,
        "SUANLI_POOL": keep.pool,
        "SUANLI_RESULTS": f"{base}/results",
        "SUANLI_CHECKPOINT": f"{base}/checkpoint",
        "SUANLI_CPU_MILLI": str(launch.cpu_milli),
        "SUANLI_MEMORY_MIB": str(launch.memory_mib),
        "SUANLI_GPU_MILLI": str(launch.gpu_milli),
    }
    if launch.data_dirs:
        values["SUANLI_DATA"] = f"{base}/data"
    if launch.parameters_json is not None:
        values["SUANLI_PARAMETERS"] = f"{base}/parameters.json"
    if keep.array_index is not None and keep.array_size is not None:
        values |= {"SUANLI_ARRAY_INDEX": str(keep.array_index), "SUANLI_ARRAY_SIZE": str(keep.array_size)}
    return values
