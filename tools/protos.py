"""Generate the Python stubs of ``protos/suanli/v1/*.proto``, next to their sources.

The proto package is ``suanli.v1``, so protoc writes ``from suanli.v1 import jobs_pb2``. In Python that name belongs to
the SDK, so every such import is rewritten to ``from protos.suanli.v1 import jobs_pb2``; so is the module name that
messages carry, without which they could not be pickled.

    python -m tools.protos           write the stubs, and delete those whose source has gone
    python -m tools.protos --check   write nothing; exit 1 and name the files if the stubs are not up to date
"""

from __future__ import annotations

import argparse
import difflib
import importlib.resources
import os
import re
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

REPOSITORY = Path(__file__).resolve().parent.parent
PROTO_ROOT = REPOSITORY / "protos"
PYTHON_PREFIX = "protos"
STUB_SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")

_FROM_IMPORT = re.compile(r"^(\s*)from (suanli(?:\.\w+)*) import", re.MULTILINE)
_PLAIN_IMPORT = re.compile(r"^(\s*)import (suanli(?:\.\w+)*)", re.MULTILINE)
_STUB_CLASS = re.compile(r"^class \w+Stub\b", re.MULTILINE)
_MODULE_NAME = re.compile(r"(BuildTopDescriptorsAndMessages\(DESCRIPTOR, ')(suanli(?:\.\w+)*_pb2')")


class GenerationError(Exception):
    """protoc refused a source; it has said why on standard error."""


def rewrite(text: str, prefix: str = PYTHON_PREFIX) -> str:
    """Return generated Python with every reference to module ``suanli.…`` moved below ``prefix``."""
    text = _FROM_IMPORT.sub(rf"\1from {prefix}.\2 import", text)
    text = _PLAIN_IMPORT.sub(rf"\1import {prefix}.\2", text)
    return _MODULE_NAME.sub(rf"\1{prefix}.\2", text)


def generate(root: Path) -> dict[Path, str]:
    """Return the stubs of every ``.proto`` below ``root``: path relative to ``root`` -> content.

    Raises GenerationError when protoc finds a fault.
    """
    sources = sorted(str(path.relative_to(root)) for path in root.rglob("*.proto"))
    if not sources:
        return {}
    # The plug-ins of mypy-protobuf stand beside the interpreter, which need not be on the caller's PATH.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    well_known = str(importlib.resources.files("grpc_tools") / "_proto")
    with tempfile.TemporaryDirectory(prefix="suanli-protos-") as folder:
        arguments = [
            "protoc",
            f"--proto_path={root}",
            f"--proto_path={well_known}",
            f"--python_out={folder}",
            f"--grpc_python_out={folder}",
            f"--mypy_out=quiet:{folder}",
            f"--mypy_grpc_out=quiet:{folder}",
            *sources,
        ]
        if protoc.main(arguments) != 0:
            raise GenerationError("protoc refused the sources above")
        out = Path(folder)
        stubs = {path.relative_to(out): rewrite(path.read_text()) for path in sorted(out.rglob("*.py*"))}
    return {path: text for path, text in stubs.items() if not _is_empty_grpc(path, text)}


def _is_empty_grpc(path: Path, text: str) -> bool:
    """Whether this is the gRPC half of a source that defines no service: protoc writes one all the same."""
    return "_pb2_grpc." in path.name and _STUB_CLASS.search(text) is None


def existing(root: Path) -> set[Path]:
    """Return the stubs that stand below ``root`` now, relative to it."""
    return {path.relative_to(root) for path in root.rglob("*_pb2*.py*") if path.name.endswith(STUB_SUFFIXES)}


def drift(root: Path, stubs: dict[Path, str]) -> list[str]:
    """Say, one line or short diff per file, how the files below ``root`` differ from ``stubs``; empty when equal."""
    findings = [f"{path}: no .proto produces it any more" for path in sorted(existing(root) - stubs.keys())]
    for path, wanted in stubs.items():
        target = root / path
        if not target.exists():
            findings.append(f"{path}: missing")
        elif (found := target.read_text()) != wanted:
            lines = difflib.unified_diff(
                found.splitlines(), wanted.splitlines(), str(path), "generated", lineterm="", n=0
            )
            findings.append("\n".join(line[:160] for line in list(lines)[:12]))
    return findings


def write(root: Path, stubs: dict[Path, str]) -> int:
    """Make the stubs below ``root`` equal to ``stubs``; return how many files changed."""
    changed = 0
    for path in existing(root) - stubs.keys():
        (root / path).unlink()
        changed += 1
    for path, text in stubs.items():
        target = root / path
        if not target.exists() or target.read_text() != text:
            target.write_text(text)
            changed += 1
    return changed


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.protos", description="Generate the Python stubs of protos/.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the stubs are not up to date")
    parser.add_argument("--root", type=Path, default=PROTO_ROOT, help="the proto root (default: protos/)")
    options = parser.parse_args(arguments)
    root: Path = options.root.resolve()
    try:
        stubs = generate(root)
    except GenerationError as error:
        print(f"protos: {error}", file=sys.stderr)
        return 1
    if options.check:
        findings = drift(root, stubs)
        for finding in findings:
            print(finding, file=sys.stderr)
        if findings:
            print("protos: the stubs are not up to date; run `make protos` and commit the result", file=sys.stderr)
        return 1 if findings else 0
    print(f"protos: {len(stubs)} stubs, {write(root, stubs)} changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
