#!/usr/bin/env python3
"""Stands in for ``python -m ray.scripts.scripts start``: notes how it was started, and behaves as the file ``plan`` beside it says.

The plan has a line for each start: "up" (says that it has started, and waits), "die" (fails at once), "hang" (never starts), "crash" (starts,
and dies when a file named "crash" is there).
"""

import json
import os
import sys
import time
from pathlib import Path

here = Path(os.environ["FAKE_RAY"])
with (here / "starts").open("a") as file:
    file.write(json.dumps({"argv": sys.argv[1:], "env": dict(os.environ), "pid": os.getpid()}) + "\n")
count = len((here / "starts").read_text().splitlines())
plans = (here / "plan").read_text().split()
what = plans[min(count, len(plans)) - 1]
if what == "die":
    print("Ray cannot do this")
    sys.exit(1)
if what != "hang":
    print("some noise", "x" * 100_000)
    print("--- Ray runtime started. ---", flush=True)
while not (what == "crash" and (here / "crash").exists()):
    time.sleep(0.02)
print("Some Ray subprocesses exited unexpectedly: raylet [exit code=-9]", flush=True)
sys.exit(1)
