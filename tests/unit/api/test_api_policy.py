"""The policy over the wire: who may change it, and how a change is told from another's."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
import yaml

from protos.suanli.v1 import admin_pb2
from scheduler.planning.policy import PRESETS, Policy
from scheduler.planning.policy_document import parse
from tests.support.api import Agent, Api, info_of

Code = grpc.StatusCode


async def put(api: Api, document: str, user: str = "op", **values: Any) -> admin_pb2.PutPolicyResponse:
    request = admin_pb2.PutPolicyRequest(document_yaml=document, **values)
    response: admin_pb2.PutPolicyResponse = await api[user].admin.PutPolicy(request)
    return response


async def get(api: Api, version: int = 0, user: str = "op") -> admin_pb2.Policy:
    policy: admin_pb2.Policy = (await api[user].admin.GetPolicy(admin_pb2.GetPolicyRequest(version=version))).policy
    return policy


async def failure(call: Any) -> tuple[grpc.StatusCode, str, str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    info = info_of(caught.value)
    return caught.value.code(), info.reason, info.metadata.get("field", ""), str(caught.value.details())


async def test_before_any_was_put_the_built_in_one_is_shown(api: Api) -> None:
    policy = await get(api)

    assert (policy.version, policy.document_yaml, policy.author, policy.create_time_ms) == (0, "", "", 0)
    assert parse(yaml.safe_load(policy.effective_yaml)) == Policy()
    assert await failure(get(api, 1)) == (
        Code.NOT_FOUND,
        "POLICY_NOT_FOUND",
        "version",
        "There is no version 1 of the policy; `suanli policy history` lists them.",
    )


async def test_a_version_is_put_and_read_back_by_everyone(api: Api) -> None:
    document = "# for the exams\npreset: fair\n"
    response = await put(api, document, comment="exams")

    assert response.policy.version == 1
    assert list(response.warnings) == []
    for user in ("op", "ada", "ann", "fay", "fin"):
        policy = await get(api, user=user)
        assert policy == response.policy
        assert policy == await get(api, 1, user)
        assert (policy.document_yaml, policy.author, policy.comment) == (document, "op", "exams")
        assert policy.create_time_ms > 0
    assert api.control_plane.engine.policy == PRESETS["fair"]
    assert parse(yaml.safe_load(response.policy.effective_yaml)) == PRESETS["fair"]
    assert b"suanli_policy_version 1.0" in await api.metrics.page(api.control_plane)


async def test_only_an_operator_puts_one(api: Api) -> None:
    for user in ("ada", "ann", "fay", "fin"):
        assert (await failure(put(api, "", user)))[:2] == (Code.PERMISSION_DENIED, "ROLE_NOT_ALLOWED")
        assert (await failure(put(api, "", user, validate_only=True)))[0] is Code.PERMISSION_DENIED
    assert (await get(api)).version == 0


async def test_the_first_of_two_who_change_it_wins(api: Api) -> None:
    await put(api, "preset: fair")
    await put(api, "preset: fifo", expected_version=1)

    code, reason, field, said = await failure(put(api, "preset: shortest", expected_version=1))

    assert (code, reason, field) == (Code.FAILED_PRECONDITION, "POLICY_CHANGED", "expected_version")
    assert "at version 2 by now" in said
    assert (await get(api)).document_yaml == "preset: fifo"


async def test_a_check_says_what_would_be_and_changes_nothing(api: Api) -> None:
    agent = Agent(api)
    await agent.enrol()
    await agent.connect()
    document = "guarantees: [{institution: uni-a, pool: east/cpu, amount: {cpu: 9}}]"

    response = await put(api, document, validate_only=True)

    assert response.policy.version == 0
    assert "institution: uni-a" in response.policy.effective_yaml
    assert [warning[:30] for warning in response.warnings] == ["policy.guarantees: 112 % of th"]
    assert (await get(api)).version == 0
    assert await put(api, document) == admin_pb2.PutPolicyResponse(policy=await get(api, 1), warnings=response.warnings)


@pytest.mark.parametrize(
    ("values", "field", "said"),
    [
        ({"document": "order: [\n"}, "policy", "policy (line 2, column 1): this is not readable YAML"),
        (
            {"document": "order:\n  shortness: -1\n"},
            "policy.order.shortness",
            "policy.order.shortness (line 2, column 3): -1 is not a number",
        ),
        ({"document": "", "comment": "x" * 1001}, "comment", "at most 1,000"),
        ({"document": "", "comment": "a\nb"}, "comment", "control character"),
        ({"document": "", "expected_version": -1}, "expected_version", "out of range"),
        ({"document": "#" * (256 * 1024 + 1)}, "policy", "larger than 262,144 bytes"),
    ],
)
async def test_a_wrong_one_is_refused_where_it_is_wrong(api: Api, values: Any, field: str, said: str) -> None:
    code, _, found, sentence = await failure(put(api, **values))

    assert (code, found) == (Code.INVALID_ARGUMENT, field)
    assert said in sentence
    assert (await get(api)).version == 0


async def test_versions_are_listed_newest_first_in_pages(api: Api) -> None:
    for number in range(1, 6):
        await put(api, f"order: {{shortness: {number}}}", comment=f"the {number}.")
    versions: list[admin_pb2.PolicyVersion] = []
    pages = 0
    request = admin_pb2.ListPolicyVersionsRequest(page_size=2)
    while pages == 0 or request.page_token:
        response = await api["ada"].admin.ListPolicyVersions(request)
        versions += response.versions
        request.page_token = response.next_page_token
        pages += 1

    assert pages == 3
    assert [(one.version, one.comment, one.author) for one in versions] == [
        (number, f"the {number}.", "op") for number in (5, 4, 3, 2, 1)
    ]
    request = admin_pb2.ListPolicyVersionsRequest(page_token="nonsense")
    assert (await failure(api["op"].admin.ListPolicyVersions(request)))[:2] == (Code.INVALID_ARGUMENT, "PAGE_TOKEN")
    assert (await failure(get(api, -1)))[2] == "version"


async def test_presets_are_listed_with_what_they_mean(api: Api) -> None:
    response = await api["ada"].admin.ListPolicyPresets(admin_pb2.ListPolicyPresetsRequest())

    assert [preset.name for preset in response.presets] == sorted(PRESETS)
    for preset in response.presets:
        assert preset.description
        assert parse(yaml.safe_load(preset.effective_yaml)) == PRESETS[preset.name]
