"""How fast import-hf and export-hf are beside `cp` of the same bytes, with how much memory, and whether no bit changes.

    python benchmarks/conversion.py [--rounds 3] [--folder DIR] [--models 8B-2,8B-4,8B-8,70B-2] [--workers N]

Folders with the tensor shapes of LLaMA-3.1-8B and -70B and few layers, filled with random bits in BF16. Each round, with the
files dropped from the page cache before each: `cp -r` of the folder, its import, `cp -r` of the checkpoint, its export. `cp` is
measured twice: until it returns, with much of the copy only in memory, and until the copy is on the disk, where a
conversion's files are when it returns. A conversion runs in a process of its own; "command" is the time from its start, with
Python and torch imported, "conversion" the call alone. Ratios are of rates within a round; medians over the rounds are shown.
Peak memory is the process's peak resident set. After the last round every tensor of the export is compared with the source.
The files go to --folder (three times the model's size) and are removed.
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
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
SHAPES = {
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8},
}
VOCABULARY = 128256
SHARD_BYTES = 5_000_000_000
MODELS = "8B-2,8B-4,8B-8,70B-2"


def main() -> None:
    """Measure every model, print, save."""
    from results import machine, save

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each model (3)")
    parser.add_argument("--folder", help="where the files go (the system's folder for temporary files)")
    parser.add_argument("--models", default=MODELS, help=f"SHAPE-LAYERS, with commas ({MODELS})")
    parser.add_argument("--workers", type=int, help="threads of a conversion (its own default)")
    parser.add_argument("--name", default="conversion", help="of the results' files (conversion)")
    parser.add_argument("--convert", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.convert:
        convert(*arguments.convert, workers=arguments.workers)
        return
    rows = []
    for model in arguments.models.split(","):
        shape, layers = model.split("-")
        with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
            rows += measure(Path(name), shape, int(layers), arguments.rounds, arguments.workers)
        save(arguments.name, "Conversion beside cp", rows, machine(), load_average=list(os.getloadavg()))


def measure(folder: Path, shape: str, layers: int, rounds: int, workers: int | None) -> list[dict[str, Any]]:
    """Two rows, import and export, of one model."""
    source, checkpoint, export = folder / "hf", folder / "checkpoint", folder / "export"
    size = make_model(source, shape, layers)
    found: dict[str, list[dict[str, float]]] = {"import": [], "export": []}
    for last in [False] * (rounds - 1) + [True]:
        for direction, given, made in (("import", source, checkpoint), ("export", checkpoint, export)):
            settle(folder)
            copied = copy(given, folder / "copy")
            settle(folder)
            options = ["--workers", str(workers)] if workers else []
            command = [sys.executable, __file__, *options, "--convert", direction, str(given), str(made)]
            started = time.perf_counter()
            done = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
            )
            whole = time.perf_counter() - started
            found[direction].append({"command": whole, **copied, **json.loads(done.stdout.splitlines()[-1])})
            print(direction, shape, layers, found[direction][-1], os.getloadavg(), file=sys.stderr, flush=True)
        if last:
            same = identical(source, export)
        shutil.rmtree(checkpoint)
        shutil.rmtree(export)
    return [row(f"LLaMA-3.1-{shape}, {layers} layers", direction, size, found[direction], same) for direction in found]


def row(model: str, direction: str, size: int, rounds: list[dict[str, float]], same: bool) -> dict[str, Any]:
    """Medians of one direction."""

    def median(key: str) -> float:
        return statistics.median(one[key] for one in rounds)

    def ratio(above: str, below: str) -> float:
        return round(statistics.median(one[above] / one[below] for one in rounds), 2)

    return {
        "model": model,
        "direction": direction,
        "rounds": len(rounds),
        "GB": round(size / 1e9, 2),
        "cp_MB/s": round(size / median("cp") / 1e6),
        "cp_to_disk_MB/s": round(size / median("cp to disk") / 1e6),
        "conversion_MB/s": round(size / median("conversion") / 1e6),
        "seconds": round(median("conversion"), 1),
        "to_cp": ratio("cp", "conversion"),
        "to_cp_to_disk": ratio("cp to disk", "conversion"),
        "command_to_cp_to_disk": ratio("cp to disk", "command"),
        "peak_GB": round(max(one["peak"] for one in rounds) / 1e9, 2),
        "peak_above_start_GB": round(max(one["peak"] - one["before"] for one in rounds) / 1e9, 2),
        "same_bits": "yes" if same else "NO",
    }


def copy(given: Path, target: Path) -> dict[str, float]:
    """Seconds of `cp -r`, and until the copy is on the disk; the copy is removed."""
    started = time.perf_counter()
    subprocess.run(["cp", "-r", str(given), str(target)], check=True)
    copied = time.perf_counter() - started
    for path in target.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    flushed = time.perf_counter() - started
    shutil.rmtree(target)
    return {"cp": copied, "cp to disk": flushed}


def settle(folder: Path) -> None:
    """Bring everything to the disk and drop the folder's files from the page cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def convert(direction: str, given: str, made: str, workers: int | None) -> None:
    """One conversion in this process; prints its seconds and the process's peak memory."""
    from megatron_native.checkpoint.export_hf import export_hf
    from megatron_native.checkpoint.import_hf import import_hf

    before = peak_memory()
    started = time.perf_counter()
    if direction == "import":
        import_hf(Path(given), Path(made), reference_logits=False, workers=workers)
    else:
        export_hf(Path(given), Path(made), workers=workers)
    seconds = time.perf_counter() - started
    print(json.dumps({"conversion": seconds, "peak": peak_memory(), "before": before}))


