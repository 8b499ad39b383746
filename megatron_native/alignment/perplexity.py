"""How likely texts are under a causal language model: perplexity and bits per byte, for any Hugging Face folder.

    scorer = Perplexity(Path("models/llama"))
    for score in scorer.score(texts):
        score.perplexity, score.bits_per_byte

Every token of a text is predicted exactly once, the first one from the begin token (the document separator, where the
tokenizer has no begin token), so that a text's nats cover all of its bytes. Windows are those of held-out evaluation
(`data/heldout.py`). Special tokens inside a text are text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from megatron_native.errors import UserError

Precision = Literal["auto", "float32", "bfloat16", "float16"]
"""`auto` is what the checkpoint is stored in."""

CONTEXT_TOKENS = 2048
BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class TextScore:
    """What a model says of one text.

    Attributes:
        nats: the sum of its tokens' negative log-likelihoods.
        tokens: of the text, by the model's tokenizer; begin token and separator are not among them.
        bytes: of the text in UTF-8.
    """

    nats: float
    tokens: int
    bytes: int

    @property
    def perplexity(self) -> float:
        """exp(mean negative log-likelihood of a token), 1 or more; nan for a text without tokens."""
        if not self.tokens:
            return math.nan
        try:
            return math.exp(self.nats / self.tokens)
        except OverflowError:
            return math.inf

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers; nan for an empty text."""
        return self.nats / (math.log(2) * self.bytes) if self.bytes else math.nan


