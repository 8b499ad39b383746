"""Personal data masked: e-mail addresses, telephone numbers, IBANs, national ids and payment cards, in any digits.

Numbers are taken only where their form says what they are: a check digit, a country's prefix, or a word before them that
names them. Dates, prices, verses, ISBNs and handles stay. A compiled look at the text says whether anything in it can be
personal at all; most texts cost no more than that.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from megatron_native.corpus.folding import code_points

EMAIL, PHONE, IBAN, NATIONAL_ID, CARD = "[EMAIL]", "[PHONE]", "[IBAN]", "[NATIONAL-ID]", "[CARD]"
_LEAST_DIGITS = 7
_HAS_AT, _HAS_NUMBER = 1, 2

_DIGITS = {chr(zero + value): str(value) for zero in (0x30, 0x660, 0x6F0) for value in range(10)}
_TO_ASCII = {ord(digit): ascii_digit for digit, ascii_digit in _DIGITS.items()} | {0xFF0B: "+"}
_D = "[0-9\u0660-\u0669\u06f0-\u06f9]"
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+@-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}\s?(?:@|\(at\)|\[at\])\s?"
    r"(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9@])"
)
_BETWEEN = r"[ \u00a0./\-\u2010-\u2015()\u200e\u200f\u202a-\u202c]{0,3}"
# A run of digits with single separators, a plus before it or not; what it is its digits say.
_NUMBER = re.compile(
    rf"(?<![\w+.,٫٬/-])(?:\(?\+\)?\s?|\(|\u200e|\u202a)*{_D}(?:{_BETWEEN}{_D}){{6,24}}\+?(?![\w%٪])(?![.,٫٬/:-]{_D})"
)
_IBAN = re.compile(rf"(?<![A-Za-z0-9])[A-Z]{{2}}\s?{_D}{{2}}(?:[ -]?(?:{_D}|[A-Z])){{11,30}}(?![A-Za-z0-9])")
_IBAN_LENGTHS = {
    "AE": 23, "BH": 22, "EG": 29, "IQ": 23, "JO": 30, "KW": 30, "LB": 28, "LY": 25, "MR": 27, "OM": 23, "PS": 29, "QA": 29,
    "SA": 24, "SD": 18, "TN": 24, "DZ": 26, "MA": 28, "YE": 30, "SO": 23, "DJ": 27, "TR": 26, "GB": 22, "DE": 22,
    "FR": 27, "ES": 24,
    "IT": 27, "NL": 18, "BE": 16, "CH": 21, "AT": 20, "SE": 24, "PT": 25, "GR": 27, "CY": 28, "MT": 31, "IE": 22,
    "PL": 28, "PK": 24,
}  # fmt: skip
_PHONE_CUE = re.compile(
    r"(?:هاتف|الهاتف|هواتف|تلفون|تليفون|التلفون|جوال|الجوال|جوالي|موبايل|الموبايل|محمول|المحمول|خلوي|نقال|النقال|"
    r"واتساب|واتس|الواتس|"
    r"فاكس|اتصل|اتصلوا|للاتصال|الاتصال|للتواصل|التواصل|رقمي|tel|phone|mobile|whatsapp|call|fax)"
    r"(?:\s+(?:على|على الرقم|الرقم|رقم|بنا|معنا|number|no|us|at|on))*\W{0,4}$",
    re.IGNORECASE,
)
_ID_CUE = re.compile(
    r"(?:هوية|الهوية|هويته|هويتي|هويتها|القومي|الوطني|الوطنية|المدني|المدنية|إقامة|الإقامة|الاقامة|إقامته|البطاقة|"
    r"بطاقته|national id|iqama|"
    r"civil id|id number|id no)(?:\s+(?:رقم|برقم|هو|هي|الوطنية|الخاص|الخاصة|به|بها|للمواطنة?|للمقيمة?|is))*\W{0,4}$",
    re.IGNORECASE,
)
_CUE_CHARACTERS = 40
# National numbers, without the prefix of the country: what may stand after +966 and its kin, and in local form after 0.
_COUNTRIES = {
    "966": r"(?:5\d{8}|1[1-7]\d{7}|9200\d{5}|800\d{7})", "971": r"(?:5[024-68]\d{7}|[2-4679]\d{7}|800\d{2,9})",
    "20": r"(?:1[0125]\d{8}|2\d{8}|[34568]\d{7,8}|9\d{7,8}|1[35]\d{7})", "965": r"(?:[24569]\d{7}|1\d{6})",
    "974": r"[3-7]\d{7}",
    "973": r"[136-8]\d{7}", "968": r"[279]\d{7}", "967": r"(?:7\d{8}|[1-6]\d{6})", "962": r"(?:7[789]\d{7}|[2356]\d{7})",
    "961": r"(?:3\d{6}|7[0-9]\d{6}|81\d{6}|[145679]\d{6})", "963": r"(?:9\d{8}|[1-5]\d{6,8})",
    "964": r"(?:7[3-9]\d{8}|[1-6]\d{6,8})",
    "970": r"(?:5[69]\d{7}|[2489]\d{7})", "972": r"(?:5\d{8}|[23489]\d{7})", "249": r"(?:9\d{8}|1\d{8})",
    "218": r"(?:9[1-6]\d{7}|[2-8]\d{7,8})",
    "216": r"[2-57-9]\d{7}", "213": r"(?:[567]\d{8}|[2-4]\d{7})", "212": r"[5-8]\d{8}", "222": r"[2-4]\d{7}", "252": r"\d{7,9}",
    "253": r"[27]\d{7}", "269": r"[37]\d{6}", "90": r"[2-5]\d{9}", "98": r"[1-9]\d{9}", "92": r"[2-9]\d{8,9}",
    "44": r"[1-9]\d{8,9}",
    "1": r"[2-9]\d{9}", "33": r"[1-9]\d{8}", "49": r"[1-9]\d{6,11}", "91": r"[6-9]\d{9}", "63": r"[2-9]\d{8,9}",
    "62": r"[2-9]\d{7,11}",
}  # fmt: skip
_INTERNATIONAL = re.compile("(?:" + "|".join(f"{code}0?{number}" for code, number in _COUNTRIES.items()) + ")")
# Mobile numbers whose local form no other number has: Saudi Arabia and the Emirates 05…, Egypt 01…, Iraq 07…, Jordan 07…,
# Maghreb 06/07…, Syria and Sudan 09…, Yemen 07…; Saudi freephone numbers 9200… and 800….
_LOCAL_MOBILE = re.compile(r"(?:05\d{8}|01[0125]\d{8}|07[3-9]\d{8}|07[789]\d{7}|0[67]\d{8}|09\d{8}|9200\d{5}|800\d{7})")
# Visa, Mastercard (both series), Maestro and mada, American Express, Diners, JCB, Discover and UnionPay, at their lengths.
_CARD = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|5[0-8]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}|"
    r"3(?:0[0-5]|[68]\d)\d{11}|35\d{14}|6\d{15,18}"
)


@cache
def _kinds() -> NDArray[np.uint8]:
    """uint8 [code points up to U+FFFF]: 1 a digit, 2 a separator inside numbers, 4 an at sign."""
    table = np.zeros(0x10000, dtype=np.uint8)
    for digit in _DIGITS:
        table[ord(digit)] = 1
    for character in " \u00a0./-\u2010\u2011\u2012\u2013\u2014\u2015()\u200e\u200f\u202a\u202b\u202c":
        table[ord(character)] = 2
    table[ord("@")] = 4
    return table


@numba.njit(cache=True, nogil=True)
def _possible(codes: Any, kinds: Any) -> int:
    """Whether a text has an at sign (or `at` in brackets), and a run of enough digits with few separators between."""
    found, digits, apart = 0, 0, 0
    for place in range(len(codes)):
        code = codes[place]
        kind = kinds[code] if code < 0x10000 else 0
        if kind == 1:
            digits += 1
            apart = 0
            if digits >= _LEAST_DIGITS:
                found |= _HAS_NUMBER
        elif kind == 2 and apart < 4:
            apart += 1
        else:
            digits = 0
            apart = 0
            if kind == 4 or (
                code == 97 and 1 < place < len(codes) - 2 and codes[place + 1] == 116 and codes[place - 1] in (40, 91)
            ):
                found |= _HAS_AT
    return found


def mask(text: str, codes: NDArray[np.uint32] | None = None) -> tuple[str, Counter[str]]:
    """The text with personal data masked, and how often which mask was put; the same object where there is none.

    Args:
        text: any text.
        codes: its code points, uint32 [characters], where they are at hand.
    """
    counts: Counter[str] = Counter()
    possible = _possible(code_points(text) if codes is None else codes, _kinds())
    if possible & _HAS_AT:
        text = _EMAIL.sub(lambda found: _counted(EMAIL, counts), text)
    if possible & _HAS_NUMBER:
        text = _IBAN.sub(lambda found: _iban(found, counts), text)
        text = _NUMBER.sub(lambda found: _number(found, counts), text)
    return text, counts


def _counted(name: str, counts: Counter[str]) -> str:
    counts[name.strip("[]").lower()] += 1
    return name


def _ascii(text: str) -> str:
    return text.translate(_TO_ASCII)


def _iban(found: re.Match[str], counts: Counter[str]) -> str:
    compact = re.sub("[ -]", "", _ascii(found.group())).upper()
    length = _IBAN_LENGTHS.get(compact[:2])
    if length is None or len(compact) < length:
        return found.group()
    tail = ""
    if len(compact) > length:  # a word in capitals that follows is none of it
        kept = 0
        for place, character in enumerate(found.group()):
            kept += character not in " -"
            if kept == length:
                tail = found.group()[place + 1 :]
                break
        compact = compact[:length]
    moved = compact[4:] + compact[:4]
    if int("".join(str(int(character, 36)) for character in moved)) % 97 != 1:
        return found.group()
    return _counted(IBAN, counts) + tail


def _number(found: re.Match[str], counts: Counter[str]) -> str:
    raw = found.group()
    written = _ascii(raw)
    digits = re.sub(r"\D", "", written)
    before = found.string[max(0, found.start() - _CUE_CHARACTERS) : found.start()]
    kind = None if raw.count("/") > 1 else _kind(digits, "+" in written, before)  # dates, numbers of letters
    if kind in (NATIONAL_ID, CARD) and not digits.startswith("784") and min(map(len, re.findall(r"\d+", written))) < 3:
        return raw  # a list of small numbers whose digits happen to check
    if kind is None:
        return raw
    lead = raw[: len(raw) - len(raw.lstrip("\u200e\u202a" + ("(" if ")" not in raw else "")))]
    return lead + _counted(kind, counts)


def _kind(digits: str, plus: bool, before: str) -> str | None:
    """What a number is, or None for one that may be anything."""
    if plus:
        return PHONE if _INTERNATIONAL.fullmatch(digits) or 8 <= len(digits) <= 15 else None
    if digits.startswith("00") and _INTERNATIONAL.fullmatch(digits[2:]):
        return PHONE
    if _is_national_id(digits):
        return NATIONAL_ID
    if _LOCAL_MOBILE.fullmatch(digits):
        return PHONE
    if (
        len(digits) >= 11
        and _INTERNATIONAL.fullmatch(digits)
        and digits[:3] in ("966", "971", "962", "961", "964", "963", "965", "974")
    ):
        return PHONE
    if _CARD.fullmatch(digits) and _luhn(digits):
        return CARD
    if _ID_CUE.search(before) and 8 <= len(digits) <= 16:
        return NATIONAL_ID
    if _PHONE_CUE.search(before) and 7 <= len(digits) <= 15:
        return PHONE
    return None


def _is_national_id(digits: str) -> bool:
    """Whether the digits are the id of a country whose ids can be checked."""
    if len(digits) == 10 and digits[0] in "12":  # Saudi Arabia: citizens 1…, residents 2…
        return _luhn(digits)
    if len(digits) == 14 and digits[0] in "23":  # Egypt: century, date of birth, governorate
        return _is_date(digits[3:5], digits[5:7]) and digits[7:9] in _EGYPTIAN_GOVERNORATES
    if len(digits) == 15 and digits.startswith("784"):  # the Emirates: 784, year of birth
        return "1900" <= digits[3:7] <= "2099" and _luhn(digits)
    if len(digits) == 12 and digits[0] in "23":  # Kuwait: century, date of birth, check digit
        weights = (2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
        check = 11 - sum(weight * int(digit) for weight, digit in zip(weights, digits)) % 11
        return _is_date(digits[3:5], digits[5:7]) and check == int(digits[11])
    return False


_EGYPTIAN_GOVERNORATES = frozenset(
    ("01", "02", "03", "04", "88", *map(str, range(11, 20)), *map(str, range(21, 30)), *map(str, range(31, 36)))
)


def _is_date(month: str, day: str) -> bool:
    return "01" <= month <= "12" and "01" <= day <= "31"


def _luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0
