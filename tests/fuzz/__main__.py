"""Fuzz every call by coverage: ``python -m tests.fuzz --seconds 60``. Needs the extra ``fuzz`` (atheris).

Starts from valid requests and what earlier runs have kept below ``build/fuzz``. What makes the server fail is written to
``tests/fuzz/found``, where ``tests/property/test_fuzz_found.py`` tries it again from then on.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from pathlib import Path

FOLDER = Path("build/fuzz")
FOUND = Path(__file__).parent / "found"
_CALLS_EACH = 4_000
"""After so many calls the platform is made anew: what one call makes there, all later ones have to go through."""
_MAX_INPUT = 4_096
_TIMEOUT_S = 20
_MEMORY_MIB = 4_096


def main() -> int:
    """Parse and run; libFuzzer ends the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="how long to go on")
    arguments = parser.parse_args()
    try:
        import atheris
    except ImportError:
        print("fuzz: atheris is missing; it has wheels for x86-64 Linux: pip install -e '.[fuzz]'", file=sys.stderr)
        return 2
    # Compiled loops take no instruments: the planner is there before.
    importlib.import_module("scheduler.planning.plan")
    with atheris.instrument_imports(include=["scheduler"]):
        from tests.fuzz.platform import Platform
    from tests.property.fuzzing import ODD

    logging.getLogger("scheduler").setLevel(logging.ERROR)
    corpus, words = FOLDER / "corpus", FOLDER / "words"
    for folder in (corpus, FOUND):
        folder.mkdir(parents=True, exist_ok=True)
    platform, calls = Platform(), 0
    for name, seed in platform.seeds.items():
        (corpus / name.replace("/", "-")).write_bytes(seed)
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in ODD if 0 < len(word.encode()) <= 64))

    def call(data: bytes) -> None:
        nonlocal platform, calls
        calls += 1
        if calls % _CALLS_EACH == 0:
            platform.close()
            platform = Platform()
        platform.call(data)

    options = [f"-max_total_time={arguments.seconds}", f"-max_len={_MAX_INPUT}", f"-timeout={_TIMEOUT_S}"]
    options += [f"-rss_limit_mb={_MEMORY_MIB}", f"-dict={words}", f"-artifact_prefix={FOUND}/", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], call)
    atheris.Fuzz()
    return 0


def _escaped(word: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word.encode())


if __name__ == "__main__":
    sys.exit(main())
