"""Context-parallel groups on real processes, without attention: what is cut apart comes together again.

Every rank writes what it was told to `<output>.<rank>.json`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from megatron_native.platform import start_platform

SEQUENCES, LENGTH, DOCUMENTS = 2, 24, (5, 1, 18, 12, 12)


def losses_of(tokens: torch.Tensor) -> torch.Tensor:
    """A made-up loss of every token."""
    return (tokens.float() * 0.37).sin() + 2


def main(description: Path) -> None:
    """Cut micro-batches over a context-parallel group of two, sum their losses, and put sequences together."""
    from megatron.core import parallel_state

    from megatron_native.training.batches import (
        MicroBatch,
        context_parallel_batches,
        pack,
        positions_of,
        whole_sequences,
    )
    from megatron_native.training.step import reduce_reports, token_losses
    from tests.distributed import leave_groups

    platform = start_platform("cpu")
    job = json.loads(description.read_text())[0]
    parallel_state.initialize_model_parallel(context_parallel_size=2)
    tokens = torch.arange(1, SEQUENCES * LENGTH + 1).reshape(SEQUENCES, LENGTH)
    mask = (tokens % 3 > 0).float()
    rows = MicroBatch(tokens, tokens + 1, mask, positions_of(tokens))
    told = {}
    for name, batch in (("rows", rows), ("packed", pack(rows, np.array(DOCUMENTS)))):
        (part,), length = context_parallel_batches([batch])
        _, _, report = token_losses(part, losses_of(part.tokens))
        bounds = None if part.packed is None else part.packed.cu_seqlens_q_padded
        whole = whole_sequences(part.tokens, bounds)
        told[name] = {
            "part": part.tokens.tolist(), "length": length, "whole": whole.tolist(),
            "reduced": reduce_reports([report], platform.device),
        }  # fmt: skip
    Path(f"{job['output']}.{platform.rank}.json").write_text(json.dumps(told))
    leave_groups()
