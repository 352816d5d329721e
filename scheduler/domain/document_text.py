"""Documents that people write as YAML text (policy, price lists), with errors that say line and column.

A document is small and comes from a person, so whatever would only serve to exhaust memory is refused before it is built: nesting,
aliases that multiply, more values than the largest sensible document has.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NoReturn, TypeVar

import yaml

from scheduler.domain.errors import InvalidArgument

T = TypeVar("T")
MAX_DOCUMENT_BYTES = 256 * 1024
MAX_EFFECTIVE_BYTES = 4 * 1024 * 1024
MAX_VALUES = 200_000
"""Keys and values, those behind aliases counted each time they are used."""
MAX_DEPTH = 16
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STEP = re.compile(r"\[(\d+)\]|\.?([^.\[]+)")
_DECIMAL = re.compile(r"[-+]?[0-9]+\.[0-9]*")


@dataclass(frozen=True, slots=True)
class DocumentForm:
    """A kind of document.

    ``root``: the first word of all its paths; ``no_mapping``: what to say when it is none; ``unreadable``: the error for what is wrong with
    its YAML, given the place (" (line 1, column 2)" or empty) and a sentence.
    """

    root: str
    no_mapping: str
    unreadable: Callable[[str, str], InvalidArgument]

    def read(self, text: str, parse: Callable[[Mapping[str, Any]], T]) -> tuple[Mapping[str, Any], T]:
        """The document and what ``parse`` makes of it. ``InvalidArgument`` says where it is wrong: path, line and column.

        Numbers with a point are ``Decimal``, as they stand there.
        """
        root = self._compose(text)
        document = self._construct(root)
        try:
            return document, parse(document)
        except InvalidArgument as error:
            raise self._located(error, root) from None

    def effective(self, data: Mapping[str, Any]) -> str:
        """All that a document says, as JSON. ``InvalidArgument`` when that is too large."""
        effective = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        if len(effective.encode()) > MAX_EFFECTIVE_BYTES:
            raise InvalidArgument(
                f"{self.root}: written out, it is larger than {MAX_EFFECTIVE_BYTES:,} bytes; give fewer entries.",
                field=self.root,
            )
        return effective

    def _compose(self, text: str) -> yaml.Node | None:
        """The document's tree, or None when there is nothing in it."""
        if len(text.encode("utf-8", "surrogatepass")) > MAX_DOCUMENT_BYTES:
            raise InvalidArgument(
                f"{self.root}: it is larger than {MAX_DOCUMENT_BYTES:,} bytes; is it the right text?", field=self.root
            )
        try:
            self._check_depth(text)
            root: yaml.Node | None = yaml.compose(text, Loader=_LOADER)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self._unreadable(str(error.problem or error.context), mark)
        except (yaml.YAMLError, ValueError) as error:
            self._unreadable(str(error).splitlines()[0], None)
        if root is not None:
            self._count(root, MAX_VALUES, ())
        return root

    def _check_depth(self, text: str) -> None:
        """Read the events once, without building anything: composing a tree takes a call for each level of it."""
        depth = 0
        for event in yaml.parse(text, Loader=_LOADER):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > MAX_DEPTH:
                    self._refuse_at(event.start_mark, f"there are more than {MAX_DEPTH} levels.")
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1

    def _count(self, node: yaml.Node, room: int, above: tuple[int, ...]) -> int:
        """What is left of ``room``; refuses keys that are given twice, too many values, and values inside themselves."""
        if id(node) in above or len(above) > MAX_DEPTH or room <= 0:
            self._refuse_at(node.start_mark, "there are too many values here, or one that contains itself.")
        room -= 1
        inner = (*above, id(node))
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                room = self._count(item, room, inner)
        elif isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                    self._refuse_at(key.start_mark, "a setting's name must be a plain word; merges (<<) are not read.")
                if key.value in seen:
                    self._refuse_at(key.start_mark, f"{key.value[:64]!a} is given twice.")
                seen.add(key.value)
                room = self._count(value, room - 1, inner)
        return room

    def _construct(self, root: yaml.Node | None) -> Mapping[str, Any]:
        if root is None or (isinstance(root, yaml.ScalarNode) and root.tag == "tag:yaml.org,2002:null"):
            return {}
        if not isinstance(root, yaml.MappingNode):
            self._refuse_at(root.start_mark, self.no_mapping)
        try:
            document: Mapping[str, Any] = _Constructor("").construct_document(root)
        except yaml.MarkedYAMLError as error:
            self._unreadable(str(error.problem), error.problem_mark)
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            self._unreadable(str(error).splitlines()[0], None)
        return document

    def _located(self, error: InvalidArgument, root: yaml.Node | None) -> InvalidArgument:
        """The error with the place in the text of the setting, or of the nearest one around it."""
        node, path = root, error.field.removeprefix(self.root)
        mark = root.start_mark if root is not None else None
        while path and node is not None and (step := _STEP.match(path)):
            node, found, used = _into(node, path, step)
            if found is None:
                break
            mark, path = found, path[used:]
        sentence = error.message.removeprefix(f"{error.field}: ")
        where = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
        return InvalidArgument(f"{error.field}{where}: {sentence}", reason=error.reason, field=error.field)

    def _unreadable(self, problem: str, mark: Any) -> NoReturn:
        self._refuse_at(mark, f"this is not readable YAML: {problem[:200]}.")

    def _refuse_at(self, mark: Any, sentence: str) -> NoReturn:
        where = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
        raise self.unreadable(where, sentence)


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


class _Constructor(yaml.SafeLoader):
    """As PyYAML does, but for numbers with a point."""


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Decimal | float:
    if _DECIMAL.fullmatch(node.value):
        return Decimal(node.value)
    return loader.construct_yaml_float(node)


_Constructor.add_constructor("tag:yaml.org,2002:float", _number)


@functools.lru_cache(maxsize=8)
def yaml_of(effective: str) -> str:
    """What ``DocumentForm.effective`` wrote as YAML, a setting a line, for people and for comparing.

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