def peak_memory() -> int:
    """This process's peak resident set so far, in bytes; `getrusage` would count that of the process it was started from."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))) * 1024


def make_model(folder: Path, shape: str, layers: int) -> int:
    """Write a folder of random bits in true shapes; its tensors' bytes. Tensors lie layer by layer, as in published folders."""
    import numpy as np

    sys.path.insert(0, str(REPOSITORY))
    from megatron_native.checkpoint.safetensors_files import ShardWriter, TensorSpec, plan_shards, write_index

    sizes = SHAPES[shape]
    hidden, ffn = sizes["hidden_size"], sizes["intermediate_size"]
    key_value = sizes["num_key_value_heads"] * hidden // sizes["num_attention_heads"]
    of_layer = {
        "input_layernorm": (hidden,), "mlp.down_proj": (hidden, ffn), "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden), "post_attention_layernorm": (hidden,), "self_attn.k_proj": (key_value, hidden),
        "self_attn.o_proj": (hidden, hidden), "self_attn.q_proj": (hidden, hidden), "self_attn.v_proj": (key_value, hidden),
    }  # fmt: skip
    named: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, hidden)}
    for layer in range(layers):
        named |= {f"model.layers.{layer}.{name}.weight": extent for name, extent in of_layer.items()}
    named |= {"model.norm.weight": (hidden,), "lm_head.weight": (VOCABULARY, hidden)}
    specs = [TensorSpec(name, "BF16", extent) for name, extent in named.items()]
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY, **sizes,
        "num_hidden_layers": layers, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 128000, "eos_token_id": 128001,
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shards = plan_shards([[spec] for spec in specs], SHARD_BYTES)
    bits = np.random.SFC64(1)
    for shard in shards:
        writer = ShardWriter(folder, shard)
        for spec in shard.tensors:
            writer.begin(spec)
            for first in range(0, spec.bytes, 1 << 24):
                writer.write(memoryview(bits.random_raw(min(1 << 24, spec.bytes - first) // 8)).cast("B"))
        writer.finish()
    write_index(folder, shards)
    return sum(spec.bytes for spec in specs)


def identical(source: Path, export: Path) -> bool:
    """Whether two folders have the same tensors, compared with the safetensors library."""
    import torch
    from safetensors import safe_open

    def opened(folder: Path) -> dict[str, Any]:
        handles = [safe_open(path, "pt") for path in sorted(folder.glob("*.safetensors"))]
        return {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118 (no dict)

    ours, theirs = opened(export), opened(source)
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name].get_tensor(name).view(torch.int16), theirs[name].get_tensor(name).view(torch.int16))
        for name in theirs
    )


if __name__ == "__main__":
    main()
