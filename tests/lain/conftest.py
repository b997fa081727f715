"""Settings of all tests of this folder."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "lain",
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("lain")
