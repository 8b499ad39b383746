"""The guard against waste: a SmolLM2-135M step on the CPU through megatron-core, beside the same step in plain `transformers`.

    python benchmarks/cpu_step.py [--rounds 9] [--precision fp32 ...] [--seq-length 512] [--micro-batch-size 2] [--profile]

A step is forward, backward, the norm of all gradients, clipping and AdamW, on the same random tokens with the same weights.
Ours is the trainer's own: micro-batch, megatron-core's schedule, gradient buffers in FP32, `apply_update`. Theirs is
`LlamaForCausalLM` with torch's scaled dot-product attention, its own loss, `clip_grad_norm_` and `torch.optim.AdamW`.
In FP32 both do the same arithmetic. In BF16 ours keeps FP32 masters and FP32 gradients, theirs nothing but BF16.

Each has a process of its own with the same threads; they take turns, ours first in every other round, and wait while the other
works. "Ratio" is the median over the rounds of ours / theirs of the same round, of wall time and of processor time.
The target is at most 1.15 in FP32. --profile prints where our step's time goes.
"""

from __future__ import annotations

import argparse
import json
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
TARGET = 1.15
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 49152, "hidden_size": 576,
    "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "tie_word_embeddings": True,
    "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
}  # fmt: skip
"""SmolLM2-135M's shape; the weights are random, which costs the same."""
TOY = {**SMOLLM2, "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
       "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
LEARNING_RATE, WEIGHT_DECAY, CLIP, BETAS, EPSILON = 1e-4, 0.1, 1.0, (0.9, 0.95), 1e-8


def main() -> None:
    """Measure every precision, print, save."""
    from results import machine, save

    arguments = parse()
    if arguments.worker:
        work(json.loads(arguments.worker), arguments.profile)
        return
    rows = []
    for precision in arguments.precision:
        rows.append(measure(precision, arguments))
        print(rows[-1], flush=True)
    if arguments.toy:
        return
    import torch
    import transformers

    save(
        "cpu_step", "A SmolLM2-135M step through megatron-core and in plain transformers", rows, machine(),
        threads=arguments.threads, torch=torch.__version__, transformers=transformers.__version__,
        target=f"at most {TARGET} in FP32",
    )  # fmt: skip


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="pairs of steps that count (9); two more warm up")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--seq-length", type=int, default=512, help="tokens a sequence (512)")
    parser.add_argument("--micro-batch-size", type=int, default=2, help="sequences a step (2)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each process (all cores)")
    parser.add_argument("--toy", action="store_true", help="a toy model: does everything work? Nothing is kept")
    parser.add_argument("--profile", action="store_true", help="profile one of our steps in each precision")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(precision: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One precision: both processes take turns."""
    job = {
        "precision": precision, "shape": TOY if arguments.toy else SMOLLM2, "length": arguments.seq_length,
        "batch": arguments.micro_batch_size,
        "threads": arguments.threads,
    }  # fmt: skip
    workers = {side: Worker({**job, "side": side}, arguments.profile and side == "ours") for side in ("ours", "theirs")}
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(arguments.rounds + 2):
        order = ("ours", "theirs") if number % 2 else ("theirs", "ours")
        figures = {side: workers[side].step() for side in order}
        if number >= 2:
            rounds.append(figures)
    for worker in workers.values():
        worker.close()
    tokens = arguments.micro_batch_size * arguments.seq_length
    ratios = {kind: [one["ours"][kind] / one["theirs"][kind] for one in rounds] for kind in ("wall", "processor")}
    median = {side: statistics.median(one[side]["wall"] for one in rounds) for side in workers}
    last = rounds[-1]
    return {
        "precision": precision, "tokens_a_step": tokens,
        "ours_s": round(median["ours"], 3), "transformers_s": round(median["theirs"], 3),
        "ratio": round(statistics.median(ratios["wall"]), 3),
        "ratio_from_to": f"{min(ratios['wall']):.3f} to {max(ratios['wall']):.3f}",
        "processor_ratio": round(statistics.median(ratios["processor"]), 3),
        "loss_ours": round(last["ours"]["loss"], 4), "loss_transformers": round(last["theirs"]["loss"], 4),
        "rounds": len(rounds), "load_average": round(os.getloadavg()[0], 1),
    }  # fmt: skip


class Worker:
    """A process that does a step when it is told to."""

    def __init__(self, job: dict[str, Any], profile: bool) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": str(job["threads"]),
        }
        command = [sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(job)]
        self.process = subprocess.Popen(
            command + ["--profile"] * profile, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def step(self) -> dict[str, float]:
        """Seconds of wall and processor time of one step, and its loss."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                answer: dict[str, float] = json.loads(line)
                return answer
            print(line, end="")
        raise RuntimeError(f"a worker of the benchmark ended with {self.process.wait()}")

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        for line in self.process.stdout or ():
            print(line, end="")
        self.process.wait()


def work(job: dict[str, Any], profile: bool) -> None:
    """One side: make the model, then a step for every line on stdin."""
    import torch

    torch.manual_seed(1)
    shape = (job["batch"], job["length"] + 1)
    ids = torch.randint(0, job["shape"]["vocab_size"], shape, generator=torch.Generator().manual_seed(2))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(job["shape"]), encoding="utf-8")
        step = (our_step if job["side"] == "ours" else their_step)(job, Path(folder), ids)
    print("{}", flush=True)
    for _ in sys.stdin:
        wall, processor = time.perf_counter(), time.process_time()
        loss = step()
        seconds = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
        print(json.dumps({**seconds, "loss": loss}), flush=True)
    if profile:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            step()
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=60))


