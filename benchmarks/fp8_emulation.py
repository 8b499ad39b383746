"""Emulated FP8 against BF16: 200 steps of a small model on Arabic news, in three seeds.

    python benchmarks/fp8_emulation.py [--steps 200] [--seeds 3] [--data DIR] [--folder DIR]

A LLaMA-shaped model of 6 layers (width 128, a byte-level BPE of 2,048 entries trained on the same news) starts from random
weights and trains on 512 tokens a step. BF16 and tensorwise FP8 run once a seed, the other recipes with the first seed. A
seed decides the initial weights and the order of the data. Losses are means over 20 steps. The band of a window reaches from
the smallest to the largest of the BF16 seeds' losses; an FP8 run's distance is that to the BF16 run of its own seed. The
table says how large that distance was at most, how wide the band was at least, and in how many windows the recipe's mean
over its seeds lay inside the band. Gradient cosines are the conscience's: of one micro-batch, FP8 against BF16.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from results import machine, save

from megatron_native.data.indexed import IndexedWriter
from megatron_native.training.line_file import read_json_lines

VOCABULARY, LENGTH, WINDOW = 2048, 128, 20
SHAPE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 128,
    "intermediate_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
    "hidden_act": "silu", "initializer_range": 0.02, "bos_token_id": 1, "eos_token_id": 0, "torch_dtype": "bfloat16",
}  # fmt: skip
RECIPES: dict[str, dict[str, Any]] = {
    "tensorwise": {"recipe": "tensorwise"},
    "tensorwise, every layer": {"recipe": "tensorwise", "first_layers_bf16": 0, "last_layers_bf16": 0},
    "delayed": {"recipe": "delayed", "amax_history_len": 16},
    "blockwise": {"recipe": "blockwise"},
}
NOTE = (
    "a recipe of one seed runs seed 1; the band's edges are two of its three seeds, so one seed's curve lies at an edge in "
    "most windows: its distance is what counts"
)


def main() -> None:
    """Make the dataset, train, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("MEGATRON_NATIVE_TEST_DATA", "data")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path(data) / "saudinewsnet", help="folder of the news archives")
    parser.add_argument("--folder", help="where the files lie meanwhile (the system's folder for temporary files)")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        documents = tokenise(arguments.data, folder)
        (folder / "config.json").write_text(json.dumps(SHAPE), encoding="utf-8")
        seeds = range(1, arguments.seeds + 1)
        bf16 = {seed: train(folder, arguments.steps, seed, None) for seed in seeds}
        band = np.stack([windows(losses) for losses, _ in bf16.values()])
        rows = [row("BF16", [bf16[seed][0] for seed in seeds], bf16, band)]
        cosines: dict[str, Any] = {}
        for name, fp8 in RECIPES.items():
            runs = {seed: train(folder, arguments.steps, seed, fp8) for seed in (seeds if name == "tensorwise" else seeds[:1])}
            rows.append(row(name, [losses for losses, _ in runs.values()], bf16, band))
            replay = runs[1][1]
            cosines[f"gradient cosine by layer, {name}"] = ", ".join(
                f"{layer}: {figures['gradient_cosine']:.4f}" for layer, figures in replay["layers"].items()
            )
    finally:
        shutil.rmtree(folder)
    notes = {"steps": arguments.steps, "documents": documents, "width of the band": spread(band), "note": NOTE, **cosines}
    save("fp8_emulation", "Emulated FP8 against BF16: a small model on Arabic news", rows, machine(), **notes)


def tokenise(data: Path, folder: Path) -> int:
    """Train a tokenizer on the first archive and write a token dataset of it; the number of documents."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    with zipfile.ZipFile(sorted(data.glob("*.zip"))[0]) as archive:
        articles = json.loads(archive.read(archive.namelist()[0]))
    texts = [article["content"] for article in articles if article["content"]]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|end|>", "<|begin|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    with IndexedWriter(folder / "news_text_document", np.uint16) as writer:
        for text in texts:
            writer.add_document(np.array([1, *tokenizer.encode(text).ids, 0], dtype=np.uint16))
    return len(texts)


_numbers = itertools.count()


def train(folder: Path, steps: int, seed: int, fp8: dict[str, Any] | None) -> tuple[list[float], dict[str, Any]]:
    """The loss of every step, and the conscience's last replay."""
    run_dir = folder / f"run_{next(_numbers)}"
    settings = {
        "run_dir": str(run_dir), "platform": "cpu", "seed": seed,
        "model": {"hf_config": str(folder / "config.json")},
        "data": {"seq_length": LENGTH, "blend": [{"prefix": str(folder / "news_text_document")}]},
        "training": {
            "steps": steps, "micro_batch_size": 4, "global_batch_size": 4, "precision": "bf16" if fp8 is None else "fp8",
        },
        "optimizer": {"lr": 1e-3, "min_lr": 1e-4, "warmup_steps": 20, "clip_grad": 1.0},
        "fp8": fp8 or {}, "conscience": {"interval": min(50, steps) if fp8 else 0},
        "checkpointing": {"save_interval": 0, "save_optimizer": False}, "logging": {"tensorboard": False},
    }  # fmt: skip
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    command = [sys.executable, "-m", "megatron_native.cli", "pretrain", "--config", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # more wait for each other on cores that others use too
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    lines = list(read_json_lines(run_dir / "metrics.jsonl"))
    replays = [line["conscience"] for line in lines if "conscience" in line]
    losses = [line["loss"] for line in lines if "loss" in line]
    print(run_dir.name, fp8, f"seed {seed}: loss {losses[0]:.3f} → {losses[-1]:.3f}", flush=True)
    shutil.rmtree(run_dir)
    return losses, replays[-1] if replays else {}


def windows(losses: list[float]) -> np.ndarray:
    """Mean losses of windows of 20 steps."""
    return np.array(losses[: len(losses) // WINDOW * WINDOW]).reshape(-1, WINDOW).mean(1)


def spread(band: np.ndarray) -> str:
    """How far the BF16 seeds are apart, in words."""
    width = band.max(0) - band.min(0)
    return f"{width.min():.4f} to {width.max():.4f} nats in {band.shape[1]} windows"


def row(name: str, curves: list[list[float]], bf16: dict[int, Any], band: np.ndarray) -> dict[str, Any]:
    """A recipe's line of the table."""
    twins = [np.array(bf16[seed][0]) for seed in sorted(bf16)][: len(curves)]
    steps = max(float(np.abs(np.array(curve) - twin).max()) for curve, twin in zip(curves, twins))
    apart = max(float(np.abs(windows(curve) - windows(list(twin))).max()) for curve, twin in zip(curves, twins))
    mean = np.stack([windows(curve) for curve in curves]).mean(0)
    inside = (mean >= band.min(0)) & (mean <= band.max(0))
    return {
        "precision": name, "seeds": len(curves), "last_20_steps": round(float(mean[-1]), 4),
        "largest_distance_of_a_step": round(steps, 4), "largest_distance_of_a_window": round(apart, 4),
        "narrowest_band": round(float((band.max(0) - band.min(0)).min()), 4),
        "windows_inside_the_band": f"{int(inside.sum())} of {len(inside)}",
    }  # fmt: skip


if __name__ == "__main__":
    main()
