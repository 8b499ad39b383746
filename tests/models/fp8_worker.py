"""Emulated FP8 linear layers on real process groups; started by `tests.distributed.run_jobs`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.distributed import leave_groups


def main(description: Path) -> None:
    """Each job: one column- and one row-parallel layer, forward and backward; whole tensors go to `output`, from rank 0."""
    from megatron_native.platform import start_platform

    platform = start_platform("cpu")
    import torch

    for job in json.loads(description.read_text(encoding="utf-8")):
        told = products(job, platform)
        if platform.is_main:
            torch.save(told, job["output"])
        leave_groups()


def products(job: dict[str, Any], platform: Any) -> dict[str, Any]:
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed as seed
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron_native.models.fp8_emulation import Fp8ColumnParallelLinear, Fp8RowParallelLinear

    parallel_state.initialize_model_parallel(tensor_model_parallel_size=platform.world_size)
    seed(1)
    group, size = parallel_state.get_tensor_model_parallel_group(), platform.world_size
    config = TransformerConfig(
        num_layers=4, hidden_size=256, num_attention_heads=8, bf16=True, params_dtype=torch.bfloat16,
        use_cpu_initialization=True, tensor_model_parallel_size=size, sequence_parallel=job["sequence_parallel"],
        gradient_accumulation_fusion=False, **{"fp8": "hybrid", **job["fp8"]},
    )  # fmt: skip

    def gathered(tensor: Any, axis: int) -> Any:
        parts = [torch.empty_like(tensor) for _ in range(size)]
        dist.all_gather(parts, tensor.contiguous(), group=group)
        return torch.cat(parts, axis)

    def part(tensor: Any, axis: int) -> Any:
        return tensor.chunk(size, axis)[platform.rank]

    inputs = torch.load(job["inputs"])
    told: dict[str, Any] = {}
    column_class, row_class = (
        (Fp8ColumnParallelLinear, Fp8RowParallelLinear) if job["emulated"] else (ColumnParallelLinear, RowParallelLinear)
    )
    sequence = 0 if job["sequence_parallel"] else None
    for kind in ("column", "row"):
        x, weight, gradient = (inputs[kind][name] for name in ("input", "weight", "gradient"))
        out_features, in_features = weight.shape
        common = {"config": config, "init_method": torch.nn.init.zeros_, "bias": False, "skip_bias_add": False}
        if kind == "column":
            layer = column_class(in_features, out_features, gather_output=False, **common)
            x_axis, y_axis, weight_axis = sequence, 2, 0
        else:
            layer = row_class(in_features, out_features, input_is_parallel=True, **common)
            x_axis, y_axis, weight_axis = 2, sequence, 1
        if "quantises" in job:
            layer.quantises = job["quantises"]
        layer.weight.data.copy_(part(weight, weight_axis))
        x = (x if x_axis is None else part(x, x_axis)).clone().requires_grad_()
        output, _ = layer(x)
        output.backward(gradient if y_axis is None else part(gradient, y_axis))
        told[kind] = {
            "output": output.detach() if y_axis is None else gathered(output.detach(), y_axis),
            "to_input": x.grad if x_axis is None else gathered(x.grad, x_axis),
            "to_weight": gathered(layer.weight.grad, weight_axis),
        }
    return told
