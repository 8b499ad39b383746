"""Settings of every test: generated examples are the same in every run, so a failure can be made again."""

from hypothesis import settings

settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile("reproducible")
