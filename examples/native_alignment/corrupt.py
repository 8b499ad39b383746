"""Known corruptions of clean Arabic, from a seed: what careless writing and crawling do to a text.

    corrupted = corrupt(text, random.Random(7))

Two kinds. `MECHANICAL` noise can be undone by rules without knowing Arabic: markup, notices, stretched words, blanks,
signs. `HASTE` can't: hamza left off, ة written as ه, final ي as ى, letters dropped, doubled or swapped, words run together.
Because the clean text is known, so is how close a rewrite comes to it.
"""

from __future__ import annotations

import html
import random
import re
from collections.abc import Callable

Corruption = Callable[[str, random.Random], str]
_JOINS = "بتثجحخسشصضطظعغفقكلمنهيئ"
_LETTERS = "ابتثجحخدذرزسشصضطظعغفقكلمنهوي"
_NOTICES = (
    "اشترك الآن في نشرتنا البريدية ليصلك كل جديد.",
    "حمّل تطبيقنا المجاني من متجر التطبيقات.",
    "شارك هذا الخبر مع أصدقائك عبر واتساب.",
    "للإعلان على هذه الصفحة اتصل بنا الآن.",
)


def markup(text: str, rng: random.Random) -> str:
    """Tags and entities that were not taken out."""
    words = text.split(" ")
    for place in rng.sample(range(len(words)), min(2, len(words))):
        words[place] = rng.choice(["<b>{}</b>", "{}<br/>", "{}&nbsp;", "<span>{}</span>"]).format(words[place])
    return " ".join(words)


def notice(text: str, rng: random.Random) -> str:
    """A line of the site around the text."""
    line = rng.choice(_NOTICES)
    return f"{line}\n{text}" if rng.random() < 0.5 else f"{text}\n{line}"


def stretched(text: str, rng: random.Random) -> str:
    """Words stretched with tatweel."""
    return "".join(
        letter + "ـ" * rng.randint(1, 4)
        if letter in _JOINS and place + 1 < len(text) and text[place + 1] in _LETTERS and rng.random() < 0.05
        else letter
        for place, letter in enumerate(text)
    )


def signs(text: str, rng: random.Random) -> str:
    """Latin signs for Arabic ones, blanks before them, signs and blanks repeated."""
    table = {"،": [",", " ،", " , "], "؟": ["?", "؟؟"], "؛": [";"], ".": [" .", ".."], " ": [" ", "  ", "   "]}
    return "".join(rng.choice(table[sign]) if sign in table and rng.random() < 0.3 else sign for sign in text)


def hamza(text: str, rng: random.Random) -> str:
    """Alef without its hamza or madda."""
    return re.sub("[أإآ]", lambda found: "ا" if rng.random() < 0.9 else found[0], text)


def endings(text: str, rng: random.Random) -> str:
    """ة as ه and ي as ى at the ends of words."""
    text = re.sub(r"ة(?![\u0621-\u064a])", lambda found: "ه" if rng.random() < 0.9 else found[0], text)
    return re.sub(r"ي(?![\u0621-\u064a])", lambda found: "ى" if rng.random() < 0.9 else found[0], text)


def slips(text: str, rng: random.Random) -> str:
    """A letter dropped, doubled or swapped with the next, in one long word of twenty."""
    words = text.split(" ")
    for place, word in enumerate(words):
        if len(word) < 5 or not re.fullmatch("[\u0621-\u064a]+", word) or rng.random() > 0.05:
            continue
        at = rng.randrange(2, len(word) - 2)
        words[place] = rng.choice(
            [
                word[:at] + word[at + 1 :],
                word[:at] + word[at] + word[at:],
                word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            ]
        )
    return " ".join(words)


def run_together(text: str, rng: random.Random) -> str:
    """Short words written together with the next one."""
    return re.sub(
        r"(?<![\u0621-\u064a])(في|من|على|عن|إلى|الى|أن|ان) (?=[\u0621-\u064a])",
        lambda found: found[1] if rng.random() < 0.25 else found[0], text,
    )  # fmt: skip


MECHANICAL: tuple[Corruption, ...] = (stretched, signs, markup, notice)
HASTE: tuple[Corruption, ...] = (run_together, hamza, endings, slips)


def corrupt(text: str, rng: random.Random, clean_share: float = 0.1) -> str:
    """A corrupted text: each mechanical noise with probability 0.4, all haste or none of it.

    Args:
        text: clean; it must hold no markup.
        rng: decides; the same state gives the same corruption.
        clean_share: probability that the text stays as it is, so that a worker learns to leave text alone.
    """
    if html.unescape(text) != text:
        raise ValueError("the text holds entities, so it isn't clean")
    if rng.random() < clean_share:
        return text
    if rng.random() < 0.85:
        for change in HASTE:
            text = change(text, rng)
    for change in MECHANICAL:
        if rng.random() < 0.4:
            text = change(text, rng)
    return text
