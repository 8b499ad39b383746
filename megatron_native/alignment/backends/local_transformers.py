"""The `transformers` backend: the worker in this process, on a CPU or one GPU, for trying out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from megatron_native.alignment.backends.backend import Answer, Request, Sampling
from megatron_native.alignment.backends.worker import Worker
from megatron_native.errors import UserError

Precision = Literal["auto", "float32", "bfloat16", "float16"]
"""`auto` is what the checkpoint is stored in."""

_BATCHES_OF_A_WINDOW = 8


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A request as ids, with the number of tokens that its answer may have."""

    request: Request
    ids: list[int]
    room: int


class TransformersBackend:
    """Answers requests with `transformers`' own generation.

    Requests are drawn in windows of 8 batches; within a window they are sorted by length, so that a batch needs little
    padding, and answered longest first. With `batch_size` 1 an answer depends on its request alone, to the byte; with
    more, the padding can change the last bits of the logits and so, rarely, a token. Threads are left as they are set.

    Args:
        worker: the folder. Its `generation_config.json` gives the tokens that end an answer, and nothing else.
        sampling: greedy by default. Where tokens are drawn, every batch begins from the seed.
        batch_size: requests that are answered together.
        device: `cpu`, or `cuda` for the current GPU.
        dtype: of weights and arithmetic.

    Attributes:
        accelerators: 1.

    Raises:
        UserError: the worker can't be loaded, or the device is not there.
    """

    accelerators = 1

    def __init__(
        self,
        worker: Worker,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        batch_size: int = 1,
        device: Literal["cpu", "cuda"] = "cpu",
        dtype: Precision = "auto",
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch size {batch_size}: give 1 or more.")
        self.worker, self.sampling, self.batch_size, self.device = worker, sampling, batch_size, device
        self._model: Any = _load(worker, device, dtype)
        self._dtype = str(self._model.dtype).removeprefix("torch.")
        self._ends = _ends(self._model, worker.tokenizer)
        padding = worker.tokenizer.pad_token_id
        self._padding = padding if padding is not None else min(self._ends, default=0)
        self._model.generation_config = self._generation_config()

    def identity(self) -> dict[str, Any]:
        """Backend, versions, worker and hash, and what changes the last bits: device, precision, batch size."""
        import torch
        import transformers

        return {
            "backend": "transformers", "backend_version": transformers.__version__, "torch": torch.__version__,
            **self.worker.identity(), "device": self.device, "dtype": self._dtype, "batch_size": self.batch_size,
        }  # fmt: skip

    def answers(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """One answer for every request, window by window; see `Backend.answers`.

        A prompt that fills the context gives an answer with an error. Where prompt and `max_tokens` together exceed it,
        the answer has what is left, and `length` says so where that was too little.
        """
        remaining = iter(requests)
        size = 1 if self.batch_size == 1 else self.batch_size * _BATCHES_OF_A_WINDOW
        while window := list(islice(remaining, size)):
            prompts = []
            for request in window:
                prompt = self._prompt(request)
                if isinstance(prompt, Answer):
                    yield prompt
                else:
                    prompts.append(prompt)
            prompts.sort(key=lambda prompt: len(prompt.ids), reverse=True)
            for start in range(0, len(prompts), self.batch_size):
                yield from self._answer(prompts[start : start + self.batch_size])

    def close(self) -> None:
        """Let go of the model."""
        self._model = None

    def _prompt(self, request: Request) -> _Prompt | Answer:
        ids = self.worker.chat_ids(request.messages)
        context = self.worker.context_length
        problem = ""
        if not ids:
            problem = "the prompt has no tokens"
        elif request.max_tokens < 1:
            problem = f"max_tokens = {request.max_tokens} leaves no room for an answer"
        elif context and len(ids) >= context:
            problem = f"the prompt has {len(ids)} tokens and the worker's context is {context}: make passages shorter"
        if problem:
            return Answer(request.key, None, "error", prompt_tokens=len(ids), error=problem)
        return _Prompt(request, ids, min(request.max_tokens, context - len(ids)) if context else request.max_tokens)

    def _answer(self, batch: list[_Prompt]) -> Iterator[Answer]:
        import torch

        longest = max(len(prompt.ids) for prompt in batch)
        padded = [[self._padding] * (longest - len(prompt.ids)) + prompt.ids for prompt in batch]
        mask = [[0] * (longest - len(prompt.ids)) + [1] * len(prompt.ids) for prompt in batch]
        devices = [torch.cuda.current_device()] if self.device == "cuda" else []
        with torch.inference_mode(), torch.random.fork_rng(devices):
            torch.manual_seed(self.sampling.seed)
            output = self._model.generate(
                input_ids=torch.tensor(padded, device=self.device),
                attention_mask=torch.tensor(mask, device=self.device),
                max_new_tokens=max(prompt.room for prompt in batch),
            )
        for prompt, row in zip(batch, output[:, longest:].tolist(), strict=True):
            yield self._read(prompt, row)

    def _read(self, prompt: _Prompt, row: list[int]) -> Answer:
        """The row's tokens up to the first end, or to the request's own limit; the end counts as a token."""
        end = next((place for place, token in enumerate(row[: prompt.room]) if token in self._ends), None)
        ids = row[: prompt.room] if end is None else row[:end]
        text = self.worker.tokenizer.decode(ids, skip_special_tokens=True)
        return Answer(
            prompt.request.key, text, "length" if end is None else "stop",
            prompt_tokens=len(prompt.ids), output_tokens=len(ids) + (end is not None),
        )  # fmt: skip

    def _generation_config(self) -> Any:
        """Ours alone: a checkpoint's own temperature or repetition penalty would change what `sampling` says."""
        from transformers import GenerationConfig

        drawn: dict[str, Any] = {"do_sample": False}
        if self.sampling.temperature > 0:
            drawn = {
                "do_sample": True,
                "temperature": self.sampling.temperature,
                "top_p": self.sampling.top_p,
                "top_k": 0,
            }
        return GenerationConfig(eos_token_id=sorted(self._ends) or None, pad_token_id=self._padding, **drawn)


def _load(worker: Worker, device: str, dtype: str) -> Any:
    from megatron_native.platform.quiet import silence_libraries

    silence_libraries()
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "device cuda: torch sees no GPU here; use device cpu, or a machine and a torch build with CUDA."
        )
    try:
        worker.tokenizer  # noqa: B018 - loaded here, so that a folder without one is refused here
        model = transformers.AutoModelForCausalLM.from_pretrained(
            worker.folder, local_files_only=True, dtype="auto" if dtype == "auto" else getattr(torch, dtype)
        )
    except (OSError, ValueError) as error:
        raise UserError(f"--worker {worker.folder} can't be loaded: {' '.join(str(error).split())}") from None
    return model.eval().to(device)


def _ends(model: Any, tokenizer: Any) -> set[int]:
    """Tokens that end an answer: those of `generation_config.json`, where chat models name a turn's end; the tokenizer's."""
    named = model.generation_config.eos_token_id
    ends = named if isinstance(named, list) else [named]
    return {int(end) for end in [*ends, tokenizer.eos_token_id] if end is not None}
