"""For all tests: no time limit on single examples (machines differ, and are busy); in CI the same examples always."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile("gate", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("gate"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "gate")
