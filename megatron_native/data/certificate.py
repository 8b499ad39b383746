"""The certificate of a fast tokenizer engine: a differential run against the reference, before it is trusted.

`fastokens` encodes twenty times as fast as `tokenizers` and is a younger program. Before it encodes a corpus, both encode
a few thousand texts chosen to be difficult; only where every id agrees is the fast one used, and the manifest says what
was compared. On any difference, or where the fast engine can't load the tokenizer, `tokenizers` encodes and says why.
"""

from __future__ import annotations

import hashlib
import random
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Encode = Callable[[Sequence[str]], list[NDArray[Any]]]
"""Texts to the ids of each, special tokens as ordinary text."""
_SEED = 20260
_NOISE_TEXTS = 1500
_SHOWN_IDS = 20

_PROSE = [
    "تقع المكتبة العامة في وسط المدينة القديمة، وهي تضم آلاف المخطوطات التي جمعها العلماء عبر القرون.",
    "قال المدير: «سنبدأ العمل غدا إن شاء الله»؛ فهل يكتمل البناء قبل الشتاء؟ نعم!",
    "إِنَّ الْعِلْمَ نُورٌ يُضِيءُ الطَّرِيقَ، وَالْجَهْلُ ظَلَامٌ لَا يَهْتَدِي فِيهِ أَحَدٌ.",
    "وَمِنْ ثَمَّ كَانَ لِكُلِّ شَيْءٍ أَوَانُهُ؛ قالَ ﷺ، واللّٰهُ أعلمُ ـــــ كـــتـــاب",
    "بلغ السعر ٩٬٠٩٨٫٢٧ ريالا في ٢٠١٥/٧/٢١ (أي 9,098.27) بزيادة ٪٣٫٥ أو 3.5%.",
    "ﻻ ﻷ ﷲ ﷺ ﻣﺤﻤﺪ ﺍﻟﻜﺘﺎﺏ ﹰ ﻼ ﯾﮏ ﭘﺪﺭ",
    "یہ اردو کا جملہ ہے اور این یک جملهٔ فارسی است، ئەمە کوردییە.",
    "The committee's 3 reports (2015–2017) weren't late: they'll arrive at 10:45, I'm told.",
    "def add(a, b):\n\treturn a + b  # جمع عددين\n\n\n    if x_1 >= 0x1F and y != '':\r\n        print(f\"{x}\")",
    "https://example.org/خبر?id=12&lang=ar#الأعلى  user@example.com  @حساب #وسم_طويل",
    "中文文本和日本語のテキスト、한국어 문장. ทดสอบภาษาไทย नमस्ते दुनिया",
    "👨‍👩‍👧‍👦 👍🏽 🇸🇦 ❤️ 🕌 ☪︎ 1️⃣ ‼️",
    "e\u0301 é ا\u0653 آ ا\u0654 أ و\u0654 ؤ A\u030a Å ﬁ ½ ² ™ №",
    "\u200fنص\u200e مع\u200b محارف\u200c خفية\u200d و\u202aاتجاهات\u202c \ufeff\u2066هنا\u2069\u061c\u00ad",
    "ࢠ ࢡ ࢢ ࡰ ࢎ ࣔ ࣰ ࣿ ݐ ݭ ݿ ۖۗۘۙۚۛۜ ۞ ۝ ۩ ٱ ٰ",
    "a" * 300 + " " + "ا" * 300 + " " + "هههههههههههههههههههههههه " * 5,
    "كتاب" * 2000, "َُّ" * 500, " " * 3000, "\n" * 999, "\t \n" * 700, "١٢٣" * 400 + "0" * 1000, "ـ" * 700, "!" * 600,
    " ", "  ", "\n", "\n\n\n", "\t\t", "\r\n\r\n ", " \n \n ", "   بداية", "نهاية   ", "كلمة     كلمة\t\tكلمة", "", "ا",
    "َ", ".", "٠",
]  # fmt: skip
_RANGES = [
    (0x20, 0x7E), (0xA0, 0xFF), (0x100, 0x24F), (0x300, 0x36F), (0x370, 0x52F), (0x5D0, 0x5EA), (0x600, 0x6FF), (0x750, 0x77F),
    (0x860, 0x8FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x2000, 0x206F), (0x20A0, 0x20CF), (0x2150, 0x218F), (0x2600, 0x27BF),
    (0x3000, 0x30FF), (0x4E00, 0x4FFF), (0xAC00, 0xACFF), (0xE000, 0xE07F), (0xFB50, 0xFDFF), (0xFE00, 0xFEFF), (0xFF00,
    0xFFEF),
    (0x10E60, 0x10EFF), (0x1EE00, 0x1EEFF), (0x1F300, 0x1F6FF), (0x1F900, 0x1F9FF), (0x20000, 0x200FF), (0x10FF00, 0x10FFFF),
]  # fmt: skip
_WHITE = " \n\t\r\u00a0\u3000\u200b"


