"""Limits that the kernel keeps, on what this host really lets us write. Where it lets us nothing, the node must say so."""

import asyncio
import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.executor_tools import IsolatingExecutor, config, eventually, python, shell
from tests.isolation.attack_tools import OPENERS, Site, host, tiers
from workers.executor import procfs
from workers.executor.cgroups import CONTROLLERS, ControlGroups, places
from workers.executor.isolation import Isolation, Tier
from workers.executor.types import ExitReason, Launch, Started

SPIN = "\nwhile True: pass"


def groups_of(site: Site) -> ControlGroups:
    return site.executor._sandbox.groups


def writable() -> set[str]:
    """What this process may make groups for in trees of version 1, found out without the product's code."""
    own = dict(line.split(":")[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    found = set()
    for name in ("cpu", "pids"):
        folder = Path(f"/sys/fs/cgroup/{name}{own.get(name, '/')}")
        if (folder / "cgroup.procs").exists() and os.access(folder, os.W_OK):
            found.add(name)
    return found


def test_the_node_says_what_its_kernel_limits_and_why_not_the_rest(site: Site) -> None:
    groups = groups_of(site)
    assert site.executor.info().limits == groups.limits
    assert set(groups.limits) | set(groups.problems) == set(CONTROLLERS)
    assert set(groups.limits) & set(groups.problems) == set()
    assert set(groups.limits) >= writable()


async def test_a_job_is_in_groups_of_its_own_with_the_limits_it_asked_for(site: Site) -> None:
    launch = python("print(open('/proc/self/cgroup').read()); import time; time.sleep(600)", "groups", cpu_milli=2500)
    site.executor.isolation = tiers(processes=77)[Tier.SANDBOX]
    await site.executor.launch([launch])
    started = await site.run.until(lambda event: isinstance(event, Started) and event.job_id == "groups")
    assert isinstance(started, Started)
    outside = await asyncio.to_thread(Path(f"/proc/{started.pid}/cgroup").read_text)
    groups = groups_of(site)
    assert outside.count("/suanli-") == len(groups._trees)
    found = {one.controllers[0]: Path(one.folder) for one in places(mounts(), outside) if one.version == 1}
    found = {name: folder for name, folder in found.items() if name in groups.limits}
    read = {name: (folder / FILES[name]).read_text().strip() for name, folder in found.items()}
    assert read == {name: VALUES[name] for name in found}
    await site.executor.stop("groups", 1, 0)
    await site.run.exited("groups")
    await eventually(lambda: not any(folder.exists() for folder in found.values()), "the groups are removed")


FILES = {"cpu": "cpu.shares", "pids": "pids.max"}
VALUES = {"cpu": "2560", "pids": "79"}


def mounts() -> str:
    return Path("/proc/self/mountinfo").read_text()


def ticks(pids: list[int]) -> int:
    """CPU time of processes and all below them."""
    forest = procfs.Forest(procfs.snapshot())
    return sum(forest.processes[pid].cpu_ticks for pid in forest.members(pids))


async def share_of_the_modest(site: Site, tier: Tier) -> float:
    """Run a job with one busy process beside one with a dozen, on the same core; its part of what the two get."""
    site.executor.isolation = dataclasses.replace(tiers()[Tier.SANDBOX], tier=tier)
    where = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})\n"
    # Each in a session of its own: some kernels give sessions equal parts, which is no defence against one who makes many.
    jobs = {"modest": where + SPIN, "greedy": f"{where}[os.fork() or os.setsid() for _ in range(4)]{SPIN}"}
    pids = []
    for name, script in jobs.items():
        job_id = f"{name}-{tier}"
        await site.executor.launch([python(script, job_id)])
        started = await site.run.until(lambda event, id=job_id: isinstance(event, Started) and event.job_id == id)
        assert isinstance(started, Started)
        pids.append(started.pid)
    await eventually(lambda: len(procfs.Forest(procfs.snapshot()).members([pids[1]])) >= 16, "the greedy one's crowd")
    before = [ticks([pid]) for pid in pids]
    await eventually(lambda: ticks(pids) - sum(before) >= 100, "a second of CPU time")
    modest, greedy = (ticks([pid]) - first for pid, first in zip(pids, before, strict=True))
    for name in jobs:
        await site.executor.stop(f"{name}-{tier}", 1, 0)
        await site.run.exited(f"{name}-{tier}")
    return modest / (modest + greedy)


async def test_a_greedy_job_does_not_starve_its_neighbour(site: Site) -> None:
    # In the tier process, as without control groups, the crowd takes nearly all.
    assert await share_of_the_modest(site, Tier.PROCESS) < 0.2
    share = await share_of_the_modest(site, Tier.SANDBOX)
    assert (share > 0.35) is ("cpu" in groups_of(site).limits), share


