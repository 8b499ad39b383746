"""Conversations as token ids, and which of them are learned: the answers, and the token that ends each one's turn.

A conversation is rendered once by a chat template and encoded once, as it is at inference. Where an answer begins is
where the rendering of all before it, with the generation prompt, ends; these ids must be the very ones that inference
gives. Nothing in a message can become a control token: such a conversation is refused.
"""

from __future__ import annotations

import hashlib
import os
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_native.errors import UserError
from megatron_native.posttraining.conversations import RefusedConversationError

Learn = Literal["all", "last"]
"""Which answers of a conversation are learned: `all` of them, or the `last` one."""
LEARN: tuple[Learn, ...] = ("all", "last")
TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "llama3": (
        "{{ '<|begin_of_text|>' }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + "
        "'<|end_header_id|>\\n\\n' + (message['content'] | trim) + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
}
"""Templates that need no file."""
_NEEDED = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}
_CHANGES = "the template changes earlier turns"
_WAYS_OUT = (
    "give --template chatml or llama3, if the tokenizer has its special tokens, or --template FILE (Jinja, as Hugging Face has "
    "it), or start from a chat model's folder"
)
_TRIAL = [
    {"role": "user", "content": "ما عاصمة لبنان؟"},
    {"role": "assistant", "content": "عاصمة لبنان بيروت."},
    {"role": "user", "content": "Thank you."},
    {"role": "assistant", "content": "You are welcome."},
]
"""A conversation that every usable template must be able to render."""


class EncodedChat(NamedTuple):
    """A conversation of n tokens."""

    ids: NDArray[np.int32]
    """[n]"""
    learned: NDArray[np.uint8]
    """[n] 1 where the id is learned when it is a label."""


