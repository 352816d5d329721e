"""Python functions as jobs: the call travels in a working folder, its value or exception comes back in the results.

Both are pickles. What a job returns is unpickled by who fetches it, so ask only for results of authors you trust;
``result()`` does so for jobs of the caller alone.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import cloudpickle

from suanli.errors import InvalidArgument, JobError, RemoteError, TransferError
from suanli.folder import PackedFolder, pack_bytes
from suanli.info import JobInfo, failure_of

LABEL = "suanli/function"
RUNNER = "suanli_call.py"
CALL_FILE = "call.pkl"
VALUE_FILE = "value.pkl"
ERROR_FILE = "error.pkl"
MAX_CALL_BYTES = 256 << 20
MAX_VALUE_BYTES = 1 << 30


def pack_call(function: Callable[..., Any], calls: Sequence[tuple[Sequence[Any], Mapping[str, Any]]]) -> PackedFolder:
    """Make the working folder for calling a function with each of these arguments, by array index if several."""
    if not callable(function):
        raise InvalidArgument(f"{function!r} is not a function.", field="function")
    try:
        with _by_value(function):
            parts = [cloudpickle.dumps((tuple(args), dict(kwargs)), protocol=5) for args, kwargs in calls]
            code = cloudpickle.dumps(function, protocol=5)
    except Exception as error:
        # Anything at all may go wrong in the __reduce__ of someone else's class.
        raise InvalidArgument(
            f"The function or its arguments cannot be sent: {type(error).__name__}: {error}.", field="function"
        ) from error
    call = {"python": sys.version_info[:2], "function": code, "calls": parts}
    content = pickle.dumps(call, protocol=5)
    if len(content) > MAX_CALL_BYTES:
        raise InvalidArgument(
            f"The function and its arguments have {len(content):,} bytes; {MAX_CALL_BYTES:,} are the most. Put large "
            "data into files or data sets.",
            field="function",
        )
    runner = resources.files("suanli").joinpath("call_runner.py").read_bytes()
    return pack_bytes({RUNNER: runner, CALL_FILE: content})


def name_of(function: Callable[..., Any]) -> str:
    """A job's name for a function."""
    name = getattr(function, "__qualname__", "") or type(function).__name__
    return "".join(c for c in str(name).replace("<locals>.", "") if c.isprintable())[-128:] or "function"


@contextlib.contextmanager
def _by_value(function: Callable[..., Any]) -> Iterator[None]:
    """Send the code of the user's own module along, since the job's machine does not have it."""
    module = sys.modules.get(getattr(function, "__module__", "") or "")
    if module is None or module.__name__ == "__main__" or _is_installed(getattr(module, "__file__", None)):
        yield
        return
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def _is_installed(file: str | None) -> bool:
    if file is None:
        return True
    paths = sysconfig.get_paths()
    roots = {Path(paths[key]).resolve() for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    return any(root in Path(file).resolve().parents for root in roots)


def load_value(content: bytes) -> Any:
    """Return what the function returned."""
    try:
        return cloudpickle.loads(content)
    except Exception as error:
        raise TransferError(
            f"The function's value cannot be read here: {type(error).__name__}: {error}. Are the packages of its types "
            "installed?"
        ) from error


def failure(info: JobInfo, content: bytes | None) -> Exception:
    """What to raise for a function's job that failed: its exception, caused by a RemoteError with the traceback."""
    plain: JobError = failure_of(info)
    if content is None:
        return plain
    try:
        report = pickle.loads(content)  # noqa: S301 - the caller's own job
        kind, text = str(report["kind"]), str(report["traceback"])
        packed = report["exception"]
    except Exception:
        # The job's code may have written anything at all into its results.
        return plain
    remote = RemoteError(
        f"The function raised {kind} in job {info.id}.", kind=kind, traceback_text=text, job_id=info.id
    )
    try:
        error = cloudpickle.loads(packed)
    except Exception:
        # Its type, or what it holds, cannot be made here; its text can always be told.
        return remote
    if not isinstance(error, Exception):
        return remote
    error.__cause__ = remote
    return error
