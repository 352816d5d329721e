"""The policy document as YAML text, with errors that say line and column.

A document is small and comes from a person, so whatever would only serve to exhaust memory is refused before it is built: nesting,
aliases that multiply, more values than the largest sensible policy has.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import yaml

from scheduler.domain.errors import InvalidArgument
from scheduler.planning.policy import Policy
from scheduler.planning.policy_document import ROOT, dump, parse, preset_of

MAX_DOCUMENT_BYTES = 256 * 1024
MAX_EFFECTIVE_BYTES = 4 * 1024 * 1024
MAX_VALUES = 200_000
"""Keys and values, those behind aliases counted each time they are used."""
MAX_DEPTH = 16
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STEP = re.compile(r"\[(\d+)\]|\.?([^.\[]+)")


class PolicyText(NamedTuple):
    """A good document: the policy it says, and that policy's canonical data, as JSON, with the preset it was based on.

    A policy is rebuilt from ``effective``: it stays what it was when a later release changes a preset. Settings which only that
    later release has are taken from the preset.
    """

    policy: Policy
    effective: str


def read_policy(text: str) -> PolicyText:
    """Read and check a document. ``InvalidArgument`` says where it is wrong: path, line and column."""
    root = _compose(text)
    document = _construct(root)
    try:
        policy = parse(document)
    except InvalidArgument as error:
        raise _located(error, root) from None
    effective = json.dumps({"preset": preset_of(document), **dump(policy)}, ensure_ascii=False, separators=(",", ":"))
    if len(effective.encode()) > MAX_EFFECTIVE_BYTES:
        raise InvalidArgument(
            f"{ROOT}: written out, it is larger than {MAX_EFFECTIVE_BYTES:,} bytes; give fewer entries.", field=ROOT
        )
    return PolicyText(policy, effective)


def read_effective(effective: str) -> Policy:
    """The policy of ``PolicyText.effective``."""
    return parse(json.loads(effective))


def effective_of(policy: Policy) -> str:
    """A policy that no document said, in the form of ``PolicyText.effective``."""
    return json.dumps(dump(policy), ensure_ascii=False, separators=(",", ":"))


@functools.lru_cache(maxsize=8)
def yaml_of(effective: str) -> str:
    """``PolicyText.effective`` as YAML, a setting a line, for people and for comparing.

    Kept, because writing the largest takes most of a second and whoever has a key may ask for it.
    """
    text: str = yaml.dump(
        json.loads(effective),
        Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper),
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
    )
    return text


def _compose(text: str) -> yaml.Node | None:
    """The document's tree, or None when there is nothing in it."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_DOCUMENT_BYTES:
        raise InvalidArgument(
            f"{ROOT}: it is larger than {MAX_DOCUMENT_BYTES:,} bytes; is it the right text?", field=ROOT
        )
    try:
        _check_depth(text)
        root: yaml.Node | None = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        _unreadable(str(error.problem or error.context), mark)
    except (yaml.YAMLError, ValueError) as error:
        _unreadable(str(error).splitlines()[0], None)
    if root is not None:
        _count(root, MAX_VALUES, ())
    return root


def _check_depth(text: str) -> None:
    """Read the events once, without building anything: composing a tree takes a call for each level of it."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                _refuse_at(event.start_mark, f"there are more than {MAX_DEPTH} levels.")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _count(node: yaml.Node, room: int, above: tuple[int, ...]) -> int:
    """What is left of ``room``; refuses keys that are given twice, too many values, and values inside themselves."""
    if id(node) in above or len(above) > MAX_DEPTH or room <= 0:
        _refuse_at(node.start_mark, "there are too many values here, or one that contains itself.")
    room -= 1
    inner = (*above, id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            room = _count(item, room, inner)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                _refuse_at(key.start_mark, "a setting's name must be a plain word; merges (<<) are not read.")
            if key.value in seen:
                _refuse_at(key.start_mark, f"{key.value[:64]!a} is given twice.")
            seen.add(key.value)
            room = _count(value, room - 1, inner)
    return room


def _construct(root: yaml.Node | None) -> Mapping[str, Any]:
    if root is None or (isinstance(root, yaml.ScalarNode) and root.tag == "tag:yaml.org,2002:null"):
        return {}
    if not isinstance(root, yaml.MappingNode):
        _refuse_at(root.start_mark, "a policy is written as names and values, as in 'preset: fair'.")
    try:
        document: Mapping[str, Any] = yaml.SafeLoader("").construct_document(root)
    except yaml.MarkedYAMLError as error:
        _unreadable(str(error.problem), error.problem_mark)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        _unreadable(str(error).splitlines()[0], None)
    return document


def _located(error: InvalidArgument, root: yaml.Node | None) -> InvalidArgument:
    """The error with the place in the text of the setting, or of the nearest one around it."""
    node, path = root, error.field.removeprefix(ROOT)
    mark = root.start_mark if root is not None else None
    while path and node is not None and (step := _STEP.match(path)):
        node, found, used = _into(node, path, step)
        if found is None:
            break
        mark, path = found, path[used:]
    sentence = error.message.removeprefix(f"{error.field}: ")
    where = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
    return InvalidArgument(f"{error.field}{where}: {sentence}", reason=error.reason, field=error.field)


def _into(node: yaml.Node, path: str, step: re.Match[str]) -> tuple[yaml.Node | None, yaml.Mark | None, int]:
    """One step down a path: the node there, where it stands, and how much of the path that took."""
    if step[1] is not None:
        if isinstance(node, yaml.SequenceNode) and int(step[1]) < len(node.value):
            item = node.value[int(step[1])]
            return item, item.start_mark, step.end()
        return None, None, 0
    if isinstance(node, yaml.MappingNode):
        rest = path.removeprefix(".")
        # A key may itself have dots in it ("data_sets.v1.2.size"): the longest one that fits is meant.
        for key, value in sorted(node.value, key=lambda pair: -len(pair[0].value)):
            if rest == key.value or rest.startswith((f"{key.value}.", f"{key.value}[")):
                return value, key.start_mark, len(path) - len(rest) + len(key.value)
    return None, None, 0


def _unreadable(problem: str, mark: Any) -> NoReturn:
    _refuse_at(mark, f"this is not readable YAML: {problem[:200]}.")


def _refuse_at(mark: Any, sentence: str) -> NoReturn:
    where = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
    raise InvalidArgument(f"{ROOT}{where}: {sentence}", reason="POLICY_UNREADABLE", field=ROOT)
