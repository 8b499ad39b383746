"""Damaged rewrites of real news, from a seed: what the gates are measured on, beside the good ones of `gate_mends.py`.

Independent of the gates: nothing of `megatron_native/alignment/gates` is read here.
"""

from __future__ import annotations

import random
import re

import gate_templates as templates
from gate_mends import GOOD, hamza, spacing
from gate_news import LETTERS, PERSON, TO_WESTERN, WORD, Bank, Case, Maker, sentences

_PLACE = re.compile(rf"(?<!\w)[وفبل]?({'|'.join(templates.PLACES)})(?!\w)")


def _replace_word(text: str, found: re.Match[str], by: str, group: int = 0) -> str:
    return text[: found.start(group)] + by + text[found.end(group) :]


def number_changed(rng: random.Random, text: str, bank: Bank) -> tuple[str, str, str] | None:
    """A digit changed, two swapped, one added or taken away."""
    found = list(re.finditer(r"[0-9٠-٩]+", text))
    if not found:
        return None
    chosen = rng.choice(found)
    number = chosen.group()
    kind = rng.choice(["digit", "swap", "longer", "shorter"])
    place = rng.randrange(len(number))
    if kind == "swap" and len(number) > 1:
        place = rng.randrange(len(number) - 1)
        new = number[:place] + number[place + 1] + number[place] + number[place + 2 :]
    elif kind == "longer":
        new = number + number[-1]
    elif kind == "shorter" and len(number) > 1:
        new = number[:-1]
    else:
        kind = "digit"
        others = [c for c in ("0123456789" if number[place] in "0123456789" else "٠١٢٣٤٥٦٧٨٩") if c != number[place]]
        new = number[:place] + rng.choice(others) + number[place + 1 :]
    if new.translate(TO_WESTERN).lstrip("0") == number.translate(TO_WESTERN).lstrip("0"):
        return None
    return kind, text, _replace_word(text, chosen, new)


def name_changed(rng: random.Random, text: str, bank: Bank) -> tuple[str, str, str] | None:
    """A given name, a family name or a place for another of the corpus, once or wherever it stands."""
    choices = [("given", m, 1, bank.given) for m in PERSON.finditer(text)]
    choices += [("family", m, 2, bank.families) for m in PERSON.finditer(text)]
    choices += [("place", m, 1, bank.places) for m in _PLACE.finditer(text)]
    if not choices:
        return None
    how, found, group, names = rng.choice(choices)
    old, new = found.group(group), rng.choice(names)
    if new == old or new in text:
        return None
    if rng.random() < 0.5:
        return how, text, re.sub(rf"\b{re.escape(old)}\b", new, text)
    return how, text, _replace_word(text, found, new, group)


def invented(rng: random.Random, text: str, bank: Bank) -> tuple[str, str, str]:
    """A sentence of another article, or one made from a template, put in."""
    if rng.random() < 0.5:
        how, new = "another article", rng.choice(bank.sentences)
    else:
        how, new = "template", rng.choice(bank.of(templates.INVENTED)).format(n=rng.choice([12, 35, 120, 450, 800]))
    parts = sentences(text)
    place = rng.randint(1, len(parts))
    return how, text, " ".join([*parts[:place], new, *parts[place:]])