class Perplexity:
    """A causal model that scores texts.

    Args:
        folder: Hugging Face folder with a model and a `tokenizer.json`; nothing is downloaded.
        context: tokens of a window at most; the model's own positions limit it too. A longer text is cut into windows
            that move on by half, so that all but its first tokens are predicted from half a window or more.
        batch_tokens: padded tokens of a batch at most; a batch needs memory for as many rows of the vocabulary.
        device: `cpu`, or `cuda` for the current GPU; `auto` takes the GPU where there is one.
        dtype: of weights and arithmetic; log-likelihoods are summed in float64.

    Raises:
        UserError: the folder can't be loaded, the device is not there, or a number is out of range.
    """

    def __init__(
        self,
        folder: Path,
        *,
        context: int = CONTEXT_TOKENS,
        batch_tokens: int = BATCH_TOKENS,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        dtype: Precision = "auto",
    ) -> None:
        self.folder = Path(folder)
        if context < 2 or batch_tokens < 1:
            raise UserError(f"context {context}, batch of {batch_tokens} tokens: give 2 or more, and 1 or more.")
        if not (self.folder / "config.json").is_file():
            raise UserError(
                f"perplexity model {folder}: there is no config.json; give the folder of a Hugging Face checkpoint "
                "(config.json, tokenizer.json, *.safetensors)."
            )
        from megatron_native.data.tokenizers import load_tokenizer

        self._tokenizer = load_tokenizer("HuggingFaceTokenizer", self.folder)
        self._model, self.device = _load(self.folder, device, dtype)
        config = self._model.config.get_text_config()
        positions = int(getattr(config, "max_position_embeddings", 0) or 0)
        self.context = min(context, positions) if positions else context
        self._batch_tokens = batch_tokens
        self._begin = self._begin_id(config)

    def identity(self) -> dict[str, Any]:
        """For the lineage: the folder's name and hash, and what changes figures: context, precision, device."""
        return {
            "model": self.folder.resolve().name, "model_hash": self._hash, "context": self.context,
            "dtype": str(self._model.dtype).removeprefix("torch."), "device": self.device,
        }  # fmt: skip

    def score(self, texts: Iterable[str], on_scored: Callable[[int], None] = lambda texts: None) -> list[TextScore]:
        """The score of each text, in order. All texts are held, and scored in the order of their lengths.

        Padding and neighbours in a batch change the last bits of a sum at most.

        Args:
            texts: any texts without lone surrogates.
            on_scored: hears how many texts have been finished.
        """
        import torch

        from megatron_native.data.heldout import ENCODED_AT_ONCE, windows_of

        texts = list(texts)
        windows: list[tuple[int, Any, int]] = []  # (text, ids, labels that an earlier window has predicted)
        tokens: list[int] = []
        for start in range(0, len(texts), ENCODED_AT_ONCE):
            for ids in self._tokenizer.encode_batch(texts[start : start + ENCODED_AT_ONCE]):
                cut = windows_of(ids.astype("int64"), self._begin, self.context, max(1, self.context // 2))
                windows += [(len(tokens), window, seen) for window, seen in cut]
                tokens.append(len(ids))
        left = [0] * len(texts)
        for text, _, _ in windows:
            left[text] += 1
        on_scored(left.count(0))
        nats = [0.0] * len(texts)
        windows.sort(key=lambda window: -len(window[1]))
        place = 0
        with torch.inference_mode():
            while place < len(windows):
                rows = max(1, self._batch_tokens // (len(windows[place][1]) - 1))
                batch = windows[place : place + rows]
                for (text, _, _), row in zip(batch, self._nats(batch), strict=True):
                    nats[text] += row
                    left[text] -= 1
                    if not left[text]:
                        on_scored(1)
                place += rows
        return [
            TextScore(total, count, len(text.encode("utf-8")))
            for total, count, text in zip(nats, tokens, texts, strict=True)
        ]

    def _nats(self, batch: list[tuple[int, Any, int]]) -> list[float]:
        """The sum over each window's own labels. Rows are padded on the right, where a causal model doesn't look."""
        import torch

        longest = len(batch[0][1]) - 1
        inputs = torch.full((len(batch), longest), self._begin)
        mask = torch.zeros((len(batch), longest), dtype=torch.long)
        for row, (_, ids, _) in enumerate(batch):
            inputs[row, : len(ids) - 1] = torch.from_numpy(ids[:-1])
            mask[row, : len(ids) - 1] = 1
        logits = self._model(
            input_ids=inputs.to(self.device), attention_mask=mask.to(self.device), use_cache=False
        ).logits
        sums = []
        for row, (_, ids, seen) in enumerate(batch):  # one at a time: float32 of all rows may be many GB
            labels = torch.from_numpy(ids[seen + 1 :]).to(self.device)
            losses = torch.nn.functional.cross_entropy(
                logits[row, seen : len(ids) - 1].float(), labels, reduction="none"
            )
            sums.append(float(losses.double().sum()))
        return sums

    def _begin_id(self, config: Any) -> int:
        """What the first token is predicted from."""
        if self._tokenizer.bos_id is not None:
            return self._tokenizer.bos_id
        if self._tokenizer.eod_token is not None:
            return self._tokenizer.eod_id
        for name in ("bos_token_id", "eos_token_id"):
            value = getattr(config, name, None)
            if isinstance(value, list):
                value = value[0] if value else None
            if value is not None:
                return int(value)
        raise UserError(
            f"perplexity model {self.folder}: neither its tokenizer nor its config.json names a begin or end token, so "
            "there is nothing to predict a first token from; name bos_token_id in config.json."
        )

    @cached_property
    def _hash(self) -> str:
        from megatron_native.alignment.backends.worker import Worker

        return Worker(self.folder).hash


def _load(folder: Path, device: str, dtype: str) -> tuple[Any, str]:
    """The model, ready, and where it is."""
    from megatron_native.platform.quiet import silence_libraries

    silence_libraries()
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "device cuda: torch sees no GPU here; use device cpu, or a machine and a torch build with CUDA."
        )
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype="auto" if dtype == "auto" else getattr(torch, dtype)
        )
    except (OSError, ValueError) as error:
        raise UserError(f"perplexity model {folder} can't be loaded: {' '.join(str(error).split())}") from None
    return model.eval().to(device), device
