"""Runs inside a job: calls the function in ``call.pkl`` and leaves its value or exception in the results folder."""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from pathlib import Path
from typing import Any


def main() -> int:
    """Call the function; 0 when it returned, 1 when it raised, 2 when it could not be called."""
    results = Path(os.environ["SUANLI_RESULTS"])
    results.mkdir(parents=True, exist_ok=True)
    call = pickle.loads(Path("call.pkl").read_bytes())  # noqa: S301 - this job's own input
    here = sys.version_info[:2]
    if tuple(call["python"]) != here:
        wanted = ".".join(map(str, call["python"]))
        print(
            f"The function was sent by Python {wanted}, and this is Python {here[0]}.{here[1]}; use the same version.",
            file=sys.stderr,
        )
        return 2
    try:
        import cloudpickle
    except ImportError:
        print("The job's Python has no package cloudpickle, which carries functions.", file=sys.stderr)
        return 2
    try:
        index = int(os.environ.get("SUANLI_ARRAY_INDEX", "0"))
        function = cloudpickle.loads(call["function"])
        args, kwargs = cloudpickle.loads(call["calls"][index])
        value = function(*args, **kwargs)
        # Only the first replica's value is the job's: the results of a gang are one folder.
        if os.environ.get("RANK", "0") == "0":
            write(results / "value.pkl", cloudpickle.dumps(value, protocol=5))
    except Exception as error:
        report(results, error, cloudpickle)
        return 1
    return 0


def report(results: Path, error: Exception, cloudpickle: Any) -> None:
    """Leave the exception as it is, if it can be sent, and as text."""
    text = traceback.format_exc()
    print(text, file=sys.stderr, end="")
    try:
        exception = cloudpickle.dumps(error, protocol=5)
    except Exception:
        exception = b""
    kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    # The last words of a traceback matter most.
    content = {"kind": kind, "traceback": text[-200_000:], "exception": exception}
    rank = os.environ.get("RANK", "0")
    write(results / ("error.pkl" if rank == "0" else f"error-{rank}.pkl"), pickle.dumps(content, protocol=5))


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    scratch = path.with_name(path.name + ".part")
    scratch.write_bytes(content)
    scratch.replace(path)


if __name__ == "__main__":
    sys.exit(main())
