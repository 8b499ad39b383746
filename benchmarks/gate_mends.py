"""Good rewrites of real news from a seed, which gates are to let through: what careless writing becomes when it is mended."""

from __future__ import annotations

import random
import re

import gate_templates as templates
from gate_news import LETTERS, TO_WESTERN, Bank, Maker, sentences

_TO_EASTERN = str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")
_MARKS = "\u064e\u064f\u0650\u0651\u0652"


def unchanged(rng: random.Random, text: str, bank: Bank) -> tuple[str, str, str]:
    """Nothing to do."""
    return "", text, text


def punctuation(rng: random.Random, text: str, bank: Bank) -> tuple[str, str, str]:
    """Latin commas, doubled signs and blanks before signs mended."""
    bad = text
    for good, others in (
        ("،", [",", " ,", " ، ", ",,"]),
        (".", [" .", "..", " . "]),
        ("؟", ["?", " ؟", "؟؟؟"]),
        ("؛", [";"]),
    ):
        bad = "".join(rng.choice(others) if c == good and rng.random() < 0.6 else c for c in bad)
    return "", re.sub(r"(\d) ?[.,] ?(\d)", lambda m: m.group().replace(" ", ""), bad), _numbers_as(text, bad)


def _numbers_as(text: str, bad: str) -> str:
    return text if re.findall(r"\d+", text) == re.findall(r"\d+", bad) else bad


def spacing(rng: random.Random, text: str, bank: Bank) -> tuple[str, str, str]:
    """Runs of blanks mended."""
    return "", "".join(c * rng.randint(2, 4) if c == " " and rng.random() < 0.2 else c for c in text), text


def hamza(rng: random.Random, text: str, bank: Bank) -> tuple[str, str, str]:
    """Hamza, ta marbuta and alef maqsura that a careless writer left out."""
    table = {"أ": "ا", "إ": "ا", "آ": "ا", "ة": "ه", "ى": "ي"}
    share = rng.choice([0.2, 0.6, 1.0])
    return "", "".join(table[c] if c in table and rng.random() < share else c for c in text), text


def digits(rng: random.Random, text: str, bank: Bank) -> tuple[str, str, str] | None:
    """Digits of the other set."""
    if not re.search(r"[0-9٠-٩]", text):
        return None
    return "", text, text.translate(_TO_EASTERN if re.search("[0-9]", text) else TO_WESTERN)


def marks(rng: random.Random, text: str, bank: Bank) -> tuple[str, str, str]:
    """Tatweel and stray vowel signs taken out."""
    pieces = []
    for place, c in enumerate(text):
        pieces.append(c)
        if c in LETTERS:
            inside = place + 1 < len(text) and text[place + 1] in LETTERS
            if rng.random() < 0.06 and inside and c not in "ادذرزو":
                pieces.append("ـ" * rng.randint(1, 3))
            elif rng.random() < 0.1:
                pieces.append(rng.choice(_MARKS))
    return "", "".join(pieces), text


def advertisement(rng: random.Random, text: str, bank: Bank) -> tuple[str, str, str]:
    """A line of advertising taken out."""
    line = rng.choice(bank.of(templates.ADVERTISEMENTS))
    parts = sentences(text)
    place = rng.choice([0, len(parts), rng.randint(0, len(parts))])
    glue = rng.choice([" ", "\n"])
    pieces = [part if part[-1] in '.!؟?…:»"' else part + "." for part in parts]
    return line, glue.join([*pieces[:place], line, *pieces[place:]]), glue.join(pieces)


def broken_lines(rng: random.Random, text: str, bank: Bank) -> tuple[str, str, str]:
    """Lines that were broken at a width joined."""
    width, lines, line = rng.randint(25, 60), [], ""
    for word in text.split():
        if line and len(line) + len(word) > width:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return "", "\n".join([*lines, line]), " ".join(text.split())


def synonyms(rng: random.Random, text: str, bank: Bank) -> tuple[str, str, str] | None:
    """One to three words for others of the same meaning."""
    if re.search('[«"“]', text):
        return None  # a quotation is not to be reworded
    entries = [pair for pair in bank.of(templates.SYNONYMS) if re.search(rf"(?<!\w){pair[0]}(?!\w)", text)]
    if not entries:
        return None
    new = text
    for old, other in rng.sample(entries, min(len(entries), rng.randint(1, 3))):
        new = re.sub(rf"(?<!\w){old}(?!\w)", other, new, count=1)
    return "", text, new


def grammar(rng: random.Random, text: str, bank: Bank) -> tuple[str, str, str] | None:
    """Light mistakes of grammar mended: endings of the plural, accusative alef, إن and أن, هذا and هذه."""
    if re.search('[«"“]', text):
        return None
    words, changed = text.split(" "), 0
    for place, word in enumerate(words):
        if rng.random() > 0.5 or word in templates.PLACES:
            continue
        if re.fullmatch(r"ال[\u0621-\u064a]{3,}ون", word) or re.fullmatch(r"ال[\u0621-\u064a]{3,}ين", word):
            words[place] = word[:-2] + ("ين" if word.endswith("ون") else "ون")
        elif word in ("هذا", "هذه", "إن", "أن", "الذي", "التي"):
            pairs = {"هذا": "هذه", "هذه": "هذا", "إن": "أن", "أن": "إن", "الذي": "التي", "التي": "الذي"}
            words[place] = pairs[word]
        elif re.fullmatch(r"[\u0621-\u064a]{4,}ا", word) and bank.words[word[:-1]] > bank.words[word]:
            words[place] = word[:-1]
        else:
            continue
        changed += 1
    return ("", " ".join(words), text) if changed else None


def markup(rng: random.Random, text: str, bank: Bank) -> tuple[str, str, str]:
    """Tags, entities and reference numbers taken out."""
    words = text.split(" ")
    for place in rng.sample(range(len(words)), min(4, len(words))):
        mark = rng.choice(["<b>{}</b>", "{}&nbsp;", '<span class="x1">{}</span>', "{}[3]", "{}<br/>", "&quot;{}&quot;"])
        if not re.search(r"\d", words[place]):
            words[place] = mark.format(words[place])
    return "", f"<p>{' '.join(words)}</p>", text


GOOD: dict[str, Maker] = {
    maker.__name__: maker
    for maker in (
        unchanged, punctuation, spacing, hamza, digits, marks, advertisement, broken_lines, synonyms, grammar, markup,
    )
}  # fmt: skip
