"""Settings for all tests."""

import os

from hypothesis import HealthCheck, settings

# A busy machine is no reason to fail: neither the time one example takes nor that of making it says anything of the code.
# Every run tries the same examples, so that a red test is of the change at hand; `make soak` looks for new ones.
_ALL = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("suanli", derandomize=True, **_ALL)
settings.register_profile("soak", derandomize=False, **_ALL)
settings.load_profile(os.environ.get("SUANLI_HYPOTHESIS", "suanli"))
