"""The plan of a short run, printed as one line of JSON: a process without devices, as plans are made (`cost.py` starts it)."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    """Arguments: the run's YAML file, processes, the GPU's name as its driver says it."""
    from megatron_native.config.load import load_run_config
    from megatron_native.config.megatron import has_transformer_engine, resolve_layer_spec
    from megatron_native.config.phases import resolve_phases
    from megatron_native.training.plan.gpus import gpu_of_device
    from megatron_native.training.plan.memory import rank_memory
    from megatron_native.training.plan.step_time import estimate_step
    from megatron_native.training.shape import read_model

    path, world_size, name = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    run = load_run_config(path, [])
    model = read_model(run)
    spec = resolve_layer_spec(run, "cuda", has_transformer_engine())
    stages = range(run.parallel.pipeline_model_parallel_size)
    memories = [rank_memory(run, model, world_size, stage, platform="cuda", layer_spec=spec) for stage in stages]
    # What torch allocates, without the plan's allowances for CUDA, NCCL and their libraries.
    peaks = [
        memory.total - sum(size for kind, size in memory.communication.items() if "allowance" in kind)
        for memory in memories
    ]
    gpu = gpu_of_device(name)
    seconds = None if gpu is None else estimate_step(run, model, gpu, world_size, resolve_phases(run)[0]).seconds
    print(json.dumps({"peak_bytes": peaks, "step_seconds": seconds}))


if __name__ == "__main__":
    main()
