"""Real models for tests that want one. They are fetched by `make test`; a test without its model skips and says why."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_FETCH = Path(__file__).resolve().parents[1] / "examples" / "quickstart" / "fetch_model.py"


def smollm2() -> Path:
    """SmolLM2-135M-Instruct's Hugging Face folder in the cache, or a skipped test."""
    spec = importlib.util.spec_from_file_location("fetch_model", _FETCH)
    assert spec is not None and spec.loader is not None
    fetch_model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fetch_model)
    folder = fetch_model.cache_folder() / fetch_model.FOLDER
    if not fetch_model.is_done(folder):
        pytest.skip(f"{folder} is not there; examples/quickstart/fetch_model.py makes it")
    return Path(folder)
