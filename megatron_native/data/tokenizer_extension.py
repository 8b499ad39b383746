"""New tokens for a byte-level BPE tokenizer (LLaMA 3, Qwen, SmolLM): as merges after all old ones.

A token is not put into `added_tokens`: those are cut out of the text before anything else, in the middle of longer words
too, or, with `single_word`, at boundaries that know nothing of Arabic marks; and a leading space can't be part of one.
Instead each token becomes an entry of the BPE itself, reached by merging its sub-tokens from left to right (bytes of one
character first). The new merges come last, so a text is first encoded as before, and only then are new tokens put
together. It follows that

* a piece of text in which no two neighbours are joined by a new merge keeps its ids, every one;
* every new token is what its own text becomes, and later ones don't take that from it.

A token of more than two sub-tokens needs what stands between as tokens too (its parts): each merge gives a token. A list
in which every token is a join of two earlier ones, as `data/token_proposal.py` makes, needs none.

Special tokens keep their ids: a tokenizer.json does not fix those of added tokens that its BPE lacks (they are counted from
the size of the BPE's vocabulary), so they are entered there first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from megatron_native.errors import UserError

TOKENIZER_JSON = "tokenizer.json"
STALE_FILES = ("tokenizer.model", "qwen.tiktoken")
"""Files that hold the old vocabulary in a form that is not written here; an extended folder leaves them out."""
MAX_TOKEN_BYTES = 256


@dataclass(frozen=True)
class NewToken:
    """One entry that the vocabulary gets."""

    id: int
    text: str | None
    """What it stands for; None for a part that is no whole characters."""
    bpe: str
    """Its spelling in the BPE's alphabet of bytes."""
    sub_tokens: tuple[int, ...]
    """The ids that the old tokenizer made of it."""
    part: bool
    """Not asked for: it stands between a token and its sub-tokens."""


@dataclass
class TokenizerExtension:
    """What becomes of a tokenizer."""

    content: dict[str, Any]
    """The extended tokenizer.json."""
    tokens: list[NewToken]
    """In the order of their ids."""
    merges: list[tuple[str, str]]
    """The new merges, in their order."""
    first_id: int
    """The first new id: one above the old tokenizer's largest."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Tokens of the list that were not added, with the reason."""


