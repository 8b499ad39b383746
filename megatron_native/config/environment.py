"""Environment variables that a run on CUDA wants before a device is touched: by layout and mode, never global.

`cuda_environment` says what is set for a run; `start_platform` sets what the shell has not set already. A run in mode
`exact` is refused where the shell holds a value that would undo it.
"""

from __future__ import annotations

from collections.abc import Mapping

from megatron_native.config.run import RunConfig
from megatron_native.errors import UserError

_BASE = {
    "TORCH_NCCL_AVOID_RECORD_STREAMS": "1",
    "TORCH_NCCL_HIGH_PRIORITY": "1",  # collectives before matrix products
    "NCCL_NVLS_ENABLE": "0",  # NVLink SHARP would hold memory and processors that the layers want
    "NCCL_GRAPH_REGISTER": "0",  # expandable segments and registered buffers exclude each other
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",  # less fragmentation; nothing here registers NCCL buffers
    "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",  # NCCL's flight recorder: the last collectives of every rank,
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",  # written down when one times out
}
_PIPELINE = {"NCCL_P2P_NET_CHUNKSIZE": "2097152"}  # activations between stages are large
# Processors that norms leave to communication which runs beside them.
_OVERLAP = {"NVTE_FWD_LAYERNORM_SM_MARGIN": "20", "NVTE_BWD_LAYERNORM_SM_MARGIN": "20"}
_EXACT = {
    "NCCL_ALGO": "Ring",
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
# What gives the same bits in every repetition.
_EXACT_ALLOWED = {
    "NCCL_ALGO": ("Ring", "Tree"),
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": ("0",),
    "CUBLAS_WORKSPACE_CONFIG": (":4096:8", ":16:8"),
}


def cuda_environment(run: RunConfig) -> dict[str, str]:
    """Every variable that a run on CUDA sets, `run.environment` over the project's own."""
    parallel, exact = run.parallel, run.training.mode == "exact"
    splits_layers = parallel.tensor_model_parallel_size > 1 or parallel.context_parallel_size > 1
    overlaps = (
        parallel.overlap_grad_reduce or parallel.overlap_param_gather or parallel.tp_comm_overlap
        or parallel.context_parallel_size > 1
    )  # fmt: skip
    return {
        # One queue keeps a layer's communication before the product that it overlaps with; where layers are whole, many
        # queues let the reduction of gradients run beside them.
        "CUDA_DEVICE_MAX_CONNECTIONS": "1" if splits_layers else "32",
        **_BASE,
        **(_PIPELINE if parallel.pipeline_model_parallel_size > 1 else {}),
        **(_OVERLAP if overlaps and not exact else {}),
        **(_EXACT if exact else {}),
        **run.environment,
    }


def check_environment(run: RunConfig, environ: Mapping[str, str]) -> None:
    """Refuse mode `exact` under variables that undo it.

    Args:
        run: the run's configuration.
        environ: the environment that the run finds (`os.environ`).

    Raises:
        UserError: names every such variable, its value, where it was set and what is right.
    """
    if run.training.mode != "exact":
        return
    wanted = cuda_environment(run)
    findings = []
    for name, allowed in _EXACT_ALLOWED.items():
        value = environ.get(name, wanted[name])
        if value not in allowed:
            where = "in the section environment" if run.environment.get(name) == value else "in the environment"
            findings.append(f"{name} is '{value}' {where}: unset it, or set it to {' or '.join(allowed)}")
    if findings:
        raise UserError(
            "training.mode 'exact' gives the same bits only with deterministic algorithms, and "
            + "; ".join(findings)
            + "; or set training.mode=fast."
        )
