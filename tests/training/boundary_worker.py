"""Jobs about packed sequences on real process groups; started by `tests.distributed.run_jobs`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.distributed import leave_groups


def packed_against_documents(job: dict[str, Any], platform: Any) -> dict[str, Any]:
    """Losses of a packed micro-batch of two samples, and of each of its documents alone in a batch of one."""
    import torch

    from megatron_native.training.batches import MicroBatch, pack, positions_of
    from megatron_native.training.boundaries import assert_boundaries, token_losses_of

    model = build(job, platform)
    generator = np.random.default_rng(1)
    tokens, labels = (torch.from_numpy(generator.integers(0, job["vocab_size"], (2, 48))) for _ in range(2))
    lengths = [20, 1, 27, 33, 15]
    batch = MicroBatch(tokens, labels, torch.ones(tokens.shape), positions_of(tokens))
    packed = token_losses_of(model.chunks, pack(batch, np.array(lengths)))[0]
    alone, at = [], 0
    for length in lengths:
        one, following = (flat.reshape(1, -1)[:, at : at + length] for flat in (tokens, labels))
        pad = -length % job.get("multiple", 1)  # sequence parallelism splits a sequence evenly; pads come after
        one, following = (torch.nn.functional.pad(part, (0, pad)) for part in (one, following))
        document = MicroBatch(one, following, torch.ones(one.shape), positions_of(one))
        alone += token_losses_of(model.chunks, document)[0][:length].tolist()
        at += length
    found: dict[str, Any] = {"packed": packed.tolist(), "alone": alone}
    found["kept"] = assert_boundaries(model.chunks, job["vocab_size"], 64, "fp32", platform.device)
    try:
        assert_boundaries(model.chunks, job["vocab_size"], 64, "fp32", platform.device, keep=False)
        found["dropped"] = "nothing was noticed"
    except Exception as error:
        found["dropped"] = str(error)
    return found


def build(job: dict[str, Any], platform: Any) -> Any:
    """The trainable model of a job's configuration, with its weights."""
    from megatron_native.config.load import check_run_config
    from megatron_native.config.megatron import megatron_configs
    from megatron_native.platform import seed_everything
    from megatron_native.training.checkpoints import load_weights
    from megatron_native.training.model import build_trainable_model, initialize_parallel_state
    from megatron_native.training.shape import read_model

    run = check_run_config(job["config"], "test")
    shape = read_model(run)
    initialize_parallel_state(run)
    seed_everything(run.seed)
    model = build_trainable_model(run, shape, megatron_configs(run, shape, "cpu", "torch"), platform.device)
    load_weights(Path(job["config"]["model"]["checkpoint"]), model)
    return model


def main(description: Path) -> None:
    """Do the jobs of a file in order; the main rank writes each one's findings."""
    from megatron_native.platform import start_platform

    platform = start_platform("cpu")

    for job in json.loads(description.read_text(encoding="utf-8")):
        found = packed_against_documents(job, platform)
        if platform.is_main:
            Path(job["output"]).write_text(json.dumps(found), encoding="utf-8")
        leave_groups()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