@dataclass(frozen=True)
class Certificate:
    """What a differential run found.

    Attributes:
        engine: the engine examined.
        version: its version, "" where it isn't installed.
        equal: whether every id agreed.
        texts: texts compared.
        text_bytes: their UTF-8 bytes.
        texts_sha256: over all texts, in order.
        reason: why the engine is not used, "" when it is.
    """

    engine: str
    version: str
    equal: bool
    texts: int
    text_bytes: int
    texts_sha256: str
    reason: str

    def as_json(self) -> dict[str, Any]:
        """For a manifest."""
        return asdict(self)


def difficult_texts(added_tokens: Iterable[str]) -> list[str]:
    """The texts of the differential run: prose and its normal forms, added tokens in it, seeded noise over many scripts.

    The last one is all the others joined, since engines cut long texts into chunks.
    """
    generator = random.Random(_SEED)
    texts = list(_PROSE)
    texts += [unicodedata.normalize(form, text) for text in _PROSE[:14] for form in ("NFC", "NFD", "NFKD")]
    for token in added_tokens:
        texts += [token, f"نص {token} نص", f"x{token}{token[:-1]}{token[1:]}y", f" \n{token}  \n{token.upper()}"]
    letters = [chr(code) for code in range(0x621, 0x64B)]
    marks = [chr(code) for code in (*range(0x64B, 0x660), 0x670, 0x640)]
    for _ in range(400):  # words with marks anywhere, in any order and number
        words = [
            "".join(
                generator.choice(letters) + "".join(generator.choices(marks, k=generator.randrange(4)))
                for _ in range(size)
            )
            for size in generator.choices(range(1, 12), k=generator.randrange(1, 30))
        ]
        texts.append("".join(word + generator.choice([" ", " ", "  ", "، ", ".\n", "؟ ", "-", ""]) for word in words))
    for _ in range(_NOISE_TEXTS):
        low, high = generator.choice(_RANGES)
        other_low, other_high = generator.choice(_RANGES)
        characters = []
        for _ in range(generator.randrange(1, 80)):
            kind = generator.random()
            if kind < 0.15:
                characters.append(generator.choice(_WHITE))
            elif kind < 0.75:
                characters.append(chr(generator.randint(low, high)))
            else:
                characters.append(chr(generator.randint(other_low, other_high)))
        texts.append("".join(characters))
    return [*texts, "".join(texts)]


def examine(
    engine: str,
    version: str,
    fast: Encode,
    reference: Encode,
    added_tokens: Iterable[str],
    sample: Sequence[str] = (),
) -> Certificate:
    """Encode the difficult texts, and a sample of the user's own, with both, and compare every id.

    Args:
        engine: the fast engine's name.
        version: its version.
        fast: encodes with it.
        reference: encodes with what it must equal.
        added_tokens: the spellings of the tokenizer's added tokens, special or not.
        sample: further texts.
    """
    texts = [*difficult_texts(added_tokens), *sample]
    digest, size = hashlib.sha256(), 0
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(content + b"\0")
        size += len(content)
    reason = ""
    try:
        found = fast(texts)
    except BaseException as error:  # engines raise types of their own; a panic in Rust is not even an Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        reason = f"it can't encode: {' '.join(str(error).split())[:200]}"
    else:
        for text, ours, theirs in zip(texts, found, reference(texts), strict=True):
            if not np.array_equal(ours, theirs):
                shown = [found[:_SHOWN_IDS].tolist() for found in (ours, theirs)]
                reason = f"{text[:80]!r} gives {shown[0]} where tokenizers gives {shown[1]}"
                break
    return Certificate(engine, version, not reason, len(texts), size, digest.hexdigest(), reason)


def not_usable(engine: str, version: str, reason: str) -> Certificate:
    """The certificate of an engine that could not even be tried."""
    return Certificate(engine, version, False, 0, 0, "", reason)
