"""Held-out bits per byte during training, through the same pipeline schedule as the training step.

Evaluation reads held-out windows only: it takes nothing from the training stream and leaves no trace in the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state

from megatron_native.config.run import RunConfig
from megatron_native.data.heldout import HeldoutWindows, conversation_windows, heldout_windows
from megatron_native.data.tokenizers import Tokenizer, load_tokenizer
from megatron_native.errors import UserError
from megatron_native.training.batches import MicroBatch, positions_of
from megatron_native.training.step import reduce_reports, run_schedule


@dataclass(frozen=True)
class HeldoutScore:
    """One held-out set's figures."""

    bits_per_byte: float
    """Sum of the tokens' cross entropies in bits, by the UTF-8 bytes of the text: comparable across tokenizers."""
    loss: float
    """Mean cross entropy per token, in nats."""
    tokens: int
    text_bytes: int


class HeldoutEvaluation:
    """The held-out sets of a run, cut into windows once, measured as often as asked."""

    def __init__(self, run: RunConfig, tokenizer_folder: Path, device: torch.device) -> None:
        self.run, self.device = run, device
        self.windows: dict[str, HeldoutWindows] = {}
        if not run.evaluation.heldout:
            return
        if not tokenizer_folder.is_dir():
            raise UserError(
                f"evaluation.heldout is set but {tokenizer_folder} holds no tokenizer: import the model from a folder "
                "with its tokenizer, or leave evaluation.heldout out."
            )
        tokenizer: Tokenizer = load_tokenizer("HuggingFaceTokenizer", tokenizer_folder)
        for heldout in run.evaluation.heldout:
            if heldout.kind == "conversations":
                self.windows[heldout.name] = conversation_windows(heldout.path, tokenizer, run.data.seq_length)
            else:
                self.windows[heldout.name] = heldout_windows([heldout.path], tokenizer, run.data.seq_length)

    def measure(self, chunks: Sequence[Any]) -> dict[str, HeldoutScore]:
        """Every set's score under the current weights; the same on every rank."""
        for chunk in chunks:
            chunk.eval()
        scores = {name: self._score(chunks, windows) for name, windows in self.windows.items()}
        for chunk in chunks:
            chunk.train()
        return scores

    def _score(self, chunks: Sequence[Any], windows: HeldoutWindows) -> HeldoutScore:
        batches = self._micro_batches(windows, interleaved=len(chunks) > 1)
        with torch.no_grad():
            reports = run_schedule(chunks, batches, forward_only=True)
        nats, tokens = reduce_reports(reports, self.device)
        bits = nats / math.log(2) / windows.text_bytes
        return HeldoutScore(bits, nats / max(1, tokens), tokens, windows.text_bytes)

    def _micro_batches(self, windows: HeldoutWindows, interleaved: bool) -> list[MicroBatch]:
        """This data-parallel rank's windows; the last micro-batches are filled up with windows that count nothing."""
        size = self.run.evaluation.micro_batch_size
        ranks = parallel_state.get_data_parallel_world_size()
        multiple = parallel_state.get_pipeline_model_parallel_world_size() if interleaved else 1
        count = math.ceil(len(windows.tokens) / (size * ranks * multiple)) * multiple
        padding = count * size * ranks - len(windows.tokens)
        tokens, labels, mask = (
            np.concatenate([array, np.zeros((padding, array.shape[1]), array.dtype)])
            for array in (windows.tokens, windows.labels, windows.loss_mask)
        )
        rank = parallel_state.get_data_parallel_rank()
        batches = []
        for index in range(count):
            start = (index * ranks + rank) * size
            rows = slice(start, start + size)
            ids = torch.from_numpy(tokens[rows]).to(self.device)
            batches.append(
                MicroBatch(
                    ids,
                    torch.from_numpy(labels[rows]).to(self.device),
                    torch.from_numpy(mask[rows]).to(self.device),
                    positions_of(ids),
                )
            )
        return batches
