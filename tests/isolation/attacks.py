"""Attacks of a job on what is around it. Each says whether it worked; one that is itself broken fails."""

import asyncio
import dataclasses
import errno
import os
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyseccomp
import pytest

from tests.integration.executor_tools import eventually, python, shell
from tests.isolation.attack_tools import MARKER, OPENERS, SECRETS, Site, tiers
from tests.isolation.walls import GROUP, away, in_warden
from workers.executor.isolation import Tier
from workers.executor.types import ExitReason, Launch, Started

Attack = Callable[[Site], Awaitable[bool]]


async def tries(site: Site, script: str, launch: dict[str, Any] | None = None, **isolation: object) -> bool:
    """Run it in the sandbox; whether it printed GOT. It must say that it was refused when it does not."""
    wanted = tiers(**isolation)[Tier.SANDBOX]  # type: ignore[arg-type]
    said, ended = await site.attack(python(OPENERS + script, **(launch or {})), wanted)
    assert "GOT" in said or "refused" in said, f"the attack itself is broken: {ended.message}: {said}"
    return "GOT" in said


def reads(name: str) -> Attack:
    return lambda site: tries(site, f"attempt('read', lambda: open({str(site.folder / name)!r}).read())")


async def reads_etc(site: Site) -> bool:
    return await tries(site, "attempt('read', lambda: open('/etc/hostname').read())")


async def reads_what_is_masked(site: Site) -> bool:
    path = str(site.folder / "agent/credential")
    script = f"attempt('read', lambda: len(open({path!r}).read()) or [][0])"
    return await tries(
        site, f"try:\n    {script}\nexcept IndexError: print('refused')", extra_read_only=(str(site.folder),)
    )


async def writes_what_is_shown(site: Site) -> bool:
    folder = site.folder / "shown"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    return await tries(
        site, f"attempt('write', open, {str(folder / 'planted')!r}, 'w')", extra_read_only=(str(folder),)
    )


def data_of(site: Site) -> dict[str, Any]:
    folder = site.folder / "sets/mine"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.csv").write_text("1\n")
    for path in (folder, folder / "rows.csv"):
        path.chmod(0o777)
    return {"data_dirs": {"mine": str(folder)}, "parameters_json": "{}"}


async def changes_a_data_set(site: Site) -> bool:
    return await tries(
        site, "attempt('append', open, os.environ['SUANLI_DATA'] + '/mine/rows.csv', 'a')", data_of(site)
    )


async def changes_its_parameters(site: Site) -> bool:
    return await tries(site, "attempt('write', open, os.environ['SUANLI_PARAMETERS'], 'w')", data_of(site))


async def relinks_a_data_set(site: Site) -> bool:
    return await tries(site, "attempt('unlink', os.unlink, os.environ['SUANLI_DATA'] + '/mine')", data_of(site))


def plants(path: str) -> Attack:
    return lambda site: tries(site, f"attempt('write', open, {path!r}, 'w')")


async def reads_root_only(site: Site) -> bool:
    path = site.folder / "shown/secret"
    path.parent.mkdir(exist_ok=True)
    path.write_text("secret")
    path.chmod(0o600)
    return await tries(
        site, f"attempt('read', lambda: open({str(path)!r}).read())", extra_read_only=(str(path.parent),)
    )


async def reads_what_a_group_may(site: Site) -> bool:
    path = site.folder / "shown/groups"
    path.parent.mkdir(exist_ok=True)
    path.write_text("secret")
    path.chmod(0o640)
    os.chown(path, 0, GROUP)
    return await tries(
        site, f"attempt('read', lambda: open({str(path)!r}).read())", extra_read_only=(str(path.parent),)
    )


async def finds_a_device(site: Site) -> bool:
    # Of the node, whoever may open it.
    return await tries(
        site, "print('GOT' if os.path.exists('/dev/loop-control') or os.path.exists('/dev/kmsg') else 'refused')"
    )


async def sees_others(site: Site) -> bool:
    script = f"""
found = ['refused']
for name in filter(str.isdigit, os.listdir('/proc')):
    try:
        words = open(f'/proc/{{name}}/cmdline', 'rb').read().split(b'\\0')
    except OSError:
        continue  # it has ended
    if {MARKER.encode()!r} in words: found.append('GOT')
print(found)
"""
    return await tries(site, script)


