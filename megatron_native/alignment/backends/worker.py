"""A worker on disk: the Hugging Face folder that rewrites, its hash, and its chat as token ids."""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

from megatron_native.alignment.conduct import load_conduct
from megatron_native.alignment.passages import estimated_tokens
from megatron_native.alignment.prompts import Messages
from megatron_native.errors import UserError
from megatron_native.manifest import file_digest, parameters_hash

_HEADS = 4
"""Beginnings of chats that are kept encoded; a run has one, or one for each form."""
_CERTAIN_AFTER = 16
"""Chats that are encoded both ways before the beginnings are trusted."""
_NEVER = -1
"""The tokenizer encodes across its special tokens: every chat is encoded whole."""
_BEGINNING = 40
"""Characters of a message by which it is found again; the conduct's own words, which no template changes."""
PROMPT_FILE = "worker.json"
"""How a worker that was trained here is to be asked; `train-worker` writes it."""
PROMPT_FORMAT = "megatron-native/worker/1"
_NOT_THE_WORKER = {".md", ".txt", ".gitattributes", ".lock"}


class Worker:
    """A Hugging Face folder with a model, a tokenizer and, for chat models, a chat template.

    Raises:
        UserError: the folder has no model.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._heads: dict[str, list[int]] = {}
        self._certain = 0
        if not (self.folder / "config.json").is_file():
            raise UserError(
                f"--worker {folder}: there is no config.json; give the folder of a Hugging Face checkpoint "
                "(config.json, tokenizer, *.safetensors)."
            )

    @cached_property
    def hash(self) -> str:
        """xxh3_128 over the names and contents of the folder's files; pages for people are left out.

        Every byte is read once a process: a few seconds for each GB.
        """
        files = sorted(path for path in self.folder.iterdir() if path.is_file() and path.suffix not in _NOT_THE_WORKER)
        return parameters_hash({"files": [[path.name, file_digest(path)] for path in files]})

    @cached_property
    def context_length(self) -> int:
        """Tokens of prompt and answer together, as `config.json` says (0 where it doesn't)."""
        config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        return int(config.get("max_position_embeddings") or 0)

    @property
    def prompt(self) -> dict[str, Any]:
        """How it was trained to be asked: `conduct` (its `name`, `hash` and, for a code that is not shipped, the `file` in
        the folder that has it), `form`, `language`, `detail` and `context_tokens` (of the text around a passage that it was
        shown); or empty.

        Raises:
            UserError: the file that says so can't be read.
        """
        return {name: value for name, value in self._training.items() if name != "rules"}

    @property
    def learned_tidied(self) -> bool:
        """Whether passages were tidied by the rules when it was trained, as far as its folder says."""
        return bool(self._training.get("rules", True))

    @cached_property
    def _training(self) -> dict[str, Any]:
        path = self.folder / PROMPT_FILE
        if not path.is_file():
            return {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["format"] != PROMPT_FORMAT:
                raise ValueError(f"its format is {found['format']!r}, not {PROMPT_FORMAT!r}")
            known = {name: found[name] for name in ("conduct", "form", "language", "detail", "context_tokens")}
            return known | {"rules": found.get("rules", True)}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} can't be read ({type(error).__name__}: {error}): copy it again from where the worker was trained, "
                "or take it away and say how to ask by --form, --language and --detail."
            ) from None

    @cached_property
    def tokenizer(self) -> Any:
        """The worker's own tokenizer, of transformers."""
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(self.folder))

    def chat_ids(self, messages: Messages) -> list[int]:
        """The ids of a chat that the worker is to answer.

        By its chat template; without one, the contents between blank lines after the begin token. What chats have in
        common before their last message is encoded once.
        """
        tokenizer = self.tokenizer
        if tokenizer.chat_template is None:
            return list(tokenizer("\n\n".join(message["content"] for message in messages) + "\n")["input_ids"])
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        place = self._cut(text, messages[-1]["content"]) if self._certain != _NEVER else 0
        if not place:
            return self._encoded(text)
        head, tail = text[:place], text[place:]
        if head not in self._heads:
            if len(self._heads) >= _HEADS:
                self._heads.clear()
            self._heads[head] = self._encoded(head)
        ids = [*self._heads[head], *self._encoded(tail)]
        if self._certain < _CERTAIN_AFTER:
            whole = self._encoded(text)
            self._certain = self._certain + 1 if ids == whole else _NEVER
            return whole
        return ids

    def _encoded(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _cut(self, text: str, content: str) -> int:
        """Where the last special token before the last message ends: what stands before it is encoded by itself."""
        begin = text.rfind(content[:_BEGINNING])
        cuts = (text.rfind(token, 0, begin) + len(token) for token in self._special if text.rfind(token, 0, begin) >= 0)
        return max(cuts, default=0)

    @cached_property
    def _special(self) -> list[str]:
        return [token for token in self.tokenizer.all_special_tokens if token]

    @cached_property
    def fertility(self) -> float:
        """Tokens that the worker's tokenizer makes for each of LLaMA-3's, on the Arabic of the general code of conduct."""
        principles = load_conduct("general").by_severity()
        text = "\n".join(principle.rule.ar for principle in principles)
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"]) / estimated_tokens(text)

    def identity(self) -> dict[str, Any]:
        """For the lineage of outputs: name and hash."""
        return {"worker": self.folder.resolve().name, "worker_hash": self.hash}
