"""Job code that means harm. Each attack is tried on a process too, where it works: so it is the sandbox that stops it.

What each of its defences stops is tried in ``test_defences.py``.
"""

import asyncio
import dataclasses
import errno
import json
import os
import socket
import sys
from pathlib import Path

import pyseccomp
import pytest

from tests.integration.executor_tools import IsolatingExecutor, Run, config, python, shell
from tests.isolation.attack_tools import MARKER, OPENERS, SECRETS, Site, tiers
from workers.executor.isolation import Isolation, Network, Tier
from workers.executor.sandbox import Sandbox
from workers.executor.types import ExitReason, Started, Stream


async def test_no_file_of_the_node_or_of_another_job_is_there(site: Site) -> None:
    paths = [str(site.folder / name) for name in SECRETS]
    script = f"for path in {paths!r}: attempt(path, lambda: open(path).read())"
    outside, _ = await site.attack(python(OPENERS + script), tiers()[Tier.PROCESS])
    assert outside.count("GOT") == len(SECRETS), outside
    inside = await site.works_only_outside(script)
    assert inside.count("No such file") == len(SECRETS)


async def test_what_a_pool_shows_can_be_read_and_not_written_and_hides_the_agents_state(site: Site) -> None:
    link = site.folder.parent / f"{site.folder.name}-link"
    link.symlink_to(site.folder)
    agent = str(site.folder / "agent")
    open_to_all = {"control/suanli.sqlite", "ray/session_latest/ports.json", "home/.ssh/id_ed25519"}
    for shown, base, seen in (
        ((str(site.folder),), site.folder, open_to_all),
        ((str(link),), link, open_to_all),
        ((agent,), site.folder, set()),
        # Named by itself below what is hidden, as a data set may be.
        ((str(site.folder), str(site.folder / "node/cache")), site.folder, {*open_to_all, "node/cache/blob"}),
    ):
        paths = [str(base / name) for name in SECRETS]
        script = f"for path in {paths!r}: attempt(path, lambda: open(path).read())"
        said, _ = await site.attack(python(OPENERS + script), tiers(extra_read_only=shown)[Tier.SANDBOX])
        assert {line.split()[1].removeprefix(f"{base}/") for line in said.splitlines() if "GOT" in line} == seen
    script = f"attempt('write', open, {str(site.folder / 'new')!r}, 'w')"
    await site.works_only_outside(script, extra_read_only=(str(site.folder),))


@pytest.mark.parametrize("path", ["node/attempts/victim@1-0/results/planted", "node/planted", "planted"])
async def test_nothing_is_written_outside_its_own_folders(site: Site, path: str) -> None:
    (site.folder / path).unlink(missing_ok=True)
    script = f"attempt('write', open, {str(site.folder / path)!r}, 'w')"
    outside, _ = await site.attack(python(OPENERS + script), tiers()[Tier.PROCESS])
    assert "GOT" in outside
    (site.folder / path).unlink()
    await site.attack(python(OPENERS + script), tiers()[Tier.SANDBOX])
    assert not (site.folder / path).exists()


async def test_the_system_is_read_only_and_its_own_folders_are_not(site: Site) -> None:
    # Not tried outside: there it would work, or be refused to a plain user for another reason.
    places = [sys.prefix, "/usr", "/etc", "/", "/dev", "/root", os.path.dirname(os.path.dirname(sys.executable))]
    own = ["os.environ['SUANLI_RESULTS']", "os.environ['SUANLI_CHECKPOINT']", "os.environ['HOME']", "'.'"]
    own += ["os.environ['TMPDIR']", "'/tmp'", "'/dev/shm'"]
    script = f"""
for place in {places!r}: attempt(place, open, os.path.join(place, 'planted'), 'w')
for place in [{", ".join(own)}]: print('kept', open(os.path.join(place, 'planted'), 'w'))
"""
    said, ended = await site.attack(python(OPENERS + script), tiers()[Tier.SANDBOX])
    assert ended.succeeded, said
    assert (said.count("refused"), said.count("kept"), "GOT" in said) == (len(places), len(own), False)


async def test_other_processes_are_neither_seen_nor_signalled(site: Site) -> None:
    await site.works_only_outside(f"attempt('signal', os.kill, {site.victim}, 0)")
    await site.works_only_outside(f"""
for name in filter(str.isdigit, os.listdir('/proc')):
    try:
        words = open(f'/proc/{{name}}/cmdline', 'rb').read().split(b'\\0')
    except OSError:
        continue  # it has ended
    if {MARKER.encode()!r} in words: print('GOT', name)
""")


async def test_killing_everybody_kills_nobody_else(site: Site) -> None:
    # Not tried outside, for it would work.
    _, ended = await site.attack(shell("kill -KILL -1; echo still there"), tiers()[Tier.SANDBOX])
    assert ended.reason in {ExitReason.SIGNALLED, ExitReason.EXITED}
    os.kill(site.victim, 0)
    assert (await site.attack(shell("true"), tiers()[Tier.SANDBOX]))[1].succeeded


