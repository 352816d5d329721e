"""Job files: YAML documents with the keywords of ``Client.submit``, read so that every error names its line.

A document is one job, or a list of jobs. ``after: [0]`` means the first job of the file.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from suanli.errors import InvalidArgument, SuanliError
from suanli.spec import build_spec, options_at

MAX_BYTES: Final = 16 << 20
MAX_JOBS: Final = 10_000
MAX_DEPTH: Final = 50
_JOB_FIELD: Final = re.compile(r"jobs\[(\d{1,5})\]\.?")


@dataclass(frozen=True, slots=True)
class JobDocument:
    """One job of a file. ``lines`` has the line of each option and of the entries of its maps ("env.HOME")."""

    options: dict[str, Any]
    source: str
    line: int
    lines: dict[str, int]


def read_jobs(content: bytes, source: str, folder: Path) -> list[JobDocument]:
    """Read and check the jobs of a file. Raises ``InvalidArgument`` whose message begins with "source:line: ".

    ``folder`` is what relative paths in the file (folder, and script where there is no folder) start from.
    """
    if len(content) > MAX_BYTES:
        raise InvalidArgument(f"{source}: the file is larger than {MAX_BYTES >> 20} MiB.", reason="JOB_FILE")
    documents: list[JobDocument] = []
    try:
        for job in _jobs(_Loader(content.decode()), source):
            documents.append(job)
            if len(documents) > MAX_JOBS:
                raise _wrong(source, job.line, f"there are more than {MAX_JOBS:,} jobs in the file")
    except UnicodeDecodeError as error:
        raise _wrong(source, content.count(b"\n", 0, error.start) + 1, "the file is not valid UTF-8") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "it is not readable YAML"
        raise _wrong(source, mark.line + 1 if mark else 1, problem) from None
    except (yaml.YAMLError, ValueError) as error:
        raise _wrong(source, 1, f"it is not readable YAML: {str(error).splitlines()[0]}") from None
    if not documents:
        raise _wrong(source, 1, "there is no job in the file")
    for index, job in enumerate(documents):
        try:
            build_spec(job.options)
        except InvalidArgument as error:
            raise located(error, documents, index) from None
        _from_folder(job.options, folder)
    return documents


def located(error: SuanliError, documents: Sequence[JobDocument], index: int = 0) -> InvalidArgument:
    """The same error with "source:line: " before its sentence.

    Its ``field`` may be an option ("memory"), or the path of a submission ("jobs[3].resources.cpu_milli"), whose index then
    goes before ``index``.
    """
    path = error.field
    if match := _JOB_FIELD.match(path):
        index, path = int(match[1]), path[match.end() :]
    job = documents[min(index, len(documents) - 1)]
    line = next((job.lines[name] for name in _names(path) if name in job.lines), job.line)
    return InvalidArgument(f"{job.source}:{line}: {error.message}", reason=error.reason, field=error.field)


def _names(path: str) -> Iterator[str]:
    """Where to look for the line of a path: itself, then what it is part of, then what it is called in the file."""
    yield path
    yield re.split(r"[.\[]", path, maxsplit=1)[0]
    yield from options_at(path)


def _from_folder(options: dict[str, Any], folder: Path) -> None:
    key = "folder" if options.get("folder") is not None else "script"
    if options.get(key) is not None:
        options[key] = str(folder / Path(str(options[key])).expanduser())


class _Loader(yaml.SafeLoader):
    """Without aliases, which let a small file stand for a huge one, and without keys given twice."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not taken; write it out", problem_mark=self._mark())
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem="it is nested too deeply", problem_mark=self._mark())
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def _mark(self) -> Any:
        return self.peek_event().start_mark  # type: ignore[no-untyped-call]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            problem = "a key must be a text" if not isinstance(key, yaml.ScalarNode) else ""
            if not problem and key.value in seen:
                problem = f"{str(key.value)[:60]!r} is given twice"
            if problem:
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _jobs(loader: _Loader, source: str) -> Iterator[JobDocument]:
    try:
        while loader.check_node():
            node: Any = loader.get_node()
            for one in node.value if isinstance(node, yaml.SequenceNode) else [node]:
                if isinstance(one, yaml.ScalarNode) and one.tag == "tag:yaml.org,2002:null":
                    # An empty document, as after a last "---".
                    continue
                line = one.start_mark.line + 1
                if not isinstance(one, yaml.MappingNode):
                    raise _wrong(
                        source, line, "a job is written as keys and values, as in 'command: [python, train.py]'"
                    )
                yield JobDocument(loader.construct_document(one), source, line, dict(_lines(one)))
    finally:
        loader.dispose()


def _lines(node: yaml.MappingNode, prefix: str = "") -> Iterator[tuple[str, int]]:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        yield name, key.start_mark.line + 1
        if not prefix and isinstance(value, yaml.MappingNode):
            yield from _lines(value, f"{name}.")


def _wrong(source: str, line: int, problem: str) -> InvalidArgument:
    return InvalidArgument(f"{source}:{line}: {problem}.", reason="JOB_FILE", field="")