async def signals_the_victim(site: Site) -> bool:
    return await tries(site, f"attempt('signal', os.kill, {site.victim}, 0)")


async def signals_the_agent(site: Site) -> bool:
    # The executor; the agent is one more process of its user.
    return await tries(site, f"attempt('signal', os.kill, {os.getpid()}, 0)")


async def reads_the_agents_environment(site: Site) -> bool:
    return await tries(site, f"attempt('read', lambda: len(open('/proc/{os.getpid()}/environ').read()))")


def shares(name: str) -> Attack:
    async def attack(site: Site) -> bool:
        outside = os.readlink(f"/proc/self/ns/{name}")
        return await tries(site, f"print('GOT' if os.readlink('/proc/self/ns/{name}') == {outside!r} else 'refused')")

    return attack


async def reaches_a_port(site: Site) -> bool:
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = server.getsockname()
        return await tries(site, f"import socket; attempt('connect', lambda: socket.create_connection({where!r}, 5))")


async def reaches_an_abstract_socket(site: Site) -> bool:
    name = f"\0suanli-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        script = f"import socket; attempt('connect', lambda: socket.socket(socket.AF_UNIX).connect({name!r}))"
        return await tries(site, script)


async def opens_shared_memory(site: Site) -> bool:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    key = 0x5A000000 + os.getpid()
    segment = libc.shmget(key, 4096, 0o1666)
    assert segment >= 0
    try:
        script = f"import ctypes; print('GOT' if ctypes.CDLL(None).shmget({key}, 4096, 0o666) >= 0 else 'refused')"
        return await tries(site, script)
    finally:
        libc.shmctl(segment, 0, None)


async def outlives_its_warden(site: Site) -> bool:
    site.executor.isolation = tiers()[Tier.SANDBOX]
    site.jobs += 1
    job, mark = f"attack{site.jobs}", f"outliving-{os.getpid()}-{site.jobs}"
    script = f"{sys.executable} -S -c 'import time; time.sleep(600)' {mark}"
    await site.executor.launch([shell(script, job)])
    started = await site.run.until(lambda event: isinstance(event, Started) and event.job_id == job)
    assert isinstance(started, Started)
    inner = await asyncio.to_thread(inner_of, mark)
    assert site.executor._link is not None
    os.kill(site.executor._link.pid, signal.SIGKILL)
    try:
        await site.run.exited(job)
        # The kernel's own signal comes at once; what sweeps up has come before the report.
        for _ in range(20):
            if not alive(inner):
                return False
            await asyncio.sleep(0.02)
        return True
    finally:
        for pid in (inner, started.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not alive(inner), "its end")
        await site.executor._warden_ready.wait()


def inner_of(mark: str) -> int:
    """The process of the job itself, not bubblewrap nor a shell that have it among their arguments."""
    while True:
        for name in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):
                words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
                if mark.encode() in words and words[1] == b"-S":
                    return int(name)


def alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    return False


async def takes_priority(site: Site) -> bool:
    return await tries(site, "attempt('nice', os.nice, -5)")


MOUNT = """
import ctypes
os.makedirs('here', exist_ok=True)
libc = ctypes.CDLL(None, use_errno=True)
print('GOT' if libc.mount(b'none', b'here', b'tmpfs', 0, None) == 0 else 'refused', os.strerror(ctypes.get_errno()))
"""


async def mounts(site: Site) -> bool:
    return await tries(site, MOUNT)


async def becomes_root_of_a_namespace(site: Site) -> bool:
    return await tries(site, "import ctypes; ctypes.CDLL(None).unshare(0x10020000)\n" + MOUNT)


