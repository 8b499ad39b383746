"""How long a checkpoint keeps training waiting: asynchronous and synchronous saves of the same state, in turn.

    python benchmarks/async_save.py [--rounds 5] [--folder DIR]

A LLaMA with random weights (hidden 768, 8 layers, vocabulary 16,000) and AdamW with random moments: weights in BF16,
masters and moments in FP32, 14 bytes a weight. Each round saves it asynchronously, synchronously, and with megatron-core's
own synchronous `dist_checkpointing.save` (no checksums, no rename); before each, what is dirty goes to the disk. "Waited" is
what `Checkpointer.save` and the `poll`s after it took, which come every 250 ms as if after steps; "processor" is what of it the
trainer's process computed, which other work on the machine does not lengthen. "Fork" is a fork of the
same process that does nothing. Figures are medians over the rounds; the load average says
what else the machine was doing. The files go to --folder and are removed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 16000, "hidden_size": 768,
    "intermediate_size": 2112, "num_hidden_layers": 8, "num_attention_heads": 12, "num_key_value_heads": 12,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
}  # fmt: skip
LAYOUTS: list[tuple[str, int, dict[str, Any]]] = [
    ("1 process", 1, {"use_distributed_optimizer": False}),
    ("TP2", 2, {"tensor_model_parallel_size": 2, "use_distributed_optimizer": False}),
    ("DP2, distributed optimizer", 2, {"use_distributed_optimizer": True}),
]


def main() -> None:
    """Measure every layout in processes of its own, print, save."""
    from results import machine, save

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="saves of each kind (5)")
    parser.add_argument("--folder", help="where the checkpoints go (the system's folder for temporary files)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(Path(arguments.worker))
        return
    rows = []
    for name, processes, parallel in LAYOUTS:
        folder = Path(tempfile.mkdtemp(dir=arguments.folder))
        try:
            job = {"parallel": parallel, "rounds": arguments.rounds}
            (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
            script = [str(Path(__file__).resolve()), "--worker", str(folder)]
            torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
            subprocess.run([sys.executable, *torchrun, *script], env=environment, check=True)
            rows.append({"layout": name, **json.loads((folder / "result.json").read_text(encoding="utf-8"))})
            print(rows[-1], flush=True)
        finally:
            shutil.rmtree(folder)
    save("async_save", "Seconds that training waits for a checkpoint", rows, machine())


def work(folder: Path) -> None:
    """One process of one layout."""
    from megatron_native.platform import seed_everything, start_platform

    platform = start_platform("cpu")
    import torch.distributed as dist

    from megatron_native.checkpoint import layout
    from megatron_native.config.megatron import megatron_configs
    from megatron_native.config.run import RunConfig
    from megatron_native.training.checkpoints import Checkpointer
    from megatron_native.training.forked_writer import ForkedWriter
    from megatron_native.training.model import build_trainable_model, initialize_parallel_state
    from megatron_native.training.shape import read_model

    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    if platform.is_main:
        (folder / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
    dist.barrier()
    settings = {
        "run_dir": str(folder / "run"), "platform": "cpu", "model": {"hf_config": str(folder / "config.json")},
        "data": {"seq_length": 128, "blend": [{"prefix": str(folder / "none")}]},
        "training": {"steps": 1, "micro_batch_size": 1, "global_batch_size": 2, "precision": "bf16"},
        "parallel": job["parallel"], "checkpointing": {"keep_last": 1},
    }  # fmt: skip
    run = RunConfig.model_validate(settings)
    initialize_parallel_state(run)
    seed_everything(1)
    shape = read_model(run)
    model = build_trainable_model(run, shape, megatron_configs(run, shape, "cpu", "torch", False), platform.device)
    randomise_moments(model)
    if platform.is_main:
        layout.write_model_config(folder / "source", shape)
    savers = {
        asynchronous: Checkpointer(
            folder / f"run {asynchronous}", run.checkpointing.model_copy(update={"asynchronous": asynchronous}), print
        )
        for asynchronous in (True, False)
    }
    seconds: dict[str, list[float]] = {
        name: [] for name in ("asynchronous", "processor", "until written", "synchronous", "core", "fork")
    }
    size = 0
    for step in range(1, job["rounds"] + 2):
        took: dict[str, float] = {}
        settle()
        started, computed = time.monotonic(), time.process_time()
        savers[True].save(step, model, {"step": step}, folder / "source", {})
        saved = savers[True].poll()
        while savers[True].in_flight:
            time.sleep(0.25)
            saved += savers[True].poll()
        assert not saved[0].failed, saved[0].failed
        took["asynchronous"], took["until written"], size = saved[0].blocked, time.monotonic() - started, saved[0].bytes
        took["processor"] = time.process_time() - computed
        savers[True].wait()
        settle()
        took["synchronous"] = savers[False].save(step, model, {"step": step}, folder / "source", {})
        assert not savers[False].wait()[0].failed
        settle()
        took["core"] = timed(partial(core_save, model, folder / f"core {step}"))
        dist.barrier()
        if platform.is_main:
            shutil.rmtree(folder / f"core {step}")
        started = time.monotonic()
        writer = ForkedWriter(lambda _: None)
        took["fork"] = time.monotonic() - started
        while not writer.done():
            time.sleep(0.01)
        writer.result()
        if step > 1:  # the first round meets a cold disk and checks the sharding
            for name, value in took.items():
                seconds[name].append(value)
    if platform.is_main:
        median = {name: statistics.median(values) for name, values in seconds.items()}
        result = {
            "gigabytes": round(size / 1e9, 2),
            "waited_asynchronous_s": round(median["asynchronous"], 3),
            "processor_s": round(median["processor"], 3),
            "waited_synchronous_s": round(median["synchronous"], 2),
            "share_percent": round(100 * median["asynchronous"] / median["synchronous"], 1),
            "megatron_core_synchronous_s": round(median["core"], 2),
            "asynchronous_until_written_s": round(median["until written"], 2),
            "fork_s": round(median["fork"], 3),
            "load_average": round(os.getloadavg()[0], 1),
            "asynchronous_from_to_s": f"{min(seconds['asynchronous']):.3f} to {max(seconds['asynchronous']):.3f}",
            "synchronous_from_to_s": f"{min(seconds['synchronous']):.2f} to {max(seconds['synchronous']):.2f}",
        }
        (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def settle() -> None:
    """Everything dirty to the disk, and all processes at the same place."""
    import torch.distributed as dist

    dist.barrier()
    os.sync()
    dist.barrier()


def timed(action: Callable[[], Any]) -> float:
    """Seconds that it takes."""
    started = time.monotonic()
    action()
    return time.monotonic() - started


def core_save(model: Any, folder: Path) -> None:
    """The same state through megatron-core's own save."""
    import torch.distributed as dist
    from megatron.core import dist_checkpointing

    from megatron_native.training import sharded_state

    if dist.get_rank() == 0:
        folder.mkdir()
    dist.barrier()
    state = sharded_state.model_state(model.modules)
    flat = sharded_state.flat_model_state(state)
    state["optimizer"] = model.optimizer.sharded_state_dict(flat, metadata=sharded_state.content())
    dist_checkpointing.save(
        state, str(folder), ("torch_dist", 1), validate_access_integrity=False, content_metadata=sharded_state.content()
    )


def randomise_moments(model: Any) -> None:
    """Optimizer state as after training: one step without gradients makes it, then it is filled."""
    model.optimizer.step()
    for inner in getattr(model.optimizer, "chained_optimizers", [model.optimizer]):
        for state in inner.optimizer.state.values():
            state["exp_avg"].normal_()
            state["exp_avg_sq"].uniform_()


if __name__ == "__main__":
    main()
