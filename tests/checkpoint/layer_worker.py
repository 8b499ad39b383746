"""One process that runs models whole and layer by layer, for `tests.distributed.run_jobs`."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any


def main(description: Path) -> None:
    """Do the jobs of a file: `compare` or `memory`, each with a `checkpoint`, an `hf` folder and an `output`."""
    from megatron_native.platform import start_platform

    platform = start_platform("cpu")
    for job in json.loads(description.read_text(encoding="utf-8")):
        checkpoint, hf, output = (Path(job[name]) for name in ("checkpoint", "hf", "output"))
        (compare if job["kind"] == "compare" else measure)(checkpoint, hf, output, platform)


def compare(checkpoint: Path, hf: Path, output: Path, platform: Any) -> None:
    """Logits of both sides, whole and layer by layer, and what `compare_layers` finds."""
    import torch

    from megatron_native.checkpoint.layerwise import TransformersLayers, compare_layers, run_layers
    from megatron_native.checkpoint.reference_logits import run_transformers
    from megatron_native.training.forward import checkpoint_layers, checkpoint_logits
    from tests.distributed import leave_groups

    inputs = texts(json.loads((hf / "config.json").read_text())["vocab_size"])
    whole = checkpoint_logits(checkpoint, [ids.tolist() for ids in inputs.values()], platform)
    leave_groups()
    layers = checkpoint_layers(checkpoint, max(map(len, inputs.values())), platform)
    logits, differences = compare_layers(TransformersLayers(hf), layers, inputs)
    results = {
        "transformers": run_transformers(hf, inputs, layer_by_layer=False),
        "transformers, layer by layer": run_transformers(hf, inputs, layer_by_layer=True),
        "megatron-core": dict(zip(inputs, whole)),
        "megatron-core, layer by layer": run_layers(layers, inputs),
        "logits": asdict(logits),
        "layers": [asdict(difference) for difference in differences],
    }
    leave_groups()
    torch.save(results, output)


def measure(checkpoint: Path, hf: Path, output: Path, platform: Any) -> None:
    """How much memory of its own the process takes at most, in bytes, in a comparison layer by layer."""
    from megatron_native.checkpoint.layerwise import TransformersLayers, compare_layers
    from megatron_native.training.forward import checkpoint_layers

    inputs = texts(json.loads((hf / "config.json").read_text())["vocab_size"])
    before, peak, done = own_memory(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            peak[0] = max(peak[0], own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    length = max(map(len, inputs.values()))
    logits, _ = compare_layers(TransformersLayers(hf), checkpoint_layers(checkpoint, length, platform), inputs)
    done.set()
    watcher.join()
    output.write_text(json.dumps({"peak": peak[0] - before, "difference": logits.max_abs_difference}))


def own_memory() -> int:
    """Bytes that are this process's alone: mapped files can be dropped and read again, so they are not counted."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("RssAnon")).split()[1]) * 1024


def texts(vocab_size: int) -> dict[str, Any]:
    """Two texts of different lengths."""
    import torch

    generator = torch.Generator().manual_seed(9)
    return {name: torch.randint(vocab_size, (length,), generator=generator) for name, length in (("a", 90), ("b", 41))}
