"""Settings of every test: generated examples are the same in every run, so a failure can be made again.

Tests of vLLM's engine live in an environment of their own (`make test-vllm`); where vLLM is not installed they are no part
of the run.
"""

from importlib.util import find_spec

from hypothesis import settings

settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile("reproducible")

collect_ignore = [] if find_spec("vllm") else ["vllm"]
