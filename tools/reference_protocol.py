"""The page of the contract, from the sources in ``protos/`` and their comments."""

from __future__ import annotations

import importlib.resources
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FieldDescriptor
from grpc_tools import protoc

from tools.markdown import NOTE, cell, table

PROTO_ROOT = Path(__file__).resolve().parent.parent / "protos"
PROTO_FILES = ("jobs", "admin", "usage", "prices", "budgets", "statements", "regions", "common")
"""The contract, in the order of reading. ``stored.proto`` is carried by no call."""
_PROTOCOL = """
The contract `suanli.v1`, as in [`protos/suanli/v1`](../../protos/suanli/v1). A server also answers gRPC health and reflection, so that
`grpcurl` and its like need no files.

"""
_SCALARS = {
    value: name.removeprefix("TYPE_").lower()
    for name, value in vars(FieldDescriptor).items()
    if name.startswith("TYPE_") and name not in ("TYPE_MESSAGE", "TYPE_ENUM", "TYPE_GROUP")
}
Comments = Mapping[tuple[int, ...], str]


def protocol() -> str:
    """Services, messages and enums with their comments."""
    files = {Path(file.name).stem: file for file in descriptors().file}
    parts = [f"# The contract\n\n{NOTE}"]
    for name in PROTO_FILES:
        file = files[name]
        comments = {tuple(at.path): at.leading_comments.strip() for at in file.source_code_info.location}
        parts.append(f"\n## {Path(file.name).name}\n\n{paragraphs(comments.get((2,)) or detached(file))}")
        for index, service in enumerate(file.service):
            parts.append(service_part(service, (6, index), comments))
        for index, message in enumerate(file.message_type):
            parts += message_parts(message, message.name, (4, index), comments)
        for index, enum in enumerate(file.enum_type):
            parts.append(enum_part(enum, enum.name, (5, index), comments))
    parts.insert(1, _PROTOCOL.rstrip() + "\n")
    return "".join(parts)


def descriptors() -> descriptor_pb2.FileDescriptorSet:
    """The contract with its comments, from protoc."""
    well_known = str(importlib.resources.files("grpc_tools") / "_proto")
    with tempfile.TemporaryDirectory(prefix="suanli-reference-") as folder:
        target = Path(folder) / "contract.binpb"
        sources = [f"suanli/v1/{name}.proto" for name in PROTO_FILES]
        arguments = ["protoc", f"--proto_path={PROTO_ROOT}", f"--proto_path={well_known}", "--include_source_info"]
        if protoc.main([*arguments, f"--descriptor_set_out={target}", *sources]) != 0:
            raise SystemExit("reference: protoc refused the sources above")
        return descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())


def detached(file: descriptor_pb2.FileDescriptorProto) -> str:
    """The comment at the head of a file: it stands above ``package``, or apart from it."""
    for at in file.source_code_info.location:
        if tuple(at.path) in ((2,), (12,)):
            for text in (at.leading_comments, *at.leading_detached_comments):
                if text.strip():
                    return text
    return ""


def paragraphs(text: str) -> str:
    """A comment as Markdown."""
    return (
        "\n".join(line.strip() for line in text.strip().splitlines()).replace("<", "&lt;") + "\n"
        if text.strip()
        else ""
    )


def service_part(service: descriptor_pb2.ServiceDescriptorProto, at: tuple[int, ...], comments: Comments) -> str:
    """A service with its calls."""
    rows = []
    for index, method in enumerate(service.method):
        request = ("stream of " if method.client_streaming else "") + link(method.input_type)
        response = ("stream of " if method.server_streaming else "") + link(method.output_type)
        rows.append((f"`{method.name}`", request, response, cell(comments.get((*at, 2, index), ""))))
    return f"\n### {service.name}\n\n{table(('call', 'request', 'response', 'meaning'), rows)}"


def message_parts(
    message: descriptor_pb2.DescriptorProto, name: str, at: tuple[int, ...], comments: Comments
) -> Iterator[str]:
    """A message, then those within it."""
    entries = {f"{name}.{inner.name}": inner for inner in message.nested_type if inner.options.map_entry}
    yield f"\n### {name}\n\n{paragraphs(comments.get(at, ''))}"
    rows = []
    for index, field in enumerate(message.field):
        one_of = f" (one of `{message.oneof_decl[field.oneof_index].name}`)" if field.HasField("oneof_index") else ""
        text = cell(comments.get((*at, 2, index), "")).replace("<", "&lt;")
        rows.append((str(field.number), f"`{field.name}`{one_of}", field_type(field, entries), text))
    if rows:
        yield "\n" + table(("no.", "field", "type", "meaning"), rows)
    for index, inner in enumerate(message.nested_type):
        if not inner.options.map_entry:
            yield from message_parts(inner, f"{name}.{inner.name}", (*at, 3, index), comments)
    for index, enum in enumerate(message.enum_type):
        yield enum_part(enum, f"{name}.{enum.name}", (*at, 4, index), comments)


def enum_part(enum: descriptor_pb2.EnumDescriptorProto, name: str, at: tuple[int, ...], comments: Comments) -> str:
    """An enum with its values."""
    rows = [
        (str(value.number), f"`{value.name}`", cell(comments.get((*at, 2, index), "")))
        for index, value in enumerate(enum.value)
    ]
    return f"\n### {name}\n\n{paragraphs(comments.get(at, ''))}\n{table(('no.', 'value', 'meaning'), rows)}"


def field_type(
    field: descriptor_pb2.FieldDescriptorProto, entries: Mapping[str, descriptor_pb2.DescriptorProto]
) -> str:
    """How a field's type is written."""
    name = field.type_name.removeprefix(".suanli.v1.")
    if name in entries:
        return f"map of {field_type(entries[name].field[0], {})} to {field_type(entries[name].field[1], {})}"
    plain = link(field.type_name) if field.type_name else _SCALARS[field.type]
    return f"repeated {plain}" if field.label == FieldDescriptor.LABEL_REPEATED else plain


def link(type_name: str) -> str:
    """A link to a message or enum of the page."""
    name = type_name.removeprefix(".suanli.v1.")
    return f"[{name}](#{name.lower().replace('.', '')})"
