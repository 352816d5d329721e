"""Have bubblewrap, which the sandbox of jobs needs: ``python -m tools.bubblewrap`` prints the folder it is in.

It is taken from ``PATH``, else from Debian's package ``bubblewrap``, unpacked below ``.tools/`` (50 kB). Nothing is
installed, and nobody need be root.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tools.debian import FetchError, fetch

PROGRAM = "bwrap"
TOOLS = Path(__file__).resolve().parent.parent / ".tools"
_HELP = "install the package bubblewrap, or put its program bwrap on PATH"


class BubblewrapUnavailableError(Exception):
    """There is no bubblewrap for this machine, or it could not be fetched; the message says what to do."""


def bubblewrap_folder(tools: Path = TOOLS) -> Path:
    """Return the folder that holds ``bwrap``, fetching it on first use. Raises BubblewrapUnavailableError."""
    if found := shutil.which(PROGRAM):
        return Path(found).parent
    folder = tools / "bubblewrap"
    try:
        fetch("bubblewrap", (PROGRAM,), folder)
    except FetchError as error:
        raise BubblewrapUnavailableError(f"{error}: {_HELP}") from error
    return folder


def main() -> int:
    """Print the folder; return 1 if there is none."""
    try:
        print(bubblewrap_folder())
    except BubblewrapUnavailableError as error:
        print(f"bubblewrap: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
