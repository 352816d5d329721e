"""Whether a node can have pods: everything that could stand in the way is found at its start, and said in a sentence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.executor_tools import Run, shell
from tests.integration.pod_tools import SETTINGS, fake, stand_in, volume
from tests.support.kubernetes import FakeKubernetes
from workers.executor.pod_trial import RIGHTS
from workers.executor.pods import POD_NAME, Pods
from workers.executor.types import ExitReason


@pytest.fixture
def place() -> Iterator[Path]:
    with volume() as folder:
        yield folder


@pytest.fixture
def cluster(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKubernetes]:
    with fake(tmp_path, place) as cluster:
        stand_in(monkeypatch, str(cluster.kubeconfig))
        yield cluster


def no_node(cluster: FakeKubernetes) -> None:
    cluster.pods["worker-0"]["spec"]["nodeName"] = ""


def no_volume(cluster: FakeKubernetes) -> None:
    cluster.pods["worker-0"]["spec"]["volumes"] = [{"name": "state", "emptyDir": {}}]


PROBLEMS: list[tuple[Callable[[FakeKubernetes], object], str]] = [
    (lambda one: one.runtime_classes.clear(), "the cluster has no RuntimeClass 'gvisor'"),
    (
        lambda one: setattr(one, "quota", "violates PodSecurity"),
        "Kubernetes would refuse a job's pod: violates PodSecurity",
    ),
    (lambda one: one.go_away(), "the Kubernetes API does not answer"),
    (lambda one: one.pods.clear(), 'the Kubernetes API says: pods "worker-0" not found'),
    (no_node, "does not say which node"),
    (no_volume, "'state' of the worker's pod, which no other pod can mount"),
    *(
        (lambda one, right=right: one.denied.add(right), f"lacks rights in the namespace suanli: {right[0]} {right[1]}")
        for right in [(verb, f"{what}/{below}".rstrip("/")) for verb, what, below in RIGHTS]
        if right != ("get", "pods")
    ),
    (lambda one: one.denied.add(("get", "pods")), 'cannot get resource "pods"'),
]


@pytest.mark.parametrize(("spoil", "words"), PROBLEMS, ids=[words[-40:] for _, words in PROBLEMS])
async def test_what_stands_in_the_way_is_said_and_no_job_runs(
    cluster: FakeKubernetes,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[FakeKubernetes], object],
    words: str,
) -> None:
    monkeypatch.setattr("workers.executor.pods.TRIAL_PATIENCE_S", 0.0)
    spoil(cluster)
    pods = Pods(place, lambda number, at_ms: None)
    assert words in await pods.problem(SETTINGS)
    launch = shell("true")
    launch = replace(launch, isolation=replace(launch.isolation, pod=SETTINGS))
    assert words in str(pods.problem_with(launch))
    await pods.close()


async def test_a_trial_leaves_no_pod_behind(cluster: FakeKubernetes, place: Path) -> None:
    pods = Pods(place, lambda number, at_ms: None)
    assert await pods.problem(SETTINGS) == ""
    assert (cluster.created, cluster.jobs()) == ([], {})
    await pods.close()


async def test_an_api_that_is_away_is_waited_for_at_the_start_and_refuses_no_node_later(
    cluster: FakeKubernetes, place: Path
) -> None:
    pods = Pods(place, lambda number, at_ms: None)
    cluster.go_away()
    trial = asyncio.create_task(pods.problem(SETTINGS))
    done, _ = await asyncio.wait([trial], timeout=1.5)
    assert not done
    cluster.come_back()
    assert await trial == ""
    cluster.go_away()
    # An agent that is started anew asks once more; the jobs of the node must not die of that.
    assert await pods.problem(SETTINGS) == ""
    cluster.come_back()
    cluster.runtime_classes.clear()
    assert "no RuntimeClass" in await pods.problem(SETTINGS)
    await pods.close()


async def test_other_settings_are_tried_for_themselves(cluster: FakeKubernetes, place: Path) -> None:
    pods = Pods(place, lambda number, at_ms: None)
    assert await pods.problem(SETTINGS) == ""
    assert "no RuntimeClass 'kata'" in await pods.problem(replace(SETTINGS, runtime_class="kata"))
    await pods.close()


async def test_outside_a_pod_there_are_none(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(POD_NAME, raising=False)
    assert POD_NAME in await Pods(place, lambda number, at_ms: None).problem(SETTINGS)


async def test_without_a_token_it_says_what_is_missing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "")
    assert "needs a service account with its token" in await Pods(place, lambda number, at_ms: None).problem(SETTINGS)


async def test_a_job_on_a_node_that_was_never_tried_is_refused(cluster: FakeKubernetes, place: Path) -> None:
    from tests.integration.executor_tools import config
    from tests.integration.pod_tools import InPods

    executor = InPods(config(place))
    await executor.start()
    try:
        ended = await Run(executor).run(shell("true"))
        assert ended.reason is ExitReason.SPAWN_FAILED
        assert "this node cannot have them: it has not been tried yet" in ended.message
    finally:
        await executor.close()
