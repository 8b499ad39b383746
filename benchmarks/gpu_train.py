"""Training speed on one GPU: slices of LLaMA3-8B and 70B beside plain `transformers` and beside the GPU's matrix products.

    python benchmarks/gpu_train.py [--minutes 7.5] [--models llama3-8b ...] [--seq-lengths 8192 4096] [--output FOLDER]
    python benchmarks/gpu_train.py --toy            toy sizes on the CPU: does everything work? The figures say nothing

A slice has the model's true widths and vocabulary, and as many layers as fit. Tokens and weights are random; no file is
needed. A step is forward, backward, gradient norm, clipping and AdamW. Ours is the trainer's own path (micro-batch,
megatron-core's schedule, FP32 gradients and masters, `apply_update`), with Transformer Engine's layers where it can be
imported, in BF16 and FP8 (every layer: a slice has few), and with plain torch's; "packed" has the document masks of
production. Theirs is `LlamaForCausalLM` in BF16 with scaled dot product attention and fused AdamW on BF16 weights (no masters,
so less work), as it is and under `torch.compile`.

The matrix products are measured in the same run: 8,192³, in BF16, and in FP8 by `torch._scaled_mm`. "Share" is model TFLOP/s in
the causal convention over the BF16 rate, "share FP8" over the FP8 rate. The formula is printed with the table.

Each part is a process of its own and is written down when it ends, so what is killed loses one part. Where memory does not
suffice, the micro-batch and then the layers are made fewer, which the row says.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # from a clone that is not installed
LLAMA3: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False, "bos_token_id": 128000,
    "eos_token_id": 128001, "hidden_act": "silu",
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama3-8b": {**LLAMA3, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
                  "num_key_value_heads": 8},
    "llama3-70b": {**LLAMA3, "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64,
                   "num_key_value_heads": 8},
    "toy": {**LLAMA3, "vocab_size": 512, "hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4,
            "num_key_value_heads": 2},
}  # fmt: skip
LAYERS = {"llama3-8b": 32, "llama3-70b": 80, "toy": 4}
BYTES_A_PARAMETER = 18
"""BF16 weight, FP32 gradient, FP32 master and two moments."""
WARM_UP, TIMED = 3, 10
PART_SECONDS = 150
"""A part that takes longer is given up."""


def flops_a_token(shape: dict[str, Any], layers: int, seq_length: int) -> dict[str, float]:
    """FLOP of one token of training in both conventions, as everywhere in the project."""
    from megatron_native.models.families import to_model_config
    from megatron_native.training.plan.flops import token_flops

    flops = token_flops(to_model_config({**shape, "num_hidden_layers": layers}), seq_length)
    return {"full": flops.total("full"), "causal": flops.total("causal")}


def parameters(shape: dict[str, Any], layers: int) -> int:
    """Weights of a slice, norms left out."""
    hidden, width = shape["hidden_size"], shape["hidden_size"] // shape["num_attention_heads"]
    heads = 2 * shape["num_attention_heads"] + 2 * shape["num_key_value_heads"]
    return layers * hidden * (heads * width + 3 * shape["intermediate_size"]) + 2 * hidden * shape["vocab_size"]


def fitting_layers(model: str, memory_bytes: int, tokens: int) -> int:
    """A first guess of how many layers fit: state, and what layers and logits keep for the backward pass."""
    shape, layers = MODELS[model], LAYERS[model]
    hidden, feed = shape["hidden_size"], shape["intermediate_size"]
    kept_a_layer = tokens * (20 * hidden + 8 * feed)
    logits = 12 * tokens * shape["vocab_size"]
    while (
        layers > 1
        and parameters(shape, layers) * BYTES_A_PARAMETER + layers * kept_a_layer + logits > 0.85 * memory_bytes
    ):
        layers -= 1
    return layers


def smaller(job: dict[str, Any]) -> dict[str, Any] | None:
    """The job to try when memory did not suffice: half the micro-batch, then a quarter of the layers fewer; None at the end."""
    said = job.get("note", "")
    if job["micro_batch_size"] > 1:
        fewer = job["micro_batch_size"] // 2
        note = f"micro-batch {job['micro_batch_size']} → {fewer}: out of memory"
        return {**job, "micro_batch_size": fewer, "note": "; ".join(filter(None, [said, note]))}
    if job["layers"] > 1:
        fewer = min(job["layers"] - 1, math.floor(job["layers"] * 0.75)) or 1
        note = f"layers {job['layers']} → {fewer}: out of memory"
        return {**job, "layers": fewer, "note": "; ".join(filter(None, [said, note]))}
    return None


def parts(models: list[str], lengths: list[int], engine: bool, toy: bool) -> list[dict[str, Any]]:
    """What is measured, the most telling first."""
    jobs = []
    for length in lengths:
        for model in models:
            same = {"model": model, "seq_length": length, "micro_batch_size": max(1, max(lengths) // length)}
            ours: list[dict[str, Any]] = [{"side": "ours", "spec": "torch", "precision": "bf16"}]
            if engine:
                ours = [
                    {"side": "ours", "spec": "transformer_engine", "precision": "bf16"},
                    {"side": "ours", "spec": "transformer_engine", "precision": "fp8"},
                    {"side": "ours", "spec": "transformer_engine", "precision": "bf16", "packed": True},
                    *ours,
                ]
            theirs = [
                {"side": "transformers", "precision": "bf16", "compiled": compiled} for compiled in (False, not toy)
            ]
            jobs += [{**same, **job} for job in (*ours, *(theirs[:1] if toy else theirs))]
    return jobs


def main() -> None:
    """Measure part after part until the time is over; write after each."""
    arguments = parse()
    if arguments.worker:
        job = json.loads(arguments.worker)
        print(json.dumps(work(job)), flush=True)
        return
    deadline = time.monotonic() + 60 * arguments.minutes
    here = run_part({"side": "matmul", "toy": arguments.toy}, deadline)
    if here.get("failed"):
        sys.exit(f"the matrix products could not be measured: {here['failed']}")
    rows: list[dict[str, Any]] = []
    keep(arguments.output, here, rows)
    layers: dict[tuple[str, int], tuple[int, int, str]] = {}
    lengths = [32] if arguments.toy else arguments.seq_lengths
    models = ["toy"] if arguments.toy else arguments.models
    for job in parts(models, lengths, here["transformer_engine"] is not None, arguments.toy):
        place = (job["model"], job["seq_length"])
        if place not in layers:
            tokens = job["micro_batch_size"] * job["seq_length"]
            layers[place] = (fitting_layers(job["model"], here["memory_bytes"], tokens), job["micro_batch_size"], "")
        names = ("layers", "micro_batch_size", "note")
        fitting: dict[str, Any] | None = {**dict(zip(names, layers[place])), "toy": arguments.toy}
        result: dict[str, Any] = {}
        while fitting is not None:
            result = run_part({**job, **fitting}, deadline)
            if not result.get("out_of_memory"):
                break
            result["failed"] = "out of memory"
            fitting = smaller(fitting)
        if fitting is not None:
            layers[place] = (fitting["layers"], fitting["micro_batch_size"], fitting["note"])
        rows.append(row(job, fitting or {}, result, here))
        keep(arguments.output, here, rows)
    keep(arguments.output, here, rows, loud=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=("llama3-8b", "llama3-70b"), default=["llama3-8b", "llama3-70b"])
    parser.add_argument("--seq-lengths", nargs="+", type=int, default=[8192, 4096])
    parser.add_argument("--minutes", type=float, default=7.5, help="no part begins or goes on after so long (7.5)")
    parser.add_argument("--toy", action="store_true", help="toy sizes, on whatever there is")
    parser.add_argument("--output", type=Path, help="folder of the results (benchmarks/results)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.toy and arguments.output is None and not arguments.worker:
        parser.error("--toy wants --output: its figures are none to keep")
    return arguments


def run_part(job: dict[str, Any], deadline: float) -> dict[str, Any]:
    """A part in a process of its own: what it measured, or why not."""
    left = min(PART_SECONDS, deadline - time.monotonic())
    if left < (1 if job.get("toy") else 20):
        return {"failed": "not measured: no time left"}
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(job)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=left)
    except subprocess.TimeoutExpired:
        return {"failed": f"given up after {left:.0f} s"}
    answers = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not answers:
        said = done.stderr.strip().splitlines()
        return {"failed": f"ended with {done.returncode}: {(said or ['nothing said'])[-1][:200]}"}
    answer: dict[str, Any] = json.loads(answers[-1])
    return answer


def row(job: dict[str, Any], fitting: dict[str, Any], result: dict[str, Any], here: dict[str, Any]) -> dict[str, Any]:
    """One line of the table."""
    what = {"transformer_engine": "megatron-native, Transformer Engine", "torch": "megatron-native, plain torch"}
    name = what.get(job.get("spec", ""), "transformers" + (", torch.compile" if job.get("compiled") else ""))
    line = {
        "model": job["model"], "layers": fitting.get("layers"), "what": name + (", packed" if job.get("packed") else ""),
        "precision": job["precision"], "seq_length": job["seq_length"], "micro_batch": fitting.get("micro_batch_size"),
    }  # fmt: skip
    if result.get("failed"):
        return {**line, "note": "; ".join(filter(None, [fitting.get("note"), result["failed"]]))}
    flops = flops_a_token(MODELS[job["model"]], fitting["layers"], job["seq_length"])
    rate = fitting["micro_batch_size"] * job["seq_length"] / result["seconds"]
    causal = rate * flops["causal"] / 1e12
    return {
        **line, "step_s": round(result["seconds"], 4), "tokens_s": round(rate), "tflops_causal": round(causal, 3),
        "tflops_full": round(rate * flops["full"] / 1e12, 3), "share": round(causal / here["bf16_tflops"], 3),
        "share_fp8": round(causal / here["fp8_tflops"], 3) if here["fp8_tflops"] and job["precision"] == "fp8" else None,
        "peak_gib": round(result["peak_bytes"] / 2**30, 1) if result["peak_bytes"] else None,
        "loss": round(result["loss"], 3), "note": fitting["note"] or None,
    }  # fmt: skip


def keep(folder: Path | None, here: dict[str, Any], rows: list[dict[str, Any]], loud: bool = False) -> None:
    """Write what there is so far."""
    import results

    from megatron_native.training.plan.flops import FORMULA

    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        results.FOLDER = folder
    shown = {name: value for name, value in here.items() if name != "memory_bytes"}
    with contextlib.nullcontext() if loud else contextlib.redirect_stdout(io.StringIO()):
        title = f"Training speed on one {here['gpu'] or 'CPU (toy sizes: says nothing)'}"
        results.save("gpu_train", title, rows, results.machine(), **shown, formula=FORMULA)
    if not loud and rows:
        print(json.dumps(rows[-1], ensure_ascii=False), flush=True)


def work(job: dict[str, Any]) -> dict[str, Any]:
    """One part, in this process."""
    import torch

    if job["side"] == "matmul":
        return measure_matmul(job["toy"])
    try:
        with tempfile.TemporaryDirectory() as folder:
            shape = {**MODELS[job["model"]], "num_hidden_layers": job["layers"]}
            (Path(folder) / "config.json").write_text(json.dumps(shape), encoding="utf-8")
            step = (our_step if job["side"] == "ours" else their_step)(job, Path(folder))
        return time_steps(step, job["toy"])
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}


def time_steps(step: Callable[[], float], toy: bool) -> dict[str, Any]:
    """Median seconds of a step, peak bytes, last loss."""
    import torch

    cuda, seconds, loss = torch.cuda.is_available(), [], math.nan
    for number in range((1 if toy else WARM_UP) + (2 if toy else TIMED)):
        started = time.perf_counter()
        loss = step()  # a number on the host: the device is done
        if cuda:
            torch.cuda.synchronize()
        if number >= (1 if toy else WARM_UP):
            seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() if cuda else 0
    return {"seconds": statistics.median(seconds), "peak_bytes": peak, "loss": loss}


def measure_matmul(toy: bool) -> dict[str, Any]:
    """Rates of large matrix products in TFLOP/s, and what they were measured on."""
    import torch

    from megatron_native.manifest import software_versions
    from megatron_native.training.qualify.record import driver_version

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    size = 256 if toy else 8192
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    fp8 = None
    if cuda and torch.cuda.get_device_capability() >= (8, 9):
        left, right = one.to(torch.float8_e4m3fn), other.to(torch.float8_e4m3fn).t()
        scale = torch.ones((), device=device)
        with contextlib.suppress(RuntimeError, AttributeError, TypeError):
            fp8 = rate_of(
                lambda: torch._scaled_mm(left, right, scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16), size
            )
    versions = software_versions(("torch", "megatron-core", "transformer-engine", "transformers"))
    return {
        "gpu": torch.cuda.get_device_name() if cuda else None, "driver": driver_version() if cuda else None,
        "bf16_tflops": round(rate_of(lambda: one @ other, size), 4), "fp8_tflops": None if fp8 is None else round(fp8, 1),
        "matmul_size": size, "memory_bytes": torch.cuda.get_device_properties(0).total_memory if cuda else 2**30,
        "torch": versions["torch"], "megatron_core": versions["megatron-core"], "transformers": versions["transformers"],
        "transformer_engine": versions.get("transformer-engine") if cuda else None,
    }  # fmt: skip


def rate_of(product: Callable[[], Any], size: int) -> float:
    """TFLOP/s of a product of two square matrices, median of rounds of ten."""
    import torch

    seconds = []
    for _ in range(8):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(10):
            product()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() - started) / 10)
    return 2 * size**3 / statistics.median(seconds[2:]) / 1e12


def our_step(job: dict[str, Any], folder: Path) -> Callable[[], float]:
    """The trainer's own step on random tokens."""
    from megatron_native.config.megatron import has_nvidia_apex, megatron_configs
    from megatron_native.config.run import RunConfig
    from megatron_native.platform import seed_everything, start_platform

    length, batch = job["seq_length"], job["micro_batch_size"]
    run = RunConfig.model_validate({
        "run_dir": str(folder / "run"), "layer_spec": job["spec"], "model": {"hf_config": str(folder / "config.json")},
        "data": {"seq_length": length, "blend": [{"prefix": str(folder / "none")}]},
        "training": {"steps": 1, "micro_batch_size": batch, "global_batch_size": batch, "precision": job["precision"]},
        "fp8": {"first_layers_bf16": 0, "last_layers_bf16": 0},
    })  # fmt: skip
    platform = start_platform("auto")
    import numpy as np
    import torch

    from megatron_native.training.batches import MicroBatch, pack, positions_of
    from megatron_native.training.model import build_trainable_model, initialize_parallel_state
    from megatron_native.training.shape import read_model
    from megatron_native.training.step import apply_update, compute_gradients

    initialize_parallel_state(run)
    seed_everything(1)
    shape = read_model(run)
    configs = megatron_configs(run, shape, platform.name, job["spec"], has_nvidia_apex())
    if platform.name == "cuda":
        configs.transformer.use_cpu_initialization = False  # random weights made there: minutes less
    model = build_trainable_model(run, shape, configs, platform.device)
    for chunk in model.chunks:
        chunk.train()
    ids = torch.randint(0, shape.vocab_size, (batch, length + 1), device=platform.device)
    tokens = ids[:, :-1].contiguous()
    micro = MicroBatch(
        tokens, ids[:, 1:].contiguous(), torch.ones(tokens.shape, device=platform.device), positions_of(tokens)
    )
    if job.get("packed"):  # four documents a sequence
        micro = pack(micro, np.full(4 * batch, length // 4))

    def step() -> float:
        result = compute_gradients(model.chunks, model.optimizer, [micro], platform.device)
        apply_update(model.optimizer, result, 1e-5, 0.1)
        return result.loss

    return step


def their_step(job: dict[str, Any], folder: Path) -> Callable[[], float]:
    """The same step in transformers and torch."""
    import torch
    import transformers

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = transformers.AutoConfig.from_pretrained(folder)
    config.use_cache = False
    with device:
        model: Any = transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation="sdpa"
        ).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=device.type == "cuda"
    )
    network = torch.compile(model) if job.get("compiled") else model
    ids = torch.randint(0, config.vocab_size, (job["micro_batch_size"], job["seq_length"] + 1), device=device)
    tokens, labels = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def step() -> float:
        optimizer.zero_grad()
        loss = network(input_ids=tokens, labels=labels, shift_labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


if __name__ == "__main__":
    main()