class ChatEncoder:
    """A tokenizer and a chat template.

    Args:
        folder: of a Hugging Face tokenizer, with a `tokenizer.json`.
        template: `chatml`, `llama3`, or a file; None: the tokenizer's own.
        learn: which answers are learned.

    Attributes:
        template: the template's text.
        end_of_turn: (id, spelling) of the token that ends an answer.

    Raises:
        UserError: no tokenizer, no template, or one with which answers can't be told from what is before and after them.
    """

    def __init__(self, folder: str | Path, template: str | Path | None = None, learn: Learn = "all") -> None:
        if learn not in LEARN:
            raise UserError(f"--learn {learn}: it is one of {', '.join(LEARN)}.")
        self.folder, self.learn = Path(folder), learn
        self.tokenizer = _load(self.folder)
        self.template = self._find_template(template)
        self._named = "the tokenizer's own chat template" if template is None else f"--template {template}"
        self.end_of_turn = self._try()

    @cached_property
    def template_hash(self) -> str:
        """sha256 of the template's text."""
        return hashlib.sha256(self.template.encode()).hexdigest()

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id that can occur."""
        return max(self.tokenizer.get_vocab().values()) + 1

    def description(self) -> dict[str, Any]:
        """What a manifest records of it."""
        return {
            "template": self.template, "template_hash": self.template_hash, "learn": self.learn,
            "end_of_turn": self.end_of_turn[1], "end_of_turn_id": self.end_of_turn[0],
        }  # fmt: skip

    def render(self, messages: Sequence[Mapping[str, Any]], generation_prompt: bool = False) -> str:
        """The text of some messages, and with `generation_prompt` what makes the model answer.

        Raises:
            RefusedConversationError: the template doesn't take them.
        """
        plain = [{"role": message["role"], "content": message["content"]} for message in messages]
        try:
            return str(self.tokenizer.apply_chat_template(
                plain, chat_template=self.template, tokenize=False, add_generation_prompt=generation_prompt
            ))  # fmt: skip
        except Exception as error:  # what a template raises, and what Jinja does, have no common type
            raise RefusedConversationError("the template doesn't take it", " ".join(str(error).split())) from error

    def prompt_ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The ids that a model is given at inference, to answer these messages."""
        return self._encode([self.render(messages, generation_prompt=True)])[0]

    def encode(self, messages: Sequence[Mapping[str, Any]]) -> EncodedChat:
        """The ids of a whole conversation, and which are learned: of each answer its own, and the one that ends its turn.

        Raises:
            RefusedConversationError: a message holds a control token, or the template renders an answer's prompt otherwise
                when the answer follows.
        """
        for place, message in enumerate(messages):
            self._refuse_control(message["content"], place)
        text = self.render(messages)
        answers = self._answers(messages)
        ids, begins = self._encode_whole(text, [self._start(text, messages, place) for place in answers])
        learned = np.zeros(len(ids), dtype=np.uint8)
        for begin, place in zip(begins, answers):
            end = next((at for at in range(begin, len(ids)) if ids[at] in self._control), None)
            if end is None:
                raise RefusedConversationError("answer without an end of turn", f"turn {place + 1}")
            if end == begin:
                first = self._decode([ids[end]])
                raise RefusedConversationError(
                    "the generation prompt is not all", f"{first} follows it in turn {place + 1}"
                )
            learned[begin : end + 1] = 1
        return EncodedChat(np.array(ids, dtype=np.int32), learned)

    def _answers(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The places of the messages that are learned."""
        answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        if self.learn == "last":
            answers = answers[-1:]
        answers = [place for place in answers if messages[place].get("weight", 1)]
        if not answers:
            raise RefusedConversationError("no answer", "none is learned")
        return answers

    def _start(self, text: str, messages: Sequence[Mapping[str, Any]], place: int) -> int:
        """Where in `text` the answer at `place` begins, in characters."""
        prompt = self.render(messages[:place], generation_prompt=True)
        with_answer = text if place + 1 == len(messages) else self.render(messages[: place + 1])
        if not text.startswith(prompt) or not text.startswith(with_answer):
            raise RefusedConversationError(_CHANGES, f"turn {place + 1} is rendered otherwise when others follow")
        return len(prompt)

    def _refuse_control(self, content: str, place: int) -> None:
        """Refuse a message of which some text would become a control token."""
        spelled = self._spelled.search(content) is not None
        if spelled or (self._normalizes and not self._control.isdisjoint(self._encode([content])[0])):
            raise RefusedConversationError("control token in a message", f"turn {place + 1}")

    def _encode_whole(self, text: str, starts: list[int]) -> tuple[list[int], list[int]]:
        """The ids of a rendered conversation, and where among them each of the answers begins that begin at `starts`.

        A tokenizer encodes what stands before a control token by itself. So of each prompt only what follows its last
        control token is encoded again, to see that the answer does not change it.
        """
        ends = [match.end() for match in self._spelled.finditer(text)]
        before = [bisect_right(ends, start) for start in starts]
        tails = [text[ends[count - 1] if count else 0 : start] for count, start in zip(before, starts)]
        ids, *tail_ids = self._encode([text, *tails])
        controls = [at for at, index in enumerate(ids) if index in self._control]
        if len(controls) == len(ends):
            firsts = [controls[count - 1] + 1 if count else 0 for count in before]
            begins = [first + len(tail) for first, tail in zip(firsts, tail_ids)]
            if all(ids[first:begin] == tail for first, begin, tail in zip(firsts, begins, tail_ids)):
                return ids, begins
        prompts = self._encode([text[:start] for start in starts])
        if all(ids[: len(prompt)] == prompt for prompt in prompts):
            return ids, [len(prompt) for prompt in prompts]
        return self._encode_apart(text, starts, ids)

    def _encode_apart(self, text: str, starts: list[int], whole: list[int]) -> tuple[list[int], list[int]]:
        """The ids with a cut where each answer begins, for a token that would straddle it: inference has it cut too."""
        bounds = [0, *starts, len(text)]
        pieces = self._encode([text[a:b] for a, b in pairwise(bounds)])
        ids = [index for piece in pieces for index in piece]
        if self._decode(ids) != self._decode(whole):  # the tokenizer marks the beginning of every text
            raise RefusedConversationError("a token straddles an answer's beginning")
        begins = np.cumsum([len(piece) for piece in pieces[:-1]]).tolist()
        return ids, begins

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return list(self.tokenizer(texts, add_special_tokens=False)["input_ids"])

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    @cached_property
    def _control(self) -> set[int]:
        """Ids of control tokens: the special ones, without the one for what is not in the vocabulary."""
        tokenizer = self.tokenizer
        special = {int(index) for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        special |= set(tokenizer.all_special_ids)
        unknown = tokenizer.unk_token_id
        return special - ({unknown} - {tokenizer.eos_token_id, tokenizer.bos_token_id})

    @cached_property
    def _spelled(self) -> re.Pattern[str]:
        """Any control token as it is spelled, the longest first."""
        spellings = self.tokenizer.convert_ids_to_tokens(sorted(self._control))
        return re.compile("|".join(map(re.escape, sorted(spellings, key=len, reverse=True))) or "(?!)")

    @cached_property
    def _normalizes(self) -> bool:
        """Whether other spellings can become a control token, by the tokenizer's normalization."""
        tokens = self.tokenizer.added_tokens_decoder
        return any(index not in tokens or tokens[index].normalized for index in self._control)

    def _find_template(self, chosen: str | Path | None) -> str:
        if chosen is None:
            own: Any = self.tokenizer.chat_template
            if isinstance(own, dict):
                own = own.get("default")
            if not own:
                raise UserError(f"the tokenizer in {self.folder} has no chat template: {_WAYS_OUT}.")
            return str(own)
        if str(chosen) in TEMPLATES:
            unknown = [token for token in _NEEDED[str(chosen)] if len(self._encode([token])[0]) != 1]
            ordinary = [token for token in _NEEDED[str(chosen)] if self._encode([token])[0][0] not in self._control]
            if unknown or ordinary:
                raise UserError(
                    f"--template {chosen}: {' '.join(unknown or ordinary)} is no special token of the tokenizer in "
                    f"{self.folder}, so nothing would tell turns from text; choose another template."
                )
            return TEMPLATES[str(chosen)]
        path = Path(chosen)
        if not path.is_file():
            raise UserError(f"--template {chosen} is neither a file nor one of {', '.join(TEMPLATES)}.")
        return path.read_text(encoding="utf-8")

    def _try(self) -> tuple[int, str]:
        """Encode a plain conversation, and find out by which token answers end."""
        said = [message["content"] for message in _TRIAL if message["role"] == "assistant"]
        try:
            ids, learned = self.encode(_TRIAL)
        except RefusedConversationError as error:
            more = " with --learn all (last may do)" if error.reason == _CHANGES and self.learn == "all" else ""
            raise UserError(f"{self._named} can't be used to train{more}: {error}. Otherwise {_WAYS_OUT}.") from error
        edges = np.flatnonzero(np.diff(learned, prepend=0, append=0))
        runs = [ids[a:b].tolist() for a, b in zip(edges[::2], edges[1::2])]
        for run, content in zip(runs, said[-len(runs) :]):
            if content not in self._decode(run):
                raise UserError(
                    f"{self._named} can't be used to train: the answer {content!r} becomes {self._decode(run)!r}. Otherwise "
                    f"{_WAYS_OUT}."
                )
        ends = {run[-1] for run in runs}
        if len(ends) != 1:
            raise UserError(
                f"{self._named} ends answers with different tokens: {self._decode(sorted(ends))}; {_WAYS_OUT}."
            )
        return ends.copy().pop(), self._decode(list(ends))


def _load(folder: Path) -> Any:
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder} has no tokenizer.json; give the folder of a Hugging Face tokenizer or checkpoint.")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder))
    except Exception as error:  # of many types, by what is wrong with the files
        raise UserError(f"the tokenizer in {folder} can't be loaded ({' '.join(str(error).split())}).") from error
