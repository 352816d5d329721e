"""Long tests, which start real Ray clusters: ``make soak``."""

from tests.integration.conftest import bubblewrap
from tests.integration.on_ray.conftest import own_token

__all__ = ["bubblewrap", "own_token"]
