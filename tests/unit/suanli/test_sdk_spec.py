"""Python arguments as a job's specification."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.suanli.v1 import common_pb2, jobs_pb2
from suanli.amounts import mebibytes, milli, milliseconds
from suanli.errors import InvalidArgument
from suanli.spec import KNOWN, build_change, build_spec


class AJob:
    id = "j9"


EVERYTHING: dict[str, Any] = {
    "name": "n",
    "institution": "uni",
    "project": "p",
    "cpus": "500m",
    "memory": "2GiB",
    "gpus": 0.25,
    "gpu_types": ["A", "B"],
    "replicas": 2,
    "regions": ["east"],
    "only_regions": ["west"],
    "pools": ["east/cpu"],
    "node_labels": {"zone": "a"},
    "data_sets": ["lsat"],
    "env": {"A": "b"},
    "packages": ["six"],
    "priority": "high",
    "preemptible": True,
    "pack": "rack",
    "pack_required": True,
    "max_runtime": "1h30m",
    "retries": 3,
    "retry_backoff": 2.5,
    "after": ["j1", 0, AJob()],
    "after_any": ["j2"],
    "array": 10,
    "array_parallel": 4,
    "labels": {"course": "stats"},
    "grace_period": 0,
    "on_partition": "move",
    "purpose": "teaching",
    "ray": True,
    "ray_object_store": "1GiB",
}


def test_every_field_of_a_specification_can_be_asked_for() -> None:
    spec = build_spec({"command": ["true"], **EVERYTHING}, "sha256:0")
    assert spec == jobs_pb2.JobSpec(
        institution="uni",
        project="p",
        name="n",
        command=jobs_pb2.Command(argv=["true"]),
        working_folder="sha256:0",
        resources=common_pb2.Resources(cpu_milli=500, memory_mib=2048, gpu_milli=250),
        accelerators=["A", "B"],
        replicas=2,
        preferred_regions=["east"],
        required_regions=["west"],
        pools=["east/cpu"],
        node_selector={"zone": "a"},
        data_sets=["lsat"],
        environment={"A": "b"},
        packages=["six"],
        priority_class=common_pb2.PRIORITY_CLASS_HIGH,
        preemptible=True,
        topology=jobs_pb2.Topology(level="rack", required=True),
        max_runtime_ms=5_400_000,
        retry=jobs_pb2.RetryPolicy(max_retries=3, backoff_ms=2_500),
        dependencies=[
            jobs_pb2.Dependency(job_id="j1", condition=jobs_pb2.Dependency.CONDITION_AFTER_OK),
            jobs_pb2.Dependency(batch_index=0, condition=jobs_pb2.Dependency.CONDITION_AFTER_OK),
            jobs_pb2.Dependency(job_id="j9", condition=jobs_pb2.Dependency.CONDITION_AFTER_OK),
            jobs_pb2.Dependency(job_id="j2", condition=jobs_pb2.Dependency.CONDITION_AFTER_ANY),
        ],
        array=jobs_pb2.ArraySpec(size=10, max_parallel=4),
        labels={"course": "stats"},
        grace_period_ms=0,
        partition_policy=jobs_pb2.PARTITION_POLICY_MOVE,
        purpose="teaching",
        ray=jobs_pb2.RayCluster(object_store_mib=1024),
    )
    unset = {field.name for field in spec.DESCRIPTOR.fields} - {field.name for field, _ in spec.ListFields()}
    # A field that is new in the contract needs a keyword.
    assert unset == {"python", "algorithm"}


@pytest.mark.parametrize(
    ("options", "workload"),
    [
        ({"shell": "a | b"}, {"command": {"argv": ["/bin/sh", "-c", "a | b"]}}),
        ({"script": "a.py", "args": ["1"]}, {"python": {"script": "a.py", "args": ["1"]}}),
        ({"module": "a.b"}, {"python": {"module": "a.b"}}),
        ({"algorithm": "irt@1.2.0"}, {"algorithm": {"name": "irt", "version": "1.2.0"}}),
        (
            {"algorithm": "irt", "parameters": {"model": "2PL", "项": 1}},
            {"algorithm": {"name": "irt", "parameters_json": '{"model": "2PL", "\\u9879": 1}'}},
        ),
        ({"command": ["a"], "memory": None, "module": None}, {"command": {"argv": ["a"]}}),
    ],
)
def test_what_to_run(options: dict[str, Any], workload: dict[str, Any]) -> None:
    assert build_spec(options) == jobs_pb2.JobSpec(**workload)


@pytest.mark.parametrize(
    ("options", "field", "says"),
    [
        ({}, "command", "says nothing to run"),
        ({"command": ["a"], "algorithm": "irt"}, "algorithm", "command and algorithm"),
        ({"command": "a b"}, "command", "give a list"),
        ({"command": ["a", 1]}, "command[1]", "not a text"),
        ({"command": ["\ud800"]}, "command[0]", "UTF-8"),
        ({"command": ["a"], "args": ["b"]}, "args", "script or module"),
        ({"command": ["a"], "parameters": {}}, "parameters", "only an algorithm"),
        ({"algorithm": "irt", "parameters": {"x": float("nan")}}, "parameters", "JSON"),
        ({"algorithm": "irt", "parameters": [1]}, "parameters", "names and values"),
        ({"command": ["a"], "memmory": 1}, "memmory", "did you mean memory"),
        ({"command": ["a"], "env": {"A": 1}}, "env.A", "not a text"),
        ({"command": ["a"], "env": ["A=1"]}, "env", "names and values"),
        ({"command": ["a"], "replicas": True}, "replicas", "whole number"),
        ({"command": ["a"], "replicas": 1.5}, "replicas", "whole number"),
        ({"command": ["a"], "preemptible": "yes"}, "preemptible", "true or false"),
        ({"command": ["a"], "priority": "top"}, "priority", "low, normal, high, urgent"),
        ({"command": ["a"], "on_partition": "unspecified"}, "on_partition", "wait, move"),
        ({"command": ["a"], "after": "j1"}, "after", "list of jobs"),
        ({"command": ["a"], "after": ["a b"]}, "after", "not a job id"),
        ({"command": ["a"], "cpus": 0}, "cpus", "more than 0"),
        ({"command": ["a"], "memory": 0}, "memory", "more than 0"),
        ({"command": ["a"], "replicas": 0}, "replicas", "more than 0"),
        ({"command": ["a"], "array": 0}, "array", "more than 0"),
        ({"command": ["a"], "max_runtime": 0}, "max_runtime", "more than 0"),
        ({"command": ["a"], "array": -1}, "array", "0 or more"),
    ],
)
def test_what_is_wrong_is_refused_by_its_name(options: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says) as caught:
        build_spec(options)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("read", "value", "number"),
    [
        (milli, 1, 1000),
        (milli, 0.1, 100),
        (milli, "1.5", 1500),
        (milli, "250m", 250),
        (milli, 0.001, 1),
        (mebibytes, 3, 3),
        (mebibytes, "2GiB", 2048),
        (mebibytes, "2gi", 2048),
        (mebibytes, "1.5 GiB", 1536),
        (mebibytes, "500MB", 477),
        (mebibytes, "1", 1),
        (mebibytes, "1b", 1),
        (milliseconds, 90, 90_000),
        (milliseconds, 0.0001, 1),
        (milliseconds, "90", 90_000),
        (milliseconds, "2h30m", 9_000_000),
        (milliseconds, "1.5d", 129_600_000),
        (milliseconds, "250ms", 250),
    ],
)
def test_amounts_as_people_write_them(read: Any, value: Any, number: int) -> None:
    assert read(value, "f") == number


@pytest.mark.parametrize(
    ("read", "value"),
    [
        *(
            (milli, value)
            for value in ("", "1e3", "-1", "1.5m", "0.0001", "1 core", True, None, float("inf"), "９", [])
        ),
        *((mebibytes, value) for value in ("", "-1", "2XB", 1.5, True, None, "1e9", "9" * 30, -1)),
        *((milliseconds, value) for value in ("", "1h 30m", "2y", -1, float("nan"), True, None, "-1s", "1h30")),
    ],
)
def test_what_is_no_amount_is_refused(read: Any, value: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read(value, "f")
    assert caught.value.field == "f"


@given(
    st.dictionaries(st.sampled_from(KNOWN), st.none() | st.integers() | st.floats() | st.text() | st.lists(st.text()))
)
def test_whatever_is_given_is_read_or_refused(options: dict[str, Any]) -> None:
    with suppress(InvalidArgument):
        build_spec(options).SerializeToString()


def test_what_if_is_said_in_the_words_of_submit() -> None:
    change = build_change(
        {"cpus": "500m", "memory": "2GiB", "only_regions": [], "max_runtime": "30m", "priority": "low"}
    )
    assert change == jobs_pb2.JobChange(
        cpu_milli=500,
        memory_mib=2048,
        required_regions=jobs_pb2.NameList(),
        max_runtime_ms=1_800_000,
        priority_class=common_pb2.PRIORITY_CLASS_LOW,
    )
    assert change.HasField("required_regions")
    assert not change.HasField("pools")
    with pytest.raises(InvalidArgument, match="name: this cannot be asked for instead") as refused:
        build_change({"name": "x"})
    assert refused.value.field == "name"


def test_a_ray_cluster_is_asked_for_by_a_word() -> None:
    assert build_spec({"command": ["true"], "ray": True}).HasField("ray")
    assert not build_spec({"command": ["true"], "ray": False}).HasField("ray")
    assert build_spec({"command": ["true"], "ray_object_store": 512}).ray.object_store_mib == 512
    for options, field in (
        ({"ray": 1}, "ray"),
        ({"ray_object_store": 0}, "ray_object_store"),
        ({"ray": False, "ray_object_store": 512}, "ray_object_store"),
    ):
        with pytest.raises(InvalidArgument) as error:
            build_spec({"command": ["true"], **options})
        assert error.value.field == field