def read_token_list(path: Path) -> list[str]:
    """The tokens of a list: of a `.jsonl` file the `token` of every line, else every line as it stands.

    A space at a line's beginning is part of the token: " كتاب" is the word within a sentence, "كتاب" the one at the
    beginning of a line. Empty lines are passed over.

    Raises:
        UserError: the file can't be read, a line of JSON has no token, a token is not fit to be one, or there is none.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--add-tokens {path} can't be read as UTF-8 text ({error}); give a file of tokens.") from error
    tokens: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        line = line.removesuffix("\r")
        if not line.strip():
            continue
        token = _token_of_json(path, number, line) if path.suffix == ".jsonl" else line
        if len(token.encode("utf-8", "surrogatepass")) > MAX_TOKEN_BYTES or not token.strip():
            raise UserError(
                f"{path}, line {number}: a token has at least one character that is no space and at most {MAX_TOKEN_BYTES} "
                "bytes; shorten the line or take it out."
            )
        tokens[token] = None
    if not tokens:
        raise UserError(f"--add-tokens {path} holds no token; write one a line, a leading space being part of it.")
    return list(tokens)


def _token_of_json(path: Path, number: int, line: str) -> str:
    try:
        token = json.loads(line)["token"]
        token.encode("utf-8")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f'{path}, line {number}: a line of a .jsonl list is {{"token": " كتاب"}}; correct it.'
        ) from None
    return str(token)


def extend_tokenizer(path: Path, tokens: Sequence[str]) -> TokenizerExtension:
    """The tokenizer.json at `path` with `tokens` added, in their order.

    Raises:
        UserError: a tokenizer that is no byte-level BPE, a token that the tokenizer cuts in two before its BPE (a word and
            its mark, two words, a digit beside a letter), or a special token that would be read otherwise.
    """
    content, old = read_byte_level_bpe(path)
    vocabulary: dict[str, int] = content["model"]["vocab"]
    ids = old.get_vocab(with_added_tokens=True)
    _enter_added_tokens(content, ids)
    extension = TokenizerExtension(content, [], [], max(ids.values()) + 1)
    new_ranks: dict[tuple[str, str], int] = {}
    for token in tokens:
        spelling, reason = _spelling(old, token)
        if reason:
            raise UserError(
                f"the token {token!r} can't be added: {reason}. Take it out of the list, or write it otherwise."
            )
        if spelling in vocabulary:
            extension.skipped[token] = "it is a token already"
            continue
        base = [piece.value for piece in old.model.tokenize(spelling)]
        if "".join(base) != spelling:
            raise UserError(f"{path}: its BPE has no tokens for some bytes of {token!r}, so none can be joined to it.")
        symbols = _merged(base, new_ranks)
        while len(symbols) > 1:
            at = _next_join(symbols)
            pair = (symbols[at], symbols[at + 1])
            joined = "".join(pair)
            if joined not in vocabulary:
                sub_tokens = tuple(piece.id for piece in old.model.tokenize(joined))
                vocabulary[joined] = extension.first_id + len(extension.tokens)
                extension.tokens.append(
                    NewToken(vocabulary[joined], text_of(joined), joined, sub_tokens, part=joined != spelling)
                )
            new_ranks[pair] = len(extension.merges)
            extension.merges.append(pair)
            symbols = _merged(symbols, new_ranks)
    as_pairs = not content["model"]["merges"] or not isinstance(content["model"]["merges"][0], str)
    content["model"]["merges"] += [list(pair) if as_pairs else " ".join(pair) for pair in extension.merges]
    _check(old, extension, path)
    return extension


def read_byte_level_bpe(path: Path) -> tuple[dict[str, Any], Any]:
    """A tokenizer.json that tokens can be added to: its contents, and the `tokenizers` library's tokenizer.

    Raises:
        UserError: it can't be read, or is no plain byte-level BPE.
    """
    from tokenizers import Tokenizer

    try:
        text = path.read_text(encoding="utf-8")
        content, tokenizer = json.loads(text), Tokenizer.from_str(text)
    except Exception as error:  # the library raises a bare Exception for a file it can't read
        raise UserError(f"{path} is not a readable tokenizer.json ({error}).") from error
    _check_kind(path, content)
    return content, tokenizer


def _check_kind(path: Path, content: Mapping[str, Any]) -> None:
    model = content.get("model") or {}
    kind = model.get("type", "BPE" if "merges" in model else None)
    odd = [
        name
        for name in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "dropout")
        if model.get(name)
    ]
    byte_level = any(part.get("type") == "ByteLevel" for part in _parts(content.get("pre_tokenizer")))
    if kind != "BPE" or odd or not byte_level:
        raise UserError(
            f"{path} is no plain byte-level BPE ({kind}{', with ' + ', '.join(odd) if odd else ''}), as LLaMA 3 and Qwen have: "
            "tokens can't be added to it here. Extend a model with such a tokenizer."
        )


def _parts(component: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """A pre-tokenizer and those inside it."""
    if component:
        yield component
        for part in component.get("pretokenizers", ()):
            yield from _parts(part)


def _enter_added_tokens(content: dict[str, Any], ids: Mapping[str, int]) -> None:
    """Give added tokens that the BPE's vocabulary lacks their place there, which is what keeps their ids."""
    for added in content.get("added_tokens") or ():
        content["model"]["vocab"].setdefault(added["content"], ids[added["content"]])


def _spelling(tokenizer: Any, token: str) -> tuple[str, str]:
    """A token in the BPE's alphabet, and why it can't be a token ("" where it can)."""
    text = token if tokenizer.normalizer is None else tokenizer.normalizer.normalize_str(token)
    if text != token:
        return "", f"the tokenizer writes it {text!r} before it encodes"
    pieces = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(token)]
    if len(pieces) != 1:
        shown = " + ".join(repr(text_of(piece) or piece) for piece in pieces)
        return "", f"the tokenizer cuts it into {shown} before its BPE, which joins nothing across such a cut"
    if text_of(pieces[0]) != token:
        return "", f"the tokenizer reads it as {text_of(pieces[0])!r}"
    return pieces[0], ""


