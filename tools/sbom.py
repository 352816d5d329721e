"""What the product is made of: a CycloneDX bill of materials of the installed environment, without the developers' tools.

    python -m tools.sbom                   write dist/suanli.cdx.json
    python -m tools.sbom --requirements    print the same packages as pinned requirements, for `make audit-deps`

``cyclonedx-py`` describes everything that is installed; kept is what the product needs, with all its extras but "dev".
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parent.parent
DEFAULT = REPOSITORY / "dist" / "suanli.cdx.json"
ROOT = "suanli"
DEVELOPERS = "dev"


def normal(name: str) -> str:
    """A package's name in the one form that PEP 503 compares."""
    return re.sub(r"[-_.]+", "-", name).lower()


def product() -> dict[str, str]:
    """Name -> version of every installed package the product needs, itself left out; extras that are not installed are not there."""
    extras = {extra for extra in distribution(ROOT).metadata.get_all("Provides-Extra") or () if extra != DEVELOPERS}
    found: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting: list[tuple[str, frozenset[str]]] = [(ROOT, frozenset(extras))]
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        try:
            one = distribution(name)
        except PackageNotFoundError:
            continue
        if name != ROOT:
            found[name] = one.version
        for line in one.requires or ():
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in (wanted or {""})):
                waiting.append((normal(requirement.name), frozenset(requirement.extras)))
    return found


def kept(bill: dict[str, Any], packages: dict[str, str]) -> dict[str, Any]:
    """A bill of materials with these packages only, and the dependencies between them."""
    components = [one for one in bill["components"] if normal(one["name"]) in packages]
    root = bill["metadata"]["component"]["bom-ref"]
    refs = {one["bom-ref"] for one in components} | {root}
    dependencies = [
        one | ({"dependsOn": [ref for ref in one["dependsOn"] if ref in refs]} if "dependsOn" in one else {})
        for one in bill["dependencies"]
        if one["ref"] in refs
    ]
    return bill | {"components": components, "dependencies": dependencies}


def whole(validate: bool) -> dict[str, Any]:
    """The bill of materials of this environment, as CycloneDX's own tool writes it."""
    command = [sys.executable, "-m", "cyclonedx_py", "environment", sys.executable, "--output-reproducible"]
    command += [
        "--pyproject",
        str(REPOSITORY / "pyproject.toml"),
        "--of",
        "JSON",
        "--validate" if validate else "--no-validate",
    ]
    written = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    bill: dict[str, Any] = json.loads(written)
    return bill


def main(arguments: list[str] | None = None) -> int:
    """Write or print; 0."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.sbom", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requirements", action="store_true", help="print requirements instead")
    parser.add_argument("--output", type=Path, default=DEFAULT)
    parser.add_argument(
        "--no-validate", action="store_true", help="do not compare with the schema, which takes a while"
    )
    options = parser.parse_args(arguments)
    packages = product()
    if options.requirements:
        # A local version, as of a build for one kind of processor, has no page of its own in any list of vulnerabilities.
        print("\n".join(f"{name}=={version.partition('+')[0]}" for name, version in sorted(packages.items())))
        return 0
    bill = kept(whole(not options.no_validate), packages)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(bill, indent=2, ensure_ascii=False) + "\n")
    print(f"sbom: {len(bill['components'])} packages in {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