async def test_the_node_and_the_world_cannot_be_reached(site: Site, listener: int) -> None:
    connect = f"import socket; attempt('connect', lambda: socket.create_connection(('127.0.0.1', {listener}), 5))"
    await site.works_only_outside(connect)
    said = await site.works_only_outside("import socket; print(['GOT' for _, name in socket.if_nameindex()[1:]])")
    assert said == "[]\n"
    name = f"suanli-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{name}")
        server.listen()
        await site.works_only_outside(
            f"import socket; attempt('connect', lambda: socket.socket(socket.AF_UNIX).connect('\\0{name}'))"
        )


@pytest.mark.parametrize(
    ("network", "ranks", "reached"),
    [(Network.HOST, 1, True), (Network.GANGS, 2, True), (Network.GANGS, 1, False), (Network.NONE, 1, False)],
)
async def test_the_pool_says_who_has_the_network(
    site: Site, listener: int, network: Network, ranks: int, reached: bool
) -> None:
    launch = python(
        f"{OPENERS}import socket; attempt('connect', lambda: socket.create_connection(('127.0.0.1', {listener}), 5))",
        world_size=ranks,
    )
    said, ended = await site.attack(launch, tiers(network=network)[Tier.SANDBOX])
    assert ended.succeeded
    assert ("GOT" in said) is reached


async def test_a_gang_in_a_pool_without_network_is_refused(site: Site) -> None:
    site.executor.isolation = tiers(network=Network.NONE)[Tier.SANDBOX]
    ended = await site.run.run(shell("true", "gang", world_size=2))
    assert ended.reason is ExitReason.SPAWN_FAILED
    assert "no network" in ended.message


SYSCALLS = (
    "ptrace",
    "unshare",
    "add_key",
    "io_uring_setup",
    "process_vm_readv",
    "name_to_handle_at",
    "clone3",
    "socket",
)


@pytest.mark.parametrize("name", SYSCALLS)
async def test_dangerous_system_calls_are_refused(site: Site, name: str) -> None:
    number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
    # Such arguments that a plain user may make the call; ptrace: TRACEME, unshare: a user namespace, socket: AF_VSOCK.
    first = {"unshare": 0x10000000, "socket": 40}.get(name, 0)
    second = 1 if name == "socket" else 0
    script = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
done = libc.syscall({number}, ctypes.c_long({first}), ctypes.c_long({second}), 0, 0, 0, 0)
blocked = done < 0 and ctypes.get_errno() in ({errno.EPERM}, {errno.ENOSYS})
print('blocked' if blocked else 'GOT', done, ctypes.get_errno())
"""
    await site.works_only_outside(script)


async def test_it_has_no_rights_and_gains_none(site: Site) -> None:
    said, _ = await site.attack(shell("cat /proc/self/status"), tiers()[Tier.SANDBOX])
    status = dict(line.split(":\t", 1) for line in said.splitlines() if ":\t" in line)
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert len(set(status["Uid"].split()) | set(status["Gid"].split())) == 1
    assert status["Uid"].split()[0] != "0"
    # Where the node can give it, it is an id that no other attempt has.
    other, _ = await site.attack(shell("id -u"), tiers()[Tier.SANDBOX])
    assert (other.strip() != status["Uid"].split()[0]) is (os.geteuid() == 0)


async def test_no_two_executors_of_a_machine_give_the_same_user_id(tmp_path: Path) -> None:
    given = []
    for name in ("east", "west"):
        (tmp_path / name).mkdir()
        sandbox = Sandbox(tmp_path / name)
        sandbox._own_uids = True
        given.append({sandbox._uid(number) for number in range(-1, 1000)})
    assert len(given[0]) == len(given[1]) == 1001
    if os.geteuid() == 0 and Sandbox(tmp_path)._uids[1] > 1_000_000:
        assert not given[0] & given[1]


def environment_of(pid: int, program: str) -> str:
    assert Path(f"/proc/{pid}/comm").read_text() == f"{program}\n"
    return Path(f"/proc/{pid}/environ").read_text()


async def test_the_jobs_variables_reach_no_program_outside(site: Site) -> None:
    site.executor.isolation = tiers()[Tier.SANDBOX]
    launch = python("import os, time; print(os.environ['LD_PRELOAD'], flush=True); time.sleep(600)", "preload")
    await site.executor.launch([dataclasses.replace(launch, env={"LD_PRELOAD": "./evil.so"})])
    started = await site.run.until(lambda event: isinstance(event, Started) and event.job_id == "preload")
    assert isinstance(started, Started)

    async def said() -> bytes:
        return (await site.executor.read_log("preload", 1, 0, Stream.STDOUT, 0, 100)).data

    async with asyncio.timeout(20):
        while await said() != b"./evil.so\n":  # noqa: ASYNC110 - the log is another process's
            await asyncio.sleep(0.02)
    assert environment_of(started.pid, "bwrap").count("LD_PRELOAD") == 0
    log = (await site.executor.read_log("preload", 1, 0, Stream.STDERR, 0, 10_000)).data.decode()
    # The loader complains in the job itself and in nothing that comes before it.
    assert log.count("cannot be preloaded") == 1


async def test_a_fork_bomb_is_bounded(site: Site) -> None:
    script = """
