"""The plan of a short run, printed as one line of JSON: a process without devices, as plans are made (`cost.py` starts it)."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path


def main() -> None:
    """Arguments: the run's YAML file, processes, the GPU's name as its driver says it."""
    from megatron_native.config.load import load_run_config
    from megatron_native.config.megatron import has_transformer_engine, resolve_layer_spec
    from megatron_native.config.phases import resolve_phases
    from megatron_native.training.plan.memory import rank_memory
    from megatron_native.training.shape import read_model

    path, world_size, name = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    run = load_run_config(path, [])
    model = read_model(run)
    spec = resolve_layer_spec(run, "cuda", has_transformer_engine())
    stages = range(run.parallel.pipeline_model_parallel_size)
    peaks = [rank_memory(run, model, world_size, stage, spec).total for stage in stages]
    gpu, seconds = gpu_key(name), None
    if gpu is not None:
        from megatron_native.training.plan.gpus import read_gpu
        from megatron_native.training.plan.step_time import estimate_step

        seconds = estimate_step(run, model, read_gpu(gpu), world_size, resolve_phases(run)[0]).seconds
    print(json.dumps({"peak_bytes": peaks, "step_seconds": seconds}))


def gpu_key(device_name: str) -> str | None:
    """The plan's GPU whose kind and memory a device's name says, None where the table has none: `NVIDIA H100 80GB HBM3`."""
    from megatron_native.training.plan.gpus import gpu_names

    words = re.findall(r"[a-z]*\d+[a-z]*", device_name.lower().replace(" gb", "gb"))
    keys = [key for key in gpu_names() if key.split("-")[0] in words]
    sizes = [key for key in keys if any(word.startswith(key.split("-")[-1].rstrip("g")) for word in words)]
    return (sizes or keys or [None])[0]


if __name__ == "__main__":
    main()
