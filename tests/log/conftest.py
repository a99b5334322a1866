"""Property tests here do disk work: an example may be slow on a loaded machine, which says nothing about the code."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("disk", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("disk")
