"""Tokenizers as data preparation needs them: text in, ids out, with what a document starts and ends with.

`load_tokenizer` opens a Hugging Face folder or `tokenizer.json` (by the `tokenizers` library alone) or a SentencePiece
`.model`. Text is always encoded as ordinary text: a literal `<|endoftext|>` in a web page never becomes the real
separator. A new kind of tokenizer is one subclass of `Tokenizer` and one line of `TOKENIZER_TYPES`.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from megatron_native.data.certificate import Certificate, examine, not_usable
from megatron_native.errors import UserError

DOCUMENT_SEPARATORS = {
    # the token that ended documents in a base model's pre-training: which families
    # The first one that a tokenizer has as a special token is its separator; the order decides where it has two.
    "<|end_of_text|>": "LLaMA 3 (not the turn end <|eot_id|>)",
    "<|endoftext|>": "Qwen 1.5–3, SmolLM, GPT-2, Phi, Jais (not the turn end <|im_end|>)",
    "<｜end▁of▁sentence｜>": "DeepSeek",
    "</s>": "LLaMA 1 and 2, Mistral",
    "<eos>": "Gemma",
}
BEGIN_TOKENS = ("<|begin_of_text|>", "<｜begin▁of▁sentence｜>", "<s>", "<bos>")
"""What `--bos` looks for when the tokenizer's configuration names no begin token, in this order."""


