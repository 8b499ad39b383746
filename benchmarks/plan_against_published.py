"""What the plan estimates for runs whose training speed is published: tokens a second and GPU, and the ratio.

    python benchmarks/plan_against_published.py

The rows and their layouts are in published_speeds.yaml. Two shares of gpus.yaml (matrix products in BF16 and in FP8) were
fitted to one row each, which are marked: their ratio near 1 proves nothing. Nothing is measured here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from results import machine, save

from megatron_native.config.load import validate_run_config
from megatron_native.config.model import ModelConfig
from megatron_native.config.phases import resolve_phases
from megatron_native.training.plan.gpus import read_gpu
from megatron_native.training.plan.step_time import estimate_step

ROWS = Path(__file__).parent / "published_speeds.yaml"


def main() -> None:
    """Estimate every row, print, save."""
    rows = [estimated(row) for row in yaml.safe_load(ROWS.read_text(encoding="utf-8"))["rows"]]
    save(
        "plan_against_published",
        "Estimates of `plan` for published training speeds, H100 SXM, sequence 8,192 where nothing else is said",
        rows, machine(),
        note="estimates, not measurements; 'fitted' names the share of gpus.yaml that was set so that this row agrees; the "
        "batch of the Megatron-LM and DGX-C rows is not in the sources at hand and was taken as 128",
    )  # fmt: skip


def estimated(row: dict[str, Any]) -> dict[str, Any]:
    """One row with its estimate."""
    settings = {
        "run_dir": "run", "model": {"hf_config": "config.json"},
        **row["settings"],
    }  # fmt: skip
    settings["data"] = {"seq_length": 8192, "blend": [{"prefix": "tokens"}], **settings.get("data", {})}
    settings["training"] = {"steps": 50, **settings["training"]}
    run = validate_run_config(settings, row["source"])
    step = estimate_step(run, ModelConfig(**row["model"]), read_gpu("h100-80g"), row["gpus"], resolve_phases(run)[0])
    published = row["tokens_a_second_a_gpu"]
    parts = {name: round(seconds / step.seconds * 100, 1) for name, seconds in step.parts().items()}
    return {
        "source": row["source"], "published": published, "estimated": round(step.tokens_a_second),
        "ratio": round(step.tokens_a_second / published, 3), "fitted": row.get("fitted"),
        "TFLOP/s_causal": round(step.tokens_a_second * step.flops_a_token["causal"] / 1e12),
        "bubble_%": round(step.timeline.bubble * 100, 2), "parts_%": ", ".join(f"{n} {v}" for n, v in parts.items() if v),
    }  # fmt: skip


if __name__ == "__main__":
    main()