def _merged(symbols: Sequence[str], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """What the new merges make of old tokens: BPE, lowest rank first, leftmost of its kind first."""
    result = list(symbols)
    while len(result) > 1:
        best = min(((ranks[pair], at) for at, pair in enumerate(pairwise(result)) if pair in ranks), default=None)
        if best is None:
            break
        at = best[1]
        result[at : at + 2] = [result[at] + result[at + 1]]
    return result


def _next_join(symbols: Sequence[str]) -> int:
    """Which symbol is joined to its right neighbour: the first that is no whole characters, or else the first."""
    return next((at for at, symbol in enumerate(symbols[:-1]) if text_of(symbol) is None), 0)


def _alphabet() -> dict[str, int]:
    """Byte-level BPE's character for each byte (GPT-2): printable ones stand for themselves, the others follow 256."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _alphabet()


def text_of(spelling: str) -> str | None:
    """The text of a spelling in the alphabet of bytes; None where it ends inside a character."""
    try:
        return bytes(_BYTES[character] for character in spelling).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return None


def _check(old: Any, extension: TokenizerExtension, path: Path) -> None:
    """Raise unless the real tokenizer does what this module says of it."""
    from tokenizers import Tokenizer

    new = Tokenizer.from_str(json.dumps(extension.content))
    before, after = old.get_vocab(with_added_tokens=True), new.get_vocab(with_added_tokens=True)
    moved = [token for token, index in before.items() if after.get(token) != index]
    if moved:
        raise RuntimeError(f"{path}: {len(moved)} old tokens would change their ids, such as {moved[0]!r}")
    old.encode_special_tokens = new.encode_special_tokens = True
    added = [token["content"] for token in extension.content.get("added_tokens") or ()]
    for spelling in added:
        if old.encode(spelling, add_special_tokens=False).ids != new.encode(spelling, add_special_tokens=False).ids:
            raise UserError(
                f"{path}: the spelling of its special token {spelling!r} in a text would be encoded otherwise after the "
                "extension. Take the new tokens that occur in it out of the list."
            )
    for token in extension.tokens:
        if token.text is None:
            continue
        found = new.encode(token.text, add_special_tokens=False).ids
        if (not token.part and found != [token.id]) or new.decode([token.id], skip_special_tokens=False) != token.text:
            raise RuntimeError(f"{path}: the new token {token.text!r} ({token.id}) is encoded as {found}")


def write_extension(source: Path, target: Path, extension: TokenizerExtension) -> list[str]:
    """Write the tokenizer's files that change into `target`, for those that the folder `source` has.

    Returns:
        The files of `source` that hold the old vocabulary and can't be written: they must not travel along.
    """
    text = json.dumps(extension.content, ensure_ascii=False, indent=2)
    (target / TOKENIZER_JSON).write_text(text, encoding="utf-8")
    if (source / "vocab.json").is_file():
        vocabulary = json.loads((source / "vocab.json").read_text(encoding="utf-8"))
        vocabulary |= {token.bpe: token.id for token in extension.tokens}
        (target / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    if (source / "merges.txt").is_file():
        merges = (source / "merges.txt").read_text(encoding="utf-8").rstrip("\n")
        lines = "".join(f"\n{left} {right}" for left, right in extension.merges)
        (target / "merges.txt").write_text(merges + lines + "\n", encoding="utf-8")
    return [path.name for path in sorted(source.iterdir()) if path.name in STALE_FILES or path.suffix == ".tiktoken"]


def list_digest(tokens: Sequence[str]) -> str:
    """sha256 over a list of tokens, in order."""
    return hashlib.sha256("\n".join(tokens).encode()).hexdigest()
