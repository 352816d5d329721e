"""Settings for all tests."""

from hypothesis import HealthCheck, settings

# A busy machine is no reason to fail: neither the time one example takes nor that of making it says anything of the code.
settings.register_profile("suanli", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suanli")
