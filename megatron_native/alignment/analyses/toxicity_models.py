"""Classifiers of toxicity that are models: a Hugging Face folder, or a moderation endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_native.alignment.backends.server_settings import ServerSettings, checked_endpoints
from megatron_native.errors import UserError

_TEXTS_A_REQUEST = 32
_REQUESTS_AT_ONCE = 4


class ModelClassifier:
    """A text-classification model, run here. Its labels are the categories.

    Scores are sigmoids where the model is of several labels (`problem_type`) or has one label, else a softmax over all.

    Args:
        folder: Hugging Face folder; nothing is downloaded, and no code of it is run.
        device: `cpu`, or `cuda` for the current GPU; `auto` takes the GPU where there is one.
        most_tokens: of a text; what follows is not seen (`truncated` counts such texts).
        batch: texts at once.

    Raises:
        UserError: the folder can't be loaded.
    """

    def __init__(self, folder: Path, device: str = "auto", most_tokens: int = 512, batch: int = 32) -> None:
        if not (Path(folder) / "config.json").is_file():
            raise UserError(
                f"--toxicity-model {folder} is no Hugging Face folder: it has no config.json; give one with a "
                "text-classification model."
            )
        from megatron_native.platform.quiet import silence_libraries

        silence_libraries()
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.folder, self.most_tokens, self._batch, self.truncated = Path(folder), most_tokens, batch, 0
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise UserError(
                f"--toxicity-model {folder} can't be loaded: {' '.join(str(error).split())}; give a "
                "folder of a text-classification model with its tokenizer."
            ) from None
        self._device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self._model = model.eval().to(self._device)
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        if model.config.pad_token_id is None:
            model.config.pad_token_id = self._tokenizer.pad_token_id
        positions = int(getattr(model.config, "max_position_embeddings", 0) or most_tokens)
        self.most_tokens = min(most_tokens, positions)
        labels = model.config.id2label
        self.categories = tuple(str(labels[place]) for place in sorted(labels))
        self._independent = model.config.problem_type == "multi_label_classification" or len(labels) == 1

    def identity(self) -> dict[str, Any]:
        """Folder, hash, and what changes scores."""
        from megatron_native.alignment.backends.worker import Worker

        return {
            "classifier": "model", "model": self.folder.resolve().name, "model_hash": Worker(self.folder).hash,
            "most_tokens": self.most_tokens, "truncated_texts": self.truncated,
        }  # fmt: skip

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Probabilities of the labels, float64 [texts, labels]."""
        import torch

        rows: list[NDArray[np.float64]] = [np.zeros((0, len(self.categories)))]
        for start in range(0, len(texts), self._batch):
            chosen = list(texts[start : start + self._batch])
            batch = self._tokenizer(
                chosen, return_tensors="pt", padding=True, truncation=True, max_length=self.most_tokens
            )
            self.truncated += int((batch["attention_mask"].sum(1) == self.most_tokens).sum())
            with torch.inference_mode():
                logits = self._model(**{key: value.to(self._device) for key, value in batch.items()}).logits.float()
            scores = logits.sigmoid() if self._independent else logits.softmax(-1)
            rows.append(scores.double().cpu().numpy())
        return np.concatenate(rows)


class ModerationEndpoint:
    """An OpenAI-compatible `/v1/moderations`. The key is the environment's, and is neither kept nor written anywhere.

    Args:
        endpoint: base URL, `http://host:8000/v1`.
        model: the model's name; "" leaves it to the server.
        categories: those that are compared; the paper's four by default.
        settings: times, attempts and the name of the key's environment variable.

    Raises:
        UserError: the endpoint is no URL.
    """

    def __init__(
        self,
        endpoint: str,
        model: str = "",
        categories: Sequence[str] = ("hate", "harassment", "violence", "sexual"),
        settings: ServerSettings = ServerSettings(),  # noqa: B008 - frozen
    ) -> None:
        from openai import OpenAI

        (self._url,) = checked_endpoints([endpoint])
        self._key_variable = settings.api_key_variable or "none was named for it"
        self.model, self.categories = model, tuple(categories)
        self._client = OpenAI(
            base_url=self._url, api_key=settings.api_key(), timeout=settings.request_seconds,
            max_retries=settings.attempts - 1,
        )  # fmt: skip
        self._reported: set[str] = set()

    def identity(self) -> dict[str, Any]:
        """The model as it was asked for and as the server names it; the endpoint is not part of it."""
        return {"classifier": "moderation endpoint", "model": self.model, "reported": sorted(self._reported)}

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The server's category scores; nan rows for texts of a request that it refused, and for blank texts 0.

        Raises:
            UserError: the server can't be reached, wants another key or knows no such category.
        """
        scores = np.zeros((len(texts), len(self.categories)))
        written = [place for place, text in enumerate(texts) if text.strip()]
        groups = [written[at : at + _TEXTS_A_REQUEST] for at in range(0, len(written), _TEXTS_A_REQUEST)]
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
            for group, rows in zip(groups, pool.map(lambda group: self._ask([texts[p] for p in group]), groups)):
                scores[group] = rows
        return scores

    def _ask(self, texts: list[str]) -> NDArray[np.float64]:
        import openai

        more: dict[str, Any] = {"model": self.model} if self.model else {}
        try:
            answer = self._client.moderations.create(input=texts, **more)
            found = [one.category_scores.model_dump(by_alias=True) for one in answer.results]
        except (openai.BadRequestError, openai.UnprocessableEntityError):
            return np.full((len(texts), len(self.categories)), np.nan)
        except (openai.OpenAIError, AttributeError, TypeError, ValueError) as error:
            status = getattr(error, "status_code", None)
            said = f"HTTP {status}" if status else type(error).__name__
            raise UserError(
                f"the moderation endpoint {self._url} gave no scores ({said}); it must answer POST /moderations, and the "
                f"key must be in the environment ({self._key_variable})."
            ) from None
        if len(found) != len(texts):
            raise UserError(f"the moderation endpoint {self._url} answered {len(found)} of {len(texts)} texts.")
        self._reported.add(str(answer.model))
        lacking = [name for name in self.categories if any(scores.get(name) is None for scores in found)]
        if lacking:
            raise UserError(
                f"the moderation endpoint {self._url} knows no category {', '.join(lacking)}; it has "
                f"{', '.join(sorted(found[0]))}."
            )
        return np.array([[float(scores[name]) for name in self.categories] for scores in found])
