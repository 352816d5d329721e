"""How many pupils does a trial need? One task of an array: a trial of one size, simulated many times.

Draws two groups of pupils whose scores differ by 0.3 standard deviations and counts how often a t test finds it.
"""

import json
import os
from pathlib import Path

import numpy as np

EFFECT = 0.3
TRIALS = 4000

index = int(os.environ["SUANLI_ARRAY_INDEX"])
pupils = 40 * (index + 1)
random = np.random.default_rng([2026, index])
treated = random.normal(EFFECT, 1.0, (TRIALS, pupils))
control = random.normal(0.0, 1.0, (TRIALS, pupils))
error = np.sqrt((treated.var(axis=1, ddof=1) + control.var(axis=1, ddof=1)) / pupils)
t = (treated.mean(axis=1) - control.mean(axis=1)) / error
power = float((np.abs(t) > 1.96).mean())

print(f"{pupils} pupils in each group: the effect is found in {power:.1%} of {TRIALS} trials")
Path(os.environ["SUANLI_RESULTS"], "power.json").write_text(json.dumps({"pupils": pupils, "power": power}))
