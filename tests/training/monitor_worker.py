"""Jobs of the monitors' tests on real processes: build a model in a layout, plant a fault, ask the monitors.

Every rank writes what it was told to `<output>.<rank>.json`, so that a test sees that all ranks agree.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from megatron_native.platform import Platform, start_platform

SEQ_LENGTH, SEQUENCES = 32, 8


def training_batch(vocab_size: int) -> torch.Tensor:
    """Fixed ids [SEQUENCES, SEQ_LENGTH + 1]."""
    return torch.randint(0, vocab_size, (SEQUENCES, SEQ_LENGTH + 1), generator=torch.Generator().manual_seed(11))


def build(job: dict[str, Any], platform: Platform) -> Any:
    """The trainable model of a job, with its checkpoint's weights."""
    from megatron_native.config.megatron import megatron_configs
    from megatron_native.config.run import RunConfig
    from megatron_native.platform import seed_everything
    from megatron_native.training.checkpoints import load_weights
    from megatron_native.training.model import build_trainable_model, initialize_parallel_state
    from megatron_native.training.shape import read_model

    run = RunConfig.model_validate({
        "run_dir": job["output"], "model": {"checkpoint": job["checkpoint"]},
        "data": {"seq_length": SEQ_LENGTH, "blend": [{"prefix": "unused"}]},
        "training": {"steps": 1, "global_batch_size": SEQUENCES, "precision": job.get("precision", "fp32")},
        "parallel": job.get("parallel", {}),
    })  # fmt: skip
    initialize_parallel_state(run)
    seed_everything(run.seed)
    config = read_model(run)
    model = build_trainable_model(run, config, megatron_configs(run, config, "cpu", "torch", False), platform.device)
    load_weights(Path(job["checkpoint"]), model)
    return model, config