async def test_killing_a_group_ends_all_that_is_in_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = groups_of(site)
    can = any(tree.kills for tree in groups._trees)
    link = site.executor._link
    assert link is not None
    site.executor.isolation = tiers()[Tier.SANDBOX]
    await site.executor.launch([shell("sleep 600 & sleep 600", "stubborn")])
    started = await site.run.until(lambda event: isinstance(event, Started) and event.job_id == "stubborn")
    assert isinstance(started, Started)
    with monkeypatch.context() as patched:
        # Nothing but the group is left to end it.
        patched.setattr(link, "signal", lambda *_: None)
        await site.executor.stop("stubborn", 1, 0)
        if can:
            assert (await site.run.exited("stubborn")).reason is ExitReason.STOPPED
    if not can:
        os.kill(started.pid, signal.SIGKILL)
        await site.run.exited("stubborn")


async def test_what_the_kernel_killed_for_its_memory_is_reported_as_that(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whether it was so is read from memory.events, which this host may not have.
    for said, reason in ((True, ExitReason.OUT_OF_MEMORY), (False, ExitReason.EXITED)):
        monkeypatch.setattr(groups_of(site), "out_of_memory", lambda _, said=said: said)
        assert (await site.attack(shell("exit 3"), tiers()[Tier.SANDBOX]))[1].reason is reason
    # It went on without the process that was killed.
    monkeypatch.setattr(groups_of(site), "out_of_memory", lambda _: True)
    assert (await site.attack(shell("exit 0"), tiers()[Tier.SANDBOX]))[1].succeeded
    # Killed by somebody else, moments after the node ran out of memory: only where the kernel does not tell is that a guess.
    monkeypatch.setattr(site.executor._shortage, "is_near", lambda: True)
    for known, reason in ((False, ExitReason.SIGNALLED), (None, ExitReason.OUT_OF_MEMORY)):
        monkeypatch.setattr(groups_of(site), "out_of_memory", lambda _, known=known: known)
        assert (await site.attack(shell("kill -KILL $$"), tiers()[Tier.SANDBOX]))[1].reason is reason


async def test_a_job_does_not_start_without_the_limits_it_should_have(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups_of(site), "open", lambda *_: [str(site.folder / "no-such-group")])
    said, ended = await site.attack(shell("echo GOT"), tiers()[Tier.SANDBOX])
    assert ended.reason is ExitReason.SPAWN_FAILED
    assert "control group cannot be entered" in ended.message
    assert "GOT" not in said


async def test_where_nothing_can_be_written_jobs_run_as_without(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.executor.cgroups.places", lambda *_: [])
    executor = IsolatingExecutor(config(open_folder))
    await executor.start()
    assert executor.info().limits == ()
    site = Site(open_folder, executor)
    said, ended = await site.attack(python(OPENERS + "print('ran')"), tiers()[Tier.SANDBOX])
    assert (said, ended.succeeded) == ("ran\n", True)
    await executor.close()


KILLED = """
import asyncio, sys
from pathlib import Path
from tests.integration.executor_tools import IsolatingExecutor, Run, config, shell
from workers.executor.types import Started

async def main():
    executor = IsolatingExecutor(config(Path(sys.argv[1])))
    await executor.start()
    run = Run(executor)
    await executor.launch([shell("sleep 600")])
    await run.until(lambda event: isinstance(event, Started))
    print(executor._link.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("alone", [True, False])
async def test_the_groups_of_a_killed_executor_are_removed_by_its_warden_or_the_next_one(
    open_folder: Path, alone: bool
) -> None:
    argv = [sys.executable, "-c", KILLED, str(open_folder)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as process:  # noqa: ASYNC220
        assert process.stdout is not None
        warden = int(await asyncio.to_thread(process.stdout.readline))
        parents = [Path(one) for one in json.loads((open_folder / "node/cgroups.json").read_text())]
        left = [one for one in parents if one.exists()]
        assert bool(left) is bool(host()[0])
        assert all((one / "1").exists() for one in left)
        if not alone:
            os.kill(warden, signal.SIGSTOP)
        process.kill()
    if not alone:
        os.kill(warden, signal.SIGKILL)
    else:
        await eventually(lambda: not any(one.exists() for one in left), "the warden has removed them")
        return
    assert all((one / "1").exists() for one in left)
    executor = IsolatingExecutor(config(open_folder))
    await executor.start()
    assert not any((one / "1").exists() for one in left)
    await executor.close()
    assert not any(one.exists() for one in left)


async def test_a_launch_asks_for_what_its_job_asked_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    monkeypatch.setattr(groups_of(site), "open", lambda number, *wanted: asked.append(wanted) or [])
    launch = Launch("asks", 1, ("true",), cpu_milli=250, memory_mib=96)
    await site.attack(launch, Isolation(Tier.SANDBOX, processes=9))
    assert asked == [(250, 96, 9)]