def our_step(job: dict[str, Any], folder: Path, ids: Any) -> Callable[[], float]:
    """The trainer's step; the weights are those that `their_step` makes."""
    from megatron_native.platform import seed_everything, start_platform

    platform = start_platform("cpu")
    import torch

    from megatron_native.config.megatron import megatron_configs
    from megatron_native.config.run import RunConfig
    from megatron_native.training.batches import MicroBatch, positions_of
    from megatron_native.training.model import build_trainable_model, initialize_parallel_state
    from megatron_native.training.shape import read_model
    from megatron_native.training.step import apply_update, compute_gradients

    run = RunConfig.model_validate({
        "run_dir": str(folder / "run"), "platform": "cpu", "model": {"hf_config": str(folder / "config.json")},
        "data": {"seq_length": job["length"], "blend": [{"prefix": str(folder / "none")}], "document_boundaries": False},
        "training": {
            "steps": 1, "micro_batch_size": job["batch"], "global_batch_size": job["batch"], "precision": job["precision"],
        },
        "optimizer": {"clip_grad": CLIP, "weight_decay": WEIGHT_DECAY, "adam_beta1": BETAS[0], "adam_beta2": BETAS[1]},
    })  # fmt: skip
    initialize_parallel_state(run)
    seed_everything(1)
    shape = read_model(run)
    model = build_trainable_model(run, shape, megatron_configs(run, shape, "cpu", "torch", False), platform.device)
    for chunk in model.chunks:
        chunk.train()
    tokens = ids[:, :-1].contiguous()
    batch = MicroBatch(tokens, ids[:, 1:].contiguous(), torch.ones(tokens.shape), positions_of(tokens))

    def step() -> float:
        result = compute_gradients(model.chunks, model.optimizer, [batch], platform.device)
        apply_update(model.optimizer, result, LEARNING_RATE, WEIGHT_DECAY)
        return result.loss

    return step


def their_step(job: dict[str, Any], folder: Path, ids: Any) -> Callable[[], float]:
    """A training step as a few lines of transformers and torch."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    config.use_cache = False
    dtype = torch.float32 if job["precision"] == "fp32" else torch.bfloat16
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").train()
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPSILON)
    tokens, labels = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def step() -> float:
        optimizer.zero_grad()
        loss = model(input_ids=tokens, shift_labels=labels, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return float(loss.detach())

    return step


if __name__ == "__main__":
    main()