def plant(fault: str | None, modules: list[Any]) -> None:
    """Make the running model another one than was imported."""
    for module in modules:
        layers, rotary = module.decoder.layers, module.rotary_pos_emb
        with torch.no_grad():
            if fault == "swapped layers" and len(layers) > 1:
                for one, other in zip(layers[0].parameters(), layers[1].parameters()):
                    kept = one.clone()
                    one.copy_(other)
                    other.copy_(kept)
            elif fault == "swapped norms":
                kept = layers[0].input_layernorm.weight.clone()
                layers[0].input_layernorm.weight.copy_(layers[0].pre_mlp_layernorm.weight)
                layers[0].pre_mlp_layernorm.weight.copy_(kept)
            elif fault == "shifted columns":
                weight = layers[0].self_attention.linear_proj.weight
                weight.copy_(weight.roll(weight.shape[1] // 8, 1))
            elif fault == "not a number" and module.post_process:
                module.decoder.final_layernorm.weight[3] = float("nan")
            elif fault is not None and fault.startswith("epsilon "):
                for part in module.modules():
                    if hasattr(part, "eps"):
                        part.eps = float(fault.split()[1])
            elif fault is not None and fault.startswith("base "):
                width = 2 * len(rotary.inv_freq)
                exponents = torch.arange(0, width, 2) / width
                rotary.inv_freq = rotary.inv_freq * float(fault.split()[1]) ** -exponents
                type(rotary).forward.cache_clear()


def check_gate(job: dict[str, Any], platform: Platform) -> dict[str, Any]:
    """`check_import` and what it left behind."""
    from megatron_native.errors import UserError
    from megatron_native.training import import_gate

    model, _ = build(job, platform)
    if "only_rank" not in job or job["only_rank"] == platform.rank:
        plant(job.get("fault"), model.modules)
    model.chunks[0].eval() if job.get("in_eval_mode") else None
    constants = import_gate._check_constants
    if job.get("logits_only"):
        import_gate._check_constants = lambda *_: None
    before = [parameter.clone() for chunk in model.chunks for parameter in chunk.parameters()]
    modes, random_state = [chunk.training for chunk in model.chunks], torch.get_rng_state()
    try:
        result = import_gate.check_import(model, Path(job["checkpoint"]), platform.device, job["precision"])
        told = {
            "message": result.message, "compared": result.compared, "texts": [asdict(text) for text in result.texts],
        }  # fmt: skip
    except UserError as error:
        told = {"refused": str(error)}
    finally:
        import_gate._check_constants = constants
    after = [parameter for chunk in model.chunks for parameter in chunk.parameters()]
    told["left as it was"] = (
        all(torch.equal(one, other) or bool(one.isnan().any()) for one, other in zip(before, after))
        and torch.equal(random_state, torch.get_rng_state())
        and modes == [chunk.training for chunk in model.chunks]
        and all(parameter.grad is None for parameter in after)
    )
    return told


HF_NAMES = {
    "embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "output_layer.weight": "lm_head.weight",
    "decoder.final_layernorm.weight": "model.norm.weight",
    "decoder.layers.3.mlp.linear_fc2.weight": "model.layers.3.mlp.down_proj.weight",
    "decoder.layers.2.self_attention.linear_proj.weight": "model.layers.2.self_attn.o_proj.weight",
    "decoder.layers.0.input_layernorm.weight": "model.layers.0.input_layernorm.weight",
}


def check_masters(job: dict[str, Any], platform: Platform) -> dict[str, Any]:
    """`check_masters` before and after a master has moved by its last bit on one rank."""
    from safetensors.torch import load_file

    from megatron_native.errors import UserError
    from megatron_native.training import import_gate
    from megatron_native.training.masters import masters_of
    from megatron_native.training.parameter_names import named_parameters

    model, _ = build(job, platform)
    result = import_gate.check_masters(model)
    told: dict[str, Any] = {"message": result.message, "values": result.values}
    if "fp8" in job:
        known = import_gate.is_float8tensor
        import_gate.is_float8tensor = lambda weight: weight.ndim == 2 and platform.rank == 1
        try:
            import_gate.check_masters(model)
        except UserError as error:
            told["fp8"] = str(error)
        import_gate.is_float8tensor = known
    names = named_parameters(model.modules)
    masters = list(masters_of(model.optimizer))
    if "hf" in job:  # one process: a master is the whole weight
        tensors = load_file(Path(job["hf"]) / "model.safetensors")
        by_name = {names[weight]: master for weight, _, master in masters}
        told["equal to Hugging Face"] = [
            name
            for name, there in HF_NAMES.items()
            if torch.equal(by_name[name].flatten(), tensors[there].float().flatten())
        ]
    if masters and "moved" in job and platform.rank == torch.distributed.get_world_size() - 1:
        weight, _, master = masters[job["moved"]]
        master.detach().view(-1).view(torch.int32)[-1] += 1
        told["moved"] = names[weight]
    try:
        import_gate.check_masters(model)
    except UserError as error:
        told["refused"] = str(error)
    return told


@torch.no_grad()
def fill_padding(module: Any) -> None:
    """Put values into the rows that pad the vocabulary: whatever is there must not show in any figure."""
    from megatron.core import parallel_state

    for name, parameter in module.named_parameters():
        if name in ("embedding.word_embeddings.weight", "output_layer.weight"):
            first = parallel_state.get_tensor_model_parallel_rank() * parameter.shape[0]
            parameter[max(0, module.unpadded_vocab_size - first) :] = 7.0


def made_up_logits() -> tuple[torch.Tensor, torch.Tensor, int]:
    """Logits [s, b, 6] whose last columns are padding, a mask [b, s], and how many columns have a token."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(5, 2, 6, generator=generator) * 4, torch.rand(2, 5, generator=generator).round(), 2


def observe_made_up_logits(platform: Platform) -> dict[str, Any]:
    """Statistics of those logits with the columns dealt out over the tensor-parallel ranks; the last may have padding only."""
    from megatron.core import parallel_state

    from megatron_native.training.norms import LogitStatistics

    statistics = LogitStatistics(platform.device)
    logits, mask, vocabulary = made_up_logits()
    ranks, rank = parallel_state.get_tensor_model_parallel_world_size(), parallel_state.get_tensor_model_parallel_rank()
    part = logits.chunk(ranks, dim=-1)[rank]
    padded = min(part.shape[-1], max(0, (rank + 1) * part.shape[-1] - vocabulary))
    if parallel_state.is_pipeline_last_stage() and parallel_state.get_data_parallel_rank() == 0:
        for piece, piece_mask in ((logits[:2], mask[:, :2]), (logits[2:], mask[:, 2:])):
            statistics.observe(piece.chunk(ranks, dim=-1)[rank], padded, piece_mask)
        statistics.observe(part, padded, torch.zeros_like(mask))
    return asdict(statistics.figures())


def norms(job: dict[str, Any], platform: Platform) -> dict[str, Any]:
    """`measure_norms` around one forward and backward pass over the fixed batch; then the optimizer's own norm."""
    from megatron.core import parallel_state
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from megatron_native.training.norms import LogitStatistics, measure_norms

    model, config = build(job, platform)
    statistics = LogitStatistics(platform.device)
    for module in model.modules:
        module.logit_observer = statistics
        fill_padding(module)
    for chunk in model.chunks:
        chunk.zero_grad_buffer()
    model.optimizer.zero_grad()
    rank, ranks = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    sequences = training_batch(config.vocab_size)[rank::ranks]
    positions = torch.arange(SEQ_LENGTH)[None]

    def total(losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        return losses.sum(), torch.tensor(losses.numel(), dtype=torch.int), {}

    def step(batches: Iterator[torch.Tensor], chunk: Any) -> Any:
        ids = next(batches)[None]
        return chunk(ids[:, :-1].contiguous(), positions, None, labels=ids[:, 1:].contiguous()), partial(total)

    iterators = [iter(sequences) for _ in model.chunks]
    get_forward_backward_func()(
        forward_step_func=step, data_iterator=iterators if len(iterators) > 1 else iterators[0], model=list(model.chunks),
        num_microbatches=len(sequences), seq_length=SEQ_LENGTH, micro_batch_size=1, forward_only=False,
    )  # fmt: skip
    measured = measure_norms(model, gradients=True, logits=statistics)
    again = measure_norms(model, logits=statistics)
    _, reported, _ = model.optimizer.step()
    masked = observe_made_up_logits(platform)
    return {"masked": masked, "norms": asdict(measured), "again": asdict(again), "optimizer": float(reported)}


def main(description: Path) -> None:
    """Do the jobs of a file, in order, on this process's place in the group."""
    platform = start_platform("cpu")
    from tests.distributed import leave_groups

    kinds = {"gate": check_gate, "masters": check_masters, "norms": norms}
    for job in json.loads(description.read_text(encoding="utf-8")):
        told = kinds[job["kind"]](job, platform)
        Path(f"{job['output']}.{platform.rank}.json").write_text(json.dumps(told), encoding="utf-8")
        leave_groups()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
