"""`python -m benchmarks.replay placement …` and `python -m benchmarks.replay queue …`; each explains itself with `--help`."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

REPLAYS = {
    "placement": "dense placement of GPU shares, on traces in the form of fgd-openb",
    "queue": "order and waiting times, on traces in the form of philly-muri",
}


def main(argv: list[str]) -> int:
    """Hand the rest of the command line to the replay that is named."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.replay",
        description="\n".join(f"{name}: {text}" for name, text in REPLAYS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("replay", choices=sorted(REPLAYS))
    chosen = parser.parse_args(argv[:1]).replay
    # Imported only now: each replay brings kernels of its own.
    result: int = import_module(f"benchmarks.replay.{chosen}").main(argv[1:])
    return result


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
