"""What a run on GPUs asks of them and of the installed packages, checked before the model is built.

`check_requirements` is a pure function over facts that are handed to it, so that its refusals are tested where there is no
GPU. The versions that the project is written for are declared here, once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from megatron_native.config.model import ModelConfig
from megatron_native.config.phases import resolve_phases
from megatron_native.config.run import RunConfig
from megatron_native.config.user_buffers import overlaps_tensor_parallel
from megatron_native.errors import UserError

MEGATRON_CORE = ((0, 16), (0, 17))
"""Versions of megatron-core: from the first, below the second."""
TRANSFORMER_ENGINE = ((2, 9), (2, 12))
"""Versions of Transformer Engine that megatron-core 0.16 works with: from the first, below the second."""
# First compute capability with FP8 matrix products; blocks of 128 are Hopper's alone (Blackwell has MXFP8 instead).
_FP8_CAPABILITY = (8, 9)
_BLOCKWISE_CAPABILITY = (9, 0)
_FP8_MULTIPLE = 16
_BLOCKWISE_MULTIPLE = 128


@dataclass(frozen=True)
class Machine:
    """What is there.

    Attributes:
        gpu: the device's name, or "" where there is none.
        compute_capability: (major, minor) of the least capable GPU; None where there is none.
        megatron_core: its version.
        transformer_engine: its version, or None where it is not installed.
        has_apex: whether NVIDIA's Apex (the kernel that adds weight gradients up in place) is installed.
    """

    gpu: str
    compute_capability: tuple[int, int] | None
    megatron_core: str
    transformer_engine: str | None
    has_apex: bool = False


def check_requirements(run: RunConfig, model: ModelConfig, machine: Machine) -> None:
    """Refuse a run on CUDA that the machine can't do as configured.

    Raises:
        UserError: names every setting that asks for too much, what is there, and what would do.
    """
    findings = _version_findings(run, machine)
    if run.training.precision == "fp8":
        findings += _capability_findings(run, machine) + fp8_dimension_findings(run, model)
    if findings:
        raise UserError("this machine can't run the configuration: " + "; ".join(findings) + ".")


def requires_transformer_engine(run: RunConfig) -> list[str]:
    """The settings of a run that only Transformer Engine's layers can do on a GPU, as `section.key=value`."""
    settings = []
    if run.training.precision == "fp8":
        settings.append("training.precision=fp8")
    if run.parallel.context_parallel_size > 1:
        settings.append(f"parallel.context_parallel_size={run.parallel.context_parallel_size}")
    if overlaps_tensor_parallel(run):
        settings.append("parallel.tp_comm_overlap=true")
    if run.layer_spec == "transformer_engine":
        settings.append("layer_spec=transformer_engine")
    return settings


def _version_findings(run: RunConfig, machine: Machine) -> list[str]:
    findings = []
    if not _in_band(machine.megatron_core, MEGATRON_CORE):
        findings.append(
            f"megatron-core {machine.megatron_core} is not of the versions {_band(MEGATRON_CORE)} that this is written for: "
            "install one of them"
        )
    needed = requires_transformer_engine(run)
    if needed and machine.transformer_engine is None:
        findings.append(
            f"{', '.join(needed)} needs Transformer Engine ({_band(TRANSFORMER_ENGINE)}), which is not installed: use a "
            "container that has it, or leave these settings out"
        )
    elif needed and run.layer_spec == "torch":
        findings.append(
            f"{', '.join(needed)} needs Transformer Engine's layers, and layer_spec is 'torch': set it to auto"
        )
    uses = run.layer_spec != "torch" and machine.transformer_engine is not None
    if uses and not _in_band(str(machine.transformer_engine), TRANSFORMER_ENGINE):
        findings.append(
            f"Transformer Engine {machine.transformer_engine} is not of the versions {_band(TRANSFORMER_ENGINE)} that "
            f"megatron-core {machine.megatron_core} works with: install one of them, or set layer_spec=torch"
        )
    if run.parallel.defer_embedding_wgrad_compute and not machine.has_apex:
        findings.append(
            "parallel.defer_embedding_wgrad_compute needs the kernel fused_weight_gradient_mlp_cuda of NVIDIA's Apex, which is "
            "not installed: use a container that has it, or switch the setting off"
        )
    return findings


def _capability_findings(run: RunConfig, machine: Machine) -> list[str]:
    there = machine.compute_capability
    if there is None:
        return ["training.precision fp8 needs a GPU, and there is none: set platform=cpu, where FP8 is emulated"]
    name = f"{machine.gpu or 'the GPU'} (compute capability {there[0]}.{there[1]})"
    if there < _FP8_CAPABILITY:
        return [f"training.precision fp8 needs compute capability 8.9 or higher, and {name} has no FP8: use bf16"]
    if run.fp8.recipe == "blockwise" and there[0] != _BLOCKWISE_CAPABILITY[0]:
        return [f"fp8.recipe blockwise is for compute capability 9.0 (Hopper), and this is {name}: use tensorwise"]
    return []


def fp8_multiple(recipe: str) -> int:
    """Of what the sides of matrices, and the tokens of a forward pass on a process, must be multiples in FP8."""
    return _BLOCKWISE_MULTIPLE if recipe == "blockwise" else _FP8_MULTIPLE


def fp8_dimension_findings(run: RunConfig, model: ModelConfig) -> list[str]:
    """Dimensions of matrices, and tokens of a forward pass, that FP8 can't take; empty where it takes all.

    FP8 products want multiples of 16 on both sides; scaling by blocks wants multiples of 128.
    """
    multiple = fp8_multiple(run.fp8.recipe)
    tp = run.parallel.tensor_model_parallel_size
    sequence_share = tp if run.parallel.sequence_parallel else 1
    query = model.num_attention_heads * model.kv_channels
    qkv = query + 2 * model.num_query_groups * model.kv_channels
    sizes = {
        "hidden_size": (model.hidden_size, 1),
        "the attention's output (num_attention_heads × kv_channels)": (query, tp),
        "queries, keys and values together": (qkv, tp),
        "ffn_hidden_size": (model.ffn_hidden_size, tp),
    }
    findings = []
    for name, (size, share) in sizes.items():
        if size % (share * multiple):
            findings.append(
                f"fp8.recipe {run.fp8.recipe} needs {name} {size}"
                + (f" / tensor_model_parallel_size {share}" if share > 1 else "")
                + f" to be a multiple of {multiple}: "
                + ("lower the tensor_model_parallel_size" if share > 1 else "use bf16")
                + (", or take the recipe tensorwise" if multiple == _BLOCKWISE_MULTIPLE else "")
            )
    cp = run.parallel.context_parallel_size
    for phase in resolve_phases(run):
        tokens = phase.seq_length * phase.micro_batch_size
        if tokens % (cp * sequence_share * multiple):
            findings.append(
                f"fp8.recipe {run.fp8.recipe} needs the tokens of a forward pass on a process (phase '{phase.name}': "
                f"seq_length {phase.seq_length} × micro_batch_size {phase.micro_batch_size} / {cp * sequence_share} processes) "
                f"to be a multiple of {multiple}: change data.seq_length"
            )
    return findings


def _in_band(version: str, band: tuple[tuple[int, int], tuple[int, int]]) -> bool:
    match = re.match(r"(\d+)\.(\d+)", version)
    return match is not None and band[0] <= (int(match[1]), int(match[2])) < band[1]


def _band(band: tuple[tuple[int, int], tuple[int, int]]) -> str:
    return f"≥ {band[0][0]}.{band[0][1]}, < {band[1][0]}.{band[1][1]}"