import time
children = 0
try:
    while children < 200:
        if os.fork() == 0: time.sleep(600)
        children += 1
except OSError as error:
    print(children, error)
else:
    print('GOT', children)
"""
    assert "Resource temporarily unavailable" in await site.works_only_outside(script, processes=50)
    os.kill(site.victim, 0)


FILLERS = {
    "many files": "for i in range(100): open(f'work{i}', 'wb').write(bytes(1 << 20))\nimport time; time.sleep(600)",
    "hidden folder": "os.makedirs('.a/.b')\nfor i in range(100): open(f'.a/.b/{i}', 'wb').write(bytes(1 << 20))\n"
    "import time; time.sleep(600)",
}


@pytest.mark.parametrize("name", FILLERS)
async def test_a_disk_is_not_filled(site: Site, name: str) -> None:
    for isolation in tiers(disk_mib=32).values():
        _, ended = await site.attack(python(OPENERS + FILLERS[name]), isolation)
        assert ended.reason is ExitReason.OUT_OF_DISK
        assert "32 MiB" in ended.message


async def test_no_file_is_larger_than_the_disk_and_no_memory_is_hidden_in_files(site: Site) -> None:
    await site.works_only_outside("open('x', 'w').close(); attempt('large', os.truncate, 'x', 1 << 30)", disk_mib=32)
    script = "attempt(os.environ['WHERE'], lambda: open(os.environ['WHERE'], 'wb').write(bytes(80 << 20)))"
    launch = python(OPENERS + script, memory_mib=64, env={"WHERE": "/dev/shm/x"})
    said, _ = await site.attack(launch, tiers()[Tier.SANDBOX])
    assert "No space left" in said or "refused" in said


async def test_a_link_among_the_results_does_not_bring_a_secret_out(site: Site) -> None:
    secret = site.folder / "agent/credential"
    script = f"ln -s {secret} $SUANLI_RESULTS/a; ln -s {secret.parent} $SUANLI_RESULTS/b; rmdir $SUANLI_CHECKPOINT"
    script += f"; ln -s {secret.parent} $SUANLI_CHECKPOINT"
    _, ended = await site.attack(shell(script), tiers()[Tier.SANDBOX])
    stored = [path for path in (site.folder / "store").rglob("*") if path.is_file()]
    assert not any(b"secret" in path.read_bytes() for path in stored if path.stat().st_size == len("secret\n"))
    assert ended.checkpoint_manifest is None


async def test_data_sets_are_read_only_and_others_do_not_exist(site: Site) -> None:
    for name in ("mine", "other"):
        (site.folder / "sets" / name).mkdir(parents=True)
        (site.folder / "sets" / name / "rows.csv").write_text("1\n")
    script = f"""
import json
print(json.dumps([open(os.environ['SUANLI_DATA'] + '/mine/rows.csv').read(), os.listdir({str(site.folder / "sets")!r})]))
attempt('append', open, os.environ['SUANLI_DATA'] + '/mine/rows.csv', 'a')
attempt('plant', open, os.environ['SUANLI_DATA'] + '/mine/planted', 'w')
attempt('relink', os.unlink, os.environ['SUANLI_DATA'] + '/mine')
attempt('parameters', open, os.environ['SUANLI_PARAMETERS'], 'w')
"""
    launch = python(OPENERS + script, data_dirs={"mine": str(site.folder / "sets/mine")}, parameters_json="{}")
    said, _ = await site.attack(launch, tiers()[Tier.SANDBOX])
    assert json.loads(said.splitlines()[0]) == ["1\n", ["mine"]]
    assert (said.count("refused"), "GOT" in said) == (4, False)


async def test_without_bubblewrap_a_sandbox_is_refused_and_never_weakened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    executor = IsolatingExecutor(config(tmp_path))
    await executor.start()
    run = Run(executor)
    assert "install the package bubblewrap" in executor.sandbox_problem
    ended = await run.run(shell("true", "strict"))
    assert ended.reason is ExitReason.SPAWN_FAILED
    assert "must run in a sandbox" in ended.message
    executor.isolation = Isolation(Tier.AUTO)
    assert (await run.run(shell("true", "auto"))).succeeded
    await executor.close()


async def test_building_a_package_runs_its_code_in_a_sandbox(site: Site) -> None:
    project, stolen = site.folder / "project", site.folder / "stolen"
    project.mkdir()
    secret = site.folder / "agent/credential"
    (project / "backend.py").write_text(f"open({str(stolen)!r}, 'w').write(open({str(secret)!r}).read())")
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    launch = shell("true", packages=(f"evil @ file://{project}",))
    for tier, isolation in tiers(extra_read_only=(str(project),)).items():
        site.executor.isolation = isolation
        ended = await site.run.run(dataclasses.replace(launch, job_id=f"evil-{tier}"))
        assert ended.reason is ExitReason.ENVIRONMENT_FAILED
        assert "pip could not install" in ended.message
        assert stolen.exists() is (tier is Tier.PROCESS)
