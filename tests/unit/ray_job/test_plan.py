"""What follows from what the supervisor of a ray job is told."""

import dataclasses
from typing import Any

import pytest

from suanli.ray_job import plan
from suanli.ray_nodes import NodeStart, head_options, join_options, start_command

ARGUMENTS = ["--python", "py", "--folder", "/tmp/ray", "--token", "/t"]


def settings(**changes: Any) -> plan.Settings:
    return dataclasses.replace(plan.read([*ARGUMENTS, "--", "cmd"], {}), **changes)


def test_the_command_comes_whole_and_ranks_from_the_environment() -> None:
    told = plan.read(
        [*ARGUMENTS, "--cpu-milli", "500", "--", "prog", "--python", "x", "--", "-y"],
        {"RANK": "2", "WORLD_SIZE": "3", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"},
    )
    assert told.argv == ("prog", "--python", "x", "--", "-y")
    assert (told.rank, told.world_size, told.master_host, told.master_port) == (2, 3, "10.0.0.1", 4000)
    assert not told.is_head
    alone = settings()
    assert (alone.rank, alone.world_size, alone.master_host) == (0, 1, "127.0.0.1")
    assert alone.is_head


@pytest.mark.parametrize(
    ("memory", "store", "expected"),
    [
        (1024, 0, (307, 205)),
        (2048, 512, (512, 1024)),
        (10_240, 0, (3072, 6656)),
        (1024, 512, (512, 1)),
        (100, 0, (80, 1)),
        (0, 0, (256, None)),
        (0, 300, (300, None)),
    ],
)
def test_object_store_tasks_and_ray_itself_share_the_memory(memory: int, store: int, expected: tuple[int, int]) -> None:
    node = plan.node_start(settings(memory_mib=memory, store_mib=store), "127.0.0.1")
    assert (node.object_store_mib, node.memory_mib) == expected


@pytest.mark.parametrize(("milli", "cpus"), [(1, 1), (999, 1), (1000, 1), (1999, 1), (2000, 2), (0, 1)])
def test_a_node_has_whole_cores_and_one_at_least(milli: int, cpus: int) -> None:
    assert plan.node_start(settings(cpu_milli=milli, gpus=2), "h").num_cpus == cpus


JOB_ENVIRONMENT = {
    "SUANLI_ATTEMPT_ROOT": "/a",
    "PATH": "/bin",
    "RANK": "0",
    "WORLD_SIZE": "2",
    "MASTER_PORT": "1",
    "RAY_ADDRESS": "the region's",
    "RAY_AUTH_TOKEN": "the region's",
    "SUANLI_RESULTS": "/r",
}


def test_the_command_is_let_into_its_own_cluster_and_knows_of_no_other() -> None:
    env = plan.command_environment(JOB_ENVIRONMENT, "/t", "127.0.0.1", "127.0.0.1:5")
    assert env == {
        "SUANLI_ATTEMPT_ROOT": "/a",
        "PATH": "/bin",
        "SUANLI_RESULTS": "/r",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": "/t",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_ADDRESS": "127.0.0.1:5",
    }


def test_a_nodes_processes_keep_the_mark_of_the_job_at_the_end() -> None:
    env = plan.node_environment(JOB_ENVIRONMENT, "/t", "10.0.0.1")
    assert next(reversed(env.items())) == ("SUANLI_ATTEMPT_ROOT", "/a")
    assert (env["RAY_AUTH_MODE"], env["RAY_AUTH_TOKEN_PATH"], env["RAY_worker_niceness"]) == ("token", "/t", "0")
    assert not {"RAY_ADDRESS", "RAY_AUTH_TOKEN", "RANK", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"} & env.keys()


def test_a_node_has_no_dashboard_and_no_modules_of_the_jobs_folder() -> None:
    node = NodeStart("n", "127.0.0.1", "/tmp/ray", 1, 0, 80, 100, {"b": "2", "a": "1"})
    head = start_command("py", node, head_options(5, 6, 7))
    assert head[:5] == ["py", "-P", "-m", "ray.scripts.scripts", "start"]
    for option in (
        "--head",
        "--include-dashboard=false",
        "--port=5",
        "--node-ip-address=127.0.0.1",
        "--labels=a=1,b=2",
    ):
        assert option in head
    # Ray refuses a second node on the loopback interface, unless it is started by our own program.
    assert start_command("py", node, join_options("127.0.0.1:5"))[2] == "-c"
    afar = dataclasses.replace(node, host="10.0.0.2")
    assert start_command("py", afar, join_options("10.0.0.1:5"))[2:4] == ["-m", "ray.scripts.scripts"]