class Tokenizer(ABC):
    """One tokenizer with the document policy chosen for it.

    Attributes:
        name: the tokenizer type, as `--tokenizer-type` spells it.
        path: the file the vocabulary was read from.
        vocab_size: one more than the largest id that can occur.
        bos_id: the id every document begins with, or None where documents begin with their text.
        engine: the program that encodes.
        certificate: what the differential run of a faster engine found, where one was made.
    """

    name: str
    path: Path
    vocab_size: int
    bos_id: int | None
    engine: str = ""
    certificate: Certificate | None = None

    def __init__(self, eod_token: str | None, bos: bool | None) -> None:
        self._eod_token = self._resolve_separator(eod_token)
        self.bos_id = self._resolve_begin(bos)
        specials = sorted((s for s in self.special_tokens() if s), key=len, reverse=True)
        self._specials_pattern = re.compile("|".join(map(re.escape, specials))) if specials else None
        self._special_beginnings = sorted({special[:2] for special in specials})

    @cached_property
    def hash(self) -> str:
        """sha256 over the vocabulary's content, the same whatever the file's formatting."""
        digest = hashlib.sha256(self._hashed_content()).hexdigest()
        _return_freed_memory()
        return digest

    @abstractmethod
    def _hashed_content(self) -> bytes:
        """What the hash is made of."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """The ids of each text, no begin or end token added, special tokens in the text as ordinary text.

        Equals `transformers`' `tokenizer(text, add_special_tokens=False, split_special_tokens=True)`.
        """

    @abstractmethod
    def decode(self, ids: Sequence[int] | NDArray[Any]) -> str:
        """The text of some ids, special tokens shown."""

    @abstractmethod
    def token_id(self, token: str) -> int | None:
        """The id of one token of the vocabulary, or None."""

    @abstractmethod
    def id_token(self, index: int) -> str | None:
        """The token with one id, or None."""

    @abstractmethod
    def special_tokens(self) -> list[str]:
        """The special (control) tokens' own spellings."""

    @abstractmethod
    def _template_begin(self) -> int | None:
        """The id that the tokenizer's own template puts before a text, or None."""

    @abstractmethod
    def _configured_begin(self) -> str | None:
        """The token that the tokenizer's configuration calls its begin token, or None."""

    def encode(self, text: str) -> NDArray[np.int32]:
        """`encode_batch` of one text."""
        return self.encode_batch([text])[0]

    def encode_flat(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """As `encode_batch`, in one piece: int32 [all ids], and int64 [texts + 1] where each text's ids begin."""
        found = self.encode_batch(texts)
        bounds = np.zeros(len(texts) + 1, dtype=np.int64)
        np.cumsum([len(ids) for ids in found], out=bounds[1:])
        return np.concatenate([*found, np.empty(0, dtype=np.int32)]), bounds

    @property
    def eod_token(self) -> str | None:
        """The document separator's spelling, or None where it is not known."""
        return self._eod_token

    @property
    def eod_id(self) -> int:
        """The document separator's id. Raises `UserError` where it is not known: the user must name it."""
        index = None if self._eod_token is None else self.token_id(self._eod_token)
        if index is None:
            raise UserError(
                f"{self.path} has none of the known document separators ({' '.join(DOCUMENT_SEPARATORS)}), so where "
                "documents end has to be said: name the token that ended documents in the base model's pre-training "
                "with --eod-token TOKEN."
            )
        return index

    @property
    def bos_token(self) -> str | None:
        """The begin token's spelling, or None where documents begin with their text."""
        return None if self.bos_id is None else self.id_token(self.bos_id)

    def count_special_tokens(self, text: str) -> int:
        """How many spellings of special tokens stand in a text (all of them are encoded as ordinary text)."""
        for beginning in self._special_beginnings:  # a search for two letters costs a tenth of the pattern's
            if beginning in text:
                assert self._specials_pattern is not None
                return len(self._specials_pattern.findall(text))
        return 0

    def description(self) -> dict[str, Any]:
        """What a manifest records of the tokenizer and its document policy."""
        eod_id = None if self._eod_token is None else self.token_id(self._eod_token)
        return {
            "type": self.name, "model": str(self.path), "hash": self.hash, "vocab_size": self.vocab_size,
            "eod_token": self._eod_token, "eod_id": eod_id, "bos_token": self.bos_token, "bos_id": self.bos_id,
        }

    def _resolve_separator(self, chosen: str | None) -> str | None:
        if chosen is not None:
            if self.token_id(chosen) is None:
                close = [token for token in self.special_tokens() if "end" in token or "eo" in token or "/s" in token]
                raise UserError(
                    f"--eod-token {chosen!r} is not a token of {self.path}; its special tokens that look like ends "
                    f"are: {' '.join(close) or 'none'}."
                )
            return chosen
        specials = set(self.special_tokens())
        return next((token for token in DOCUMENT_SEPARATORS if token in specials), None)

    def _resolve_begin(self, forced: bool | None) -> int | None:
        if forced is False:
            return None
        begin = self._template_begin()
        if begin is not None or forced is None:
            return begin
        for token in (self._configured_begin(), *BEGIN_TOKENS):
            index = None if token is None else self.token_id(token)
            if index is not None:
                return index
        raise UserError(f"--bos was asked for, but {self.path} names no begin token; leave --bos out, or use --no-bos.")


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json`, with the `tokenizer_config.json` beside it for its begin token.

    `engine` is `tokenizers`, `fastokens` (trusted as it is), or `auto`: fastokens if its certificate is clean.
    """

    name = "HuggingFaceTokenizer"

    def __init__(
        self, model: Path, eod_token: str | None = None, bos: bool | None = None, engine: str = "tokenizers"
    ) -> None:
        self.path = _tokenizer_json(model)
        from tokenizers import Tokenizer as RustTokenizer

        try:
            content = self.path.read_text(encoding="utf-8")
            self._rust = RustTokenizer.from_str(content)
        except Exception as error:  # the library raises a bare Exception for a file it can't read
            raise UserError(f"{self.path} is not a readable tokenizer.json ({error}).") from error
        self._rust.no_truncation()
        self._rust.no_padding()
        self._rust.encode_special_tokens = True  # special tokens in the text are text
        self._config = _read_config(self.path.with_name("tokenizer_config.json"))
        if self._mark_named_tokens_special():
            content = self._rust.to_str()
        self._added = self._rust.get_added_tokens_decoder()
        self.vocab_size = max(self._rust.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        super().__init__(eod_token, bos)
        self.engine = "tokenizers"
        self._fast: Any = None
        if engine != "tokenizers":
            self._take_fast_engine(content, certified=engine == "fastokens")

    @override
    def _hashed_content(self) -> bytes:
        content = json.loads(self.path.read_text(encoding="utf-8"))
        vocabulary = {key: value for key, value in content.items() if key not in ("truncation", "padding")}
        return json.dumps(vocabulary, sort_keys=True, ensure_ascii=False).encode()

    def _take_fast_engine(self, content: str, certified: bool) -> None:
        """Encode with fastokens, after a differential run unless one was made before."""
        version = ""
        # One thread at work: the work is spread over processes, whose cores more threads would fight for. The engine has
        # a pool of its own beside rayon's (which cuts long texts); both look when they first encode.
        os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
        os.environ.setdefault("RAYON_NUM_THREADS", "1")
        try:
            import fastokens

            version = metadata.version("fastokens")
            _return_freed_memory()
            self._fast = fastokens.Tokenizer.from_json_str(content)
            self._fast.no_truncation()
            self._fast.no_padding()
            _return_freed_memory()
        except BaseException as error:  # it is not installed, or does not know this kind of tokenizer; a Rust panic
            if isinstance(error, KeyboardInterrupt):
                raise
            self._fast = None
            reason = "it is not installed" if isinstance(error, ImportError) else f"it can't load the tokenizer: {error}"
            self.certificate = not_usable("fastokens", version, " ".join(reason.split())[:200])
            return
        if not certified:
            self.engine = "fastokens"
            self.certify()
        else:
            self.engine = "fastokens"

    def certify(self, sample: Sequence[str] = ()) -> Certificate:
        """Examine the fast engine on the difficult texts and a sample of the user's own; on a difference it is dropped.

        Where there is no fast engine (not asked for, not installed, dropped before), the certificate says that it isn't
        used.
        """
        if self._fast is None:
            self.certificate = self.certificate or not_usable("fastokens", "", "it was not asked for")
            return self.certificate
        spellings = [token.content for token in self._added.values()]
        version = metadata.version("fastokens")
        self.certificate = examine(
            "fastokens", version, self._encode_fast, self.encode_batch_by_reference, spellings, sample
        )
        if not self.certificate.equal:
            self.engine, self._fast = "tokenizers", None
        _return_freed_memory()
        return self.certificate

    @override
    def encode_flat(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        if self._fast is None:
            return super().encode_flat(texts)
        ids, bounds = self._fast.encode_batch_flat(list(texts), False, True)
        return np.frombuffer(ids, dtype=np.uint32).view(np.int32), np.frombuffer(bounds, dtype=np.uint64).view(np.int64)

    def _encode_fast(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        ids, bounds = self.encode_flat(texts)
        return [ids[start:stop] for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist())]

    def _mark_named_tokens_special(self) -> bool:
        """Tokens that the configuration names (`eos_token`, …) are special even where tokenizer.json forgets to say so.

        transformers does the same when it loads a tokenizer. Whether there were such tokens is returned.
        """
        from tokenizers import AddedToken

        added = {token.content for token in self._rust.get_added_tokens_decoder().values() if not token.special}
        named = {_token_text(value) for key, value in self._config.items() if key.endswith("_token")}
        tokens = [AddedToken(token, special=True, normalized=False) for token in sorted(added & (named - {None}))]
        self._rust.add_special_tokens(tokens)
        return bool(tokens)

    @override
    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        return self._encode_fast(texts) if self._fast is not None else self.encode_batch_by_reference(texts)

    def encode_batch_by_reference(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """`encode_batch` by Hugging Face's own `tokenizers`, whatever the engine."""
        encodings = self._rust.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    @override
    def decode(self, ids: Sequence[int] | NDArray[Any]) -> str:
        return str(self._rust.decode([int(index) for index in ids], skip_special_tokens=False))

    @override
    def token_id(self, token: str) -> int | None:
        index = self._rust.token_to_id(token)
        return None if index is None else int(index)

    @override
    def id_token(self, index: int) -> str | None:
        token = self._rust.id_to_token(index)
        return None if token is None else str(token)

    @override
    def special_tokens(self) -> list[str]:
        return [token.content for token in self._added.values() if token.special]

    @override
    def _template_begin(self) -> int | None:
        # as transformers 5 has it: the template in tokenizer.json decides, whatever the configuration's add_bos_token
        plain = self._rust.encode("a", add_special_tokens=False).ids
        whole = self._rust.encode("a", add_special_tokens=True).ids
        for start in range(len(whole) - len(plain) + 1):
            if whole[start : start + len(plain)] == plain:
                return int(whole[0]) if start else None
        return None

    @override
    def _configured_begin(self) -> str | None:
        return _token_text(self._config.get("bos_token"))


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece `.model`; its control symbols are special tokens, which SentencePiece never reads in text.

    A `.model` has no template: documents begin with no begin token unless a `tokenizer_config.json` beside it says
    `add_bos_token`, or `--bos` does.
    """

    name = "SentencePieceTokenizer"

    def __init__(
        self, model: Path, eod_token: str | None = None, bos: bool | None = None, engine: str = "sentencepiece"
    ) -> None:
        self.engine = "sentencepiece"
        self.path = model / "tokenizer.model" if model.is_dir() else model
        if not self.path.is_file():
            raise UserError(f"--tokenizer-model {self.path}: there is no such SentencePiece model file.")
        from sentencepiece import SentencePieceProcessor

        content = self.path.read_bytes()
        try:
            self._processor = SentencePieceProcessor(model_proto=content)
        except Exception as error:  # a RuntimeError or its own type, by version
            raise UserError(f"{self.path} is not a readable SentencePiece model ({error}).") from error
        self._config = _read_config(self.path.with_name("tokenizer_config.json"))
        self.vocab_size = int(self._processor.vocab_size())
        self._content = content
        super().__init__(eod_token, bos)

    @override
    def _hashed_content(self) -> bytes:
        return self._content

    @override
    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        return [np.array(ids, dtype=np.int32) for ids in self._processor.encode(list(texts), num_threads=1)]

    @override
    def decode(self, ids: Sequence[int] | NDArray[Any]) -> str:
        return str(self._processor.decode([int(index) for index in ids]))

    @override
    def token_id(self, token: str) -> int | None:
        index = int(self._processor.piece_to_id(token))
        return index if self._processor.id_to_piece(index) == token else None

    @override
    def id_token(self, index: int) -> str | None:
        return str(self._processor.id_to_piece(index)) if 0 <= index < self.vocab_size else None

    @override
    def special_tokens(self) -> list[str]:
        processor = self._processor
        return [str(processor.id_to_piece(i)) for i in range(self.vocab_size) if processor.is_control(i)]

    @override
    def _template_begin(self) -> int | None:
        if self._config.get("add_bos_token") is not True:
            return None
        return int(self._processor.bos_id()) if self._processor.bos_id() >= 0 else None

    @override
    def _configured_begin(self) -> str | None:
        index = int(self._processor.bos_id())
        return str(self._processor.id_to_piece(index)) if index >= 0 else None


TOKENIZER_TYPES: dict[str, type[HuggingFaceTokenizer] | type[SentencePieceTokenizer]] = {
    "HuggingFaceTokenizer": HuggingFaceTokenizer,
    "SentencePieceTokenizer": SentencePieceTokenizer,
}


def load_tokenizer(
    tokenizer_type: str, tokenizer_model: str | Path, eod_token: str | None = None, bos: bool | None = None,
    engine: str = "tokenizers",
) -> Tokenizer:
    """The tokenizer at `tokenizer_model`, a folder, a `tokenizer.json` or a SentencePiece `.model`.

    `eod_token` names the document separator (default: the base model's, from `DOCUMENT_SEPARATORS`); `bos` forces a
    begin token (True) or none (False) where the tokenizer's own template would decide (None). `engine` may be `auto` for
    the fastest one that a differential run finds equal to the reference; its result is in `certificate`.

    Raises:
        UserError: an unknown type, a file that is missing or can't be read, a token that isn't in the vocabulary.
    """
    if tokenizer_type not in TOKENIZER_TYPES:
        raise UserError(
            f"--tokenizer-type {tokenizer_type} is not supported; it is one of {', '.join(TOKENIZER_TYPES)}. A GPT-2 "
            "vocabulary with merges becomes a tokenizer.json by transformers' AutoTokenizer(...).save_pretrained(FOLDER)."
        )
    model = Path(tokenizer_model)
    if not model.exists():
        raise UserError(
            f"--tokenizer-model {model}: there is no such file or folder. It is a local path (nothing is downloaded): "
            "a Hugging Face folder, a tokenizer.json or a SentencePiece .model."
        )
    return TOKENIZER_TYPES[tokenizer_type](model, eod_token=eod_token, bos=bos, engine=engine)


def _tokenizer_json(model: Path) -> Path:
    path = model / "tokenizer.json" if model.is_dir() else model
    if path.is_file() and path.suffix == ".json":
        return path
    folder = path.parent
    if path.suffix == ".model" or (folder / "tokenizer.model").is_file():
        raise UserError(
            f"--tokenizer-model {model} holds a SentencePiece model and no tokenizer.json; use --tokenizer-type "
            f"SentencePieceTokenizer, or make a tokenizer.json with transformers' AutoTokenizer(...).save_pretrained()."
        )
    raise UserError(f"--tokenizer-model {model} has no tokenizer.json; give the Hugging Face folder that holds one.")


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not readable JSON ({error}); repair it, or move it away.") from error
    return config if isinstance(config, dict) else {}


def _token_text(value: Any) -> str | None:
    """A token in a tokenizer_config.json: its text, or `{"content": text, …}`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _return_freed_memory() -> None:
    """Give the pages that work on a vocabulary freed back to the system: 200 MB of loading LLaMA-3's, with glibc."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