def calls(name: str) -> Attack:
    """A system call that a plain user may make; ptrace: TRACEME, unshare: a user namespace, socket: AF_VSOCK."""
    number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
    first = {"unshare": 0x10000000, "socket": 40}.get(name, 0)
    second = 1 if name == "socket" else 0
    refused = (errno.EPERM, errno.ENOSYS)
    return lambda site: tries(
        site,
        f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
done = libc.syscall({number}, ctypes.c_long({first}), ctypes.c_long({second}), 0, 0, 0, 0)
print('refused' if done < 0 and ctypes.get_errno() in {refused} else 'GOT', done, ctypes.get_errno())
""",
    )


async def types_into_a_terminal(site: Site) -> bool:
    # One of its own, which is all that it has.
    script = """
import fcntl, pty, termios
pid, leader = pty.fork()
if pid == 0:
    attempt('type', fcntl.ioctl, 0, termios.TIOCSTI, b'x')
    os._exit(0)
try:
    while said := os.read(leader, 1000): print(said.decode())
except OSError: pass
"""
    return await tries(site, script)


async def bombs(site: Site) -> bool:
    script = """
import time
children = 0
try:
    while children < 100:
        if os.fork() == 0: time.sleep(600)
        children += 1
except OSError as error:
    print('refused', error)
else:
    print('GOT', children)
"""
    return await tries(site, script, processes=50)


async def uses_up_anothers_processes(site: Site) -> bool:
    """One holds nearly all that its limit allows; does another get less for it?"""
    site.executor.isolation = tiers(processes=30)[Tier.SANDBOX]
    crowd = "import os, time\nfor _ in range(20):\n    if os.fork() == 0: time.sleep(600)\nprint(1, flush=True)\ntime.sleep(600)"
    site.jobs += 1
    job = f"crowd{site.jobs}"
    await site.executor.launch([python(crowd, job)])
    launched = site.folder / f"node/attempts/{job}@1-0/stdout.log"
    await eventually(lambda: launched.exists() and launched.read_text() == "1\n", "the crowd")
    script = """
import time
try:
    for _ in range(15):
        if os.fork() == 0: time.sleep(600)
    print('refused')
except OSError as error:
    print('GOT', error)
"""
    try:
        return await tries(site, script, processes=30)
    finally:
        await site.executor.stop(job, 1, 0)
        await site.run.exited(job)


async def hides_memory_in_files(site: Site) -> bool:
    script = "attempt('write', lambda: open('/dev/shm/x', 'wb').write(bytes(40 << 20)))"
    return await tries(site, script, {"memory_mib": 32})


async def makes_a_huge_file(site: Site) -> bool:
    return await tries(site, "open('x', 'w').close(); attempt('truncate', os.truncate, 'x', 1 << 30)", disk_mib=32)


async def reserves_huge_memory(site: Site) -> bool:
    return await tries(
        site, "import mmap; attempt('map', lambda: len(mmap.mmap(-1, 5 << 30, flags=0x22)))", {"memory_mib": 64}
    )


def has_limit_above(name: str, most: int) -> Attack:
    script = f"import resource; hard = resource.getrlimit(resource.{name})[1]; print(hard)"
    return lambda site: tries(site, f"{script}; print('GOT' if hard < 0 or hard > {most} else 'refused')")


async def opens_files_without_end(site: Site) -> bool:
    # The node's own limit may be lower than the sandbox's: so let that be lower still.
    bound = 1000
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] > bound
    with pytest.MonkeyPatch.context() as patch:
        code = f"from workers.executor import warden_sandbox as w; w.MAX_FILES = max({bound}, w.MAX_FILES - 65_536)"
        await away(in_warden(code), site, patch)
        return await has_limit_above("RLIMIT_NOFILE", bound)(site)


async def fills_the_disk(site: Site) -> bool:
    """It has when it is still there after many looks; 40 MiB, and no more."""
    site.executor.isolation = tiers(disk_mib=32)[Tier.SANDBOX]
    site.jobs += 1
    job, site.looks = f"attack{site.jobs}", 0
    fill = "for i in range(40): open(f'work{i}', 'wb').write(bytes(1 << 20))\nimport time\ntime.sleep(600)"
    await site.executor.launch([python(fill, job)])
    await eventually(lambda: site.looks > 3 or site.ended(job), "it is killed, or looked at in vain")
    if site.ended(job):
        assert (await site.run.exited(job)).reason is ExitReason.OUT_OF_DISK
        return False
    await site.executor.stop(job, 1, 0)
    await site.run.exited(job)
    return True


async def brings_a_secret_out_by_a_link(site: Site) -> bool:
    secret = site.folder / "agent/credential"
    secret.write_text("very secret\n")
    _, ended = await site.attack(shell(f"ln -s {secret} $SUANLI_RESULTS/a"), tiers()[Tier.SANDBOX])
    assert ended.succeeded
    stored = [path for path in (site.folder / "store").rglob("*") if path.is_file()]
    return any(path.read_bytes() == b"very secret\n" for path in stored)


async def finds_rays_address(site: Site) -> bool:
    os.environ["RAY_ADDRESS"] = "127.0.0.1:6379"
    try:
        return await tries(site, "print('GOT' if 'RAY_ADDRESS' in os.environ else 'refused')")
    finally:
        del os.environ["RAY_ADDRESS"]


async def preloads_into_bubblewrap(site: Site) -> bool:
    launch = dataclasses.replace(python("print('refused')"), env={"LD_PRELOAD": "./evil.so"})
    said, _ = await site.attack(launch, tiers()[Tier.SANDBOX])
    # The loader complains in the job itself; more often is in something before it.
    assert "cannot be preloaded" in said
    return said.count("cannot be preloaded") > 1


async def builds_a_package(site: Site) -> bool:
    project, stolen = site.folder / "project", site.folder / "stolen"
    project.mkdir(exist_ok=True)
    site.jobs += 1
    secret = site.folder / "agent/credential"
    (project / "backend.py").write_text(f"open({str(stolen)!r}, 'w').write(open({str(secret)!r}).read())")
    (project / "pyproject.toml").write_text(
        f'[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n# {site.jobs}\n'
    )
    launch = Launch("build", 1, ("true",), packages=(f"evil @ file://{project}",))
    _, ended = await site.attack(launch, tiers(extra_read_only=(str(project),))[Tier.SANDBOX])
    assert "pip could not install" in ended.message
    return stolen.exists()


CALLS = ("ptrace", "unshare", "add_key", "io_uring_setup", "process_vm_readv", "name_to_handle_at", "clone3", "socket")
ATTACKS: Mapping[str, Attack] = {
    **{f"read {what}": reads(name) for name, what in SECRETS.items()},
    **{f"call {name}": calls(name) for name in CALLS},
    **{f"be in the node's {name} namespace": shares(name) for name in ("pid", "net", "ipc", "uts", "cgroup")},
    "read the node's /etc": reads_etc,
    "read what is masked": reads_what_is_masked,
    "write what is shown": writes_what_is_shown,
    "change a data set": changes_a_data_set,
    "change its parameters": changes_its_parameters,
    "relink a data set": relinks_a_data_set,
    "fill the root's memory": plants("/planted"),
    "fill /dev's memory": plants("/dev/planted"),
    "read what root alone may": reads_root_only,
    "read what a group of Ray's may": reads_what_a_group_may,
    "find the node's devices": finds_a_device,
    "see another job": sees_others,
    "kill another job": signals_the_victim,
    "kill the agent": signals_the_agent,
    "read the agent's variables": reads_the_agents_environment,
    "reach a port of the node": reaches_a_port,
    "reach a socket without a file": reaches_an_abstract_socket,
    "open shared memory": opens_shared_memory,
    "outlive the warden": outlives_its_warden,
    "take priority": takes_priority,
    "mount": mounts,
    "be root of a new namespace": becomes_root_of_a_namespace,
    "type into a terminal": types_into_a_terminal,
    "fork bomb": bombs,
    "use up another's processes": uses_up_anothers_processes,
    "hide memory in files": hides_memory_in_files,
    "make a huge file": makes_a_huge_file,
    "reserve huge memory": reserves_huge_memory,
    "open files without end": opens_files_without_end,
    "dump core": has_limit_above("RLIMIT_CORE", 0),
    "fill the disk": fills_the_disk,
    "bring a secret out by a link": brings_a_secret_out_by_a_link,
    "find Ray's address": finds_rays_address,
    "preload into bubblewrap": preloads_into_bubblewrap,
    "steal while a package is built": builds_a_package,
}