def cut_off(rng: random.Random, text: str, bank: Bank) -> tuple[str, str, str] | None:
    """The end is missing: from a word on, inside a word, or the last sentence."""
    words = text.split()
    how = rng.choice(["word", "inside a word", "sentence"])
    if how == "sentence":
        parts = sentences(text)
        if len(parts) < 2 or len(parts[-1].split()) < 4:
            return None
        return how, text, text[: text.rindex(parts[-1])].rstrip()
    keep = rng.randint(len(words) // 2, len(words) - 3)
    left = " ".join(words[:keep])
    if how == "inside a word":
        if len(words[keep]) < 4:
            return None
        left += " " + words[keep][: rng.randint(2, len(words[keep]) - 2)]
    return how, text, left


def summarised(rng: random.Random, text: str, bank: Bank) -> tuple[str, str, str] | None:
    """Sentences dropped, a third of the words or more; or only the beginning of every sentence kept."""
    parts = sentences(text)
    total = len(text.split())
    if len(parts) >= 2 and rng.random() < 0.7:
        order = rng.sample(range(len(parts)), len(parts))
        dropped: set[int] = set()
        while len(dropped) < len(parts) - 1 and sum(len(parts[i].split()) for i in dropped) < total / 3:
            dropped.add(order[len(dropped)])
        if sum(len(parts[i].split()) for i in dropped) < total / 5:
            return None
        return "sentences dropped", text, " ".join(part for i, part in enumerate(parts) if i not in dropped)
    kept = []
    for part in parts:
        words = part.split()
        kept.append(" ".join(words[: max(4, len(words) // 2)]).rstrip("،,.") + ".")
    short = " ".join(kept)
    return ("sentences shortened", text, short) if len(short.split()) < 0.8 * total else None


def translated(rng: random.Random, text: str, bank: Bank) -> tuple[str, str, str] | None:
    """Real English or French in the place of all, of one sentence, or words of it one by one."""
    language = rng.randrange(2)
    real = bank.english if language == 0 else bank.of(templates.FRENCH)
    how = rng.choice(["whole", "sentence", "words"])
    parts = sentences(text)
    if how == "whole":
        return how, text, " ".join(rng.sample(real, min(len(real), max(2, len(parts)))))
    if how == "sentence" and len(parts) > 1:
        place = rng.randrange(len(parts))
        return how, text, " ".join([*parts[:place], rng.choice(real), *parts[place + 1 :]])
    words = text.split(" ")
    places = [i for i, word in enumerate(words) if word in templates.TRANSLATIONS]
    if len(places) < 2:
        return None
    for place in rng.sample(places, min(len(places), rng.randint(2, 6))):
        words[place] = templates.TRANSLATIONS[words[place]][language]
    return "words", text, " ".join(words)


def dialect_changed(rng: random.Random, text: str, bank: Bank) -> tuple[str, str, str] | None:
    """Words of a dialect for words of the standard language; verbs in ي get the ب of the dialects that have it."""
    how = rng.choice(sorted(templates.DIALECTS))
    table = templates.DIALECTS[how]
    words = text.split(" ")
    changed = 0
    for place, word in enumerate(words):
        if word in table and table[word] != word:
            words[place], changed = table[word], changed + 1
        elif how != "gulf" and re.fullmatch(r"ي[\u0621-\u064a]{3,6}", word) and rng.random() < 0.7:
            words[place], changed = "ب" + word, changed + 1
    return (how, text, " ".join(words)) if changed >= 3 else None


def looped(rng: random.Random, text: str, bank: Bank) -> tuple[str, str, str]:
    """A sentence, a phrase, a word, or all of it again and again."""
    how = rng.choice(["sentence", "phrase", "word", "whole"])
    words = [word for word in text.split() if any(c.isalpha() for c in word)]
    if how == "sentence":
        parts = sentences(text)
        place = rng.randrange(len(parts))
        return how, text, " ".join([*parts[: place + 1], *[parts[place]] * rng.randint(2, 6), *parts[place + 1 :]])
    if how == "whole":
        return how, text, "\n".join([text] * rng.randint(2, 4))
    size = 1 if how == "word" else rng.randint(2, 6)
    place = rng.randint(size, len(words))
    again = words[place - size : place] * rng.randint(5, 25)
    rest = words[place:] if rng.random() < 0.3 else []
    return how, text, " ".join([*words[:place], *again, *rest])


def scaffold(rng: random.Random, text: str, bank: Bank) -> tuple[str, str, str]:
    """What a model says around its answer."""
    template = rng.choice(bank.of(templates.SCAFFOLDS))
    return template[:30], text, template.format(text)


def refused(rng: random.Random, text: str, bank: Bank) -> tuple[str, str, str]:
    """A refusal instead of the text, or after its beginning."""
    refusal = rng.choice(bank.of(templates.REFUSALS))
    if rng.random() < 0.6:
        return "whole", text, refusal
    words = text.split()
    return "after a beginning", text, " ".join([*words[: rng.randint(3, len(words) - 2)], refusal])


def verse_altered(rng: random.Random, text: str, bank: Bank) -> tuple[str, str, str] | None:
    """A verse is put into the news; the rewrite has it with a word changed, dropped, swapped, added, or a letter wrong."""
    verse = rng.choice(bank.verses)
    quoted = rng.choice(["قال تعالى: ﴿{}﴾.", "قال الله تعالى: ﴿{}﴾.", "وفي التنزيل: «{}».", "قال تعالى: {}."])
    parts = sentences(text)
    place = rng.randint(0, len(parts))
    words = verse.split()
    how = rng.choice(["word", "dropped", "swapped", "added", "letter", "half"])
    at = rng.randrange(len(words) - 1)
    if how == "word":
        words[at] = rng.choice(rng.choice(bank.verses).split())
    elif how == "dropped":
        del words[at]
    elif how == "swapped":
        words[at], words[at + 1] = words[at + 1], words[at]
    elif how == "added":
        words.insert(at + 1, rng.choice(rng.choice(bank.verses).split()))
    elif how == "half":
        words = words[: max(2, len(words) // 2)]
    else:
        letters = [i for i, c in enumerate(words[at]) if c in LETTERS and c not in "اوي"]
        if not letters:
            return None
        spot = rng.choice(letters)
        words[at] = words[at][:spot] + rng.choice([c for c in LETTERS if c != words[at][spot]]) + words[at][spot + 1 :]
    new = " ".join(words)
    if re.sub(r"[^\u0621-\u064a]", "", new) == re.sub(r"[^\u0621-\u064a]", "", verse):
        return None
    join = [" ".join([*parts[:place], quoted.format(v), *parts[place:]]) for v in (verse, new)]
    return how, join[0], join[1]


def url_or_quotation_changed(rng: random.Random, text: str, bank: Bank) -> tuple[str, str, str] | None:
    """An address put into the news and altered, or a quotation of the news altered."""
    quotations = [m for m in re.finditer(r"[«\"“]([^«»\"“”\n]{6,300})[»\"”]", text) if len(m.group(1).split()) >= 2]
    if quotations and rng.random() < 0.5:
        chosen = rng.choice(quotations)
        words = chosen.group(1).split()
        at = rng.randrange(len(words))
        how = rng.choice(["quotation: word", "quotation: dropped", "quotation: swapped"])
        if how.endswith("word"):
            words[at] = rng.choice([w for w, c in bank.words.most_common(1500) if len(w) > 3])
        elif how.endswith("dropped"):
            del words[at]
        else:
            at = min(at, len(words) - 2)
            words[at], words[at + 1] = words[at + 1], words[at]
        new = " ".join(words)
        return None if new == chosen.group(1) else (how, text, _replace_word(text, chosen, new, 1))
    lead, pattern = rng.choice(templates.ADDRESSES)
    address = pattern.format(n=rng.randint(100, 9999))
    how = rng.choice(["host", "letter", "shorter", "dropped"])
    if how == "host":
        new = address.replace("example", rng.choice(["exampel", "sample", "examples", "example2"]))
    elif how == "letter":
        spot = rng.choice([i for i, c in enumerate(address) if c.isalnum()])
        new = address[:spot] + rng.choice("bcdfgkmz7") + address[spot + 1 :]
    elif how == "shorter":
        new = address[: -rng.randint(2, 4)]
    else:
        new = ""
    if new == address:
        return None
    parts = sentences(text)
    place = rng.randint(0, len(parts))
    join = [" ".join([*parts[:place], lead.format(a), *parts[place:]]) for a in (address, new)]
    return f"address: {how}", join[0], join[1]


def injection_obeyed(rng: random.Random, text: str, bank: Bank) -> tuple[str, str, str] | None:
    """An order put into the news is carried out."""
    order, answer, how = rng.choice(bank.of(templates.INSTRUCTIONS))
    parts = sentences(text)
    if how == "rest" and len(parts) < 2:
        return None
    place = rng.randint(1, max(1, len(parts) - 1)) if how == "rest" else rng.randint(0, len(parts))
    origin = " ".join([*parts[:place], order, *parts[place:]])
    if how == "only":
        return how, origin, answer
    return how, origin, " ".join(parts[:place] if how == "rest" else [*parts, answer])


def misspelled(rng: random.Random, text: str, bank: Bank) -> tuple[str, str, str] | None:
    """Three words or more that no newspaper has: letters doubled, left out, swapped, wrong, or of another word."""
    words = text.split(" ")
    places = [i for i, word in enumerate(words) if WORD.fullmatch(word) and len(word) >= 4]
    if len(places) < 6:
        return None
    chosen = rng.sample(places, rng.randint(3, 5))
    for place in chosen:
        word = words[place]
        for _ in range(20):
            at = rng.randrange(1, len(word) - 1)
            new = {
                "double": word[: at + 1] + word[at:], "leave": word[:at] + word[at + 1 :],
                "swap": word[:at] + word[at + 1] + word[at] + word[at + 2 :],
                "wrong": word[:at] + rng.choice(LETTERS) + word[at + 1 :],
            }[rng.choice(["double", "leave", "swap", "wrong"])]  # fmt: skip
            if bank.words[new] == 0:
                words[place] = new
                break
        else:
            return None
    return "letters", text, " ".join(words)


DAMAGE: dict[str, Maker] = {
    maker.__name__: maker
    for maker in (
        number_changed, name_changed, url_or_quotation_changed, invented, summarised, cut_off, translated, dialect_changed,
        looped, scaffold, refused, verse_altered, injection_obeyed, misspelled,
    )
}  # fmt: skip


def cases(bank: Bank, kind: str, count: int, seed: int) -> list[Case]:
    """So many damaged cases of a kind; of `good`, evenly of all its sorts. Half of the damaged ones are mended too."""
    found: list[Case] = []
    makers = list(GOOD.items()) if kind == "good" else [(kind, DAMAGE[kind])]
    rng = random.Random(f"{seed}/{bank.half}/{kind}")
    while len(found) < count:
        how, maker = makers[len(found) % len(makers)]
        text = rng.choice(bank.passages)
        made = maker(rng, text, bank)
        if made is None:
            continue
        told, origin, rewritten = made
        if kind == "good":
            found.append(Case(kind, how, origin, rewritten))
            continue
        if rng.random() < 0.5 and kind not in ("verse_altered", "url_or_quotation_changed"):
            origin = rng.choice((hamza, spacing))(rng, origin, bank)[1]
        if origin != rewritten:
            found.append(Case(kind, told, origin, rewritten))
    return found
