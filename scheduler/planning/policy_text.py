"""The policy document as YAML text, with errors that say line and column."""

from __future__ import annotations

import json
from typing import NamedTuple

from scheduler.domain.document_text import DocumentForm
from scheduler.domain.errors import InvalidArgument
from scheduler.planning.policy import Policy
from scheduler.planning.policy_document import ROOT, dump, parse, preset_of


def _unreadable(place: str, sentence: str) -> InvalidArgument:
    return InvalidArgument(f"{ROOT}{place}: {sentence}", reason="POLICY_UNREADABLE", field=ROOT)


_FORM = DocumentForm(ROOT, "a policy is written as names and values, as in 'preset: fair'.", _unreadable)


class PolicyText(NamedTuple):
    """A good document: the policy it says, and that policy's canonical data, as JSON, with the preset it was based on.

    A policy is rebuilt from ``effective``: it stays what it was when a later release changes a preset. Settings which only that
    later release has are taken from the preset.
    """

    policy: Policy
    effective: str


def read_policy(text: str) -> PolicyText:
    """Read and check a document. ``InvalidArgument`` says where it is wrong: path, line and column."""
    document, policy = _FORM.read(text, parse)
    return PolicyText(policy, _FORM.effective({"preset": preset_of(document), **dump(policy)}))


def read_effective(effective: str) -> Policy:
    """The policy of ``PolicyText.effective``."""
    return parse(json.loads(effective))


def effective_of(policy: Policy) -> str:
    """A policy that no document said, in the form of ``PolicyText.effective``."""
    return _FORM.effective(dump(policy))
