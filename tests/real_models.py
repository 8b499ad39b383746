"""Real models for tests that want one. They are fetched by `make test`; a test without its model skips and says why."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


def fetch_model_script() -> ModuleType:
    """The quickstart's `fetch_model.py` as a module."""
    path = Path(__file__).resolve().parents[1] / "examples" / "quickstart" / "fetch_model.py"
    spec = importlib.util.spec_from_file_location("fetch_model", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def smollm2() -> Path:
    """SmolLM2-135M-Instruct's Hugging Face folder in the cache, or a skipped test."""
    script = fetch_model_script()
    folder = Path(script.cache_folder() / script.FOLDER)
    if not script.is_done(folder):
        pytest.skip(f"{folder} is not there; examples/quickstart/fetch_model.py makes it")
    return folder
