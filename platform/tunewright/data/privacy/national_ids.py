"""Identity, tax and social security numbers, by the rules that their countries published.

US  social security number     123-45-6789: ranges never given out are left alone
GB  national insurance number  QQ 12 34 56 C: likewise
DE  Steuer-Identifikationsnummer, 11 digits; ISO 7064 MOD 11,10
FR  numéro de sécurité sociale, 13 digits and a key modulo 97
ES  DNI and NIE, whose letter is the number modulo 23
IT  codice fiscale, with its check letter
BR  CPF, 529.982.247-25, with two check digits
CN  resident identity card, 18 digits with a date; ISO 7064 MOD 11-2
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import date

from tunewright.data.privacy.found import Found, bare, stands_alone

SPANISH_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"
NEVER_BRITISH = {"BG", "GB", "KN", "NK", "NT", "TN", "ZZ"}
ITALIAN_ODD = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)
"""Worth of A to Z, and of 0 to 9 as A to J, at the odd places of a codice fiscale."""
CHINESE_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


def find_national_ids(text: str) -> Sequence[Found]:
    """Numbers of the countries above, but for Italy, that keep their country's rule."""
    return [finding for pattern, keeps_rule in RULES for finding in _find(text, pattern, keeps_rule)]


def find_italian_ids(text: str) -> Sequence[Found]:
    """Codici fiscali, of which most characters are letters."""
    return list(_find(text, ITALIAN, _is_italian))


def _find(text: str, pattern: re.Pattern[str], keeps_rule: Callable[[str], bool]) -> Iterator[Found]:
    for match in pattern.finditer(text):
        number = bare(match.group())
        if keeps_rule(number) and stands_alone(text, *match.span()):
            yield Found(*match.span(), "national_id", number)


def _is_american(number: str) -> bool:
    area, group, serial = number[:3], number[3:5], number[5:]
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def _is_british(number: str) -> bool:
    return number[:2] not in NEVER_BRITISH


def _is_german(number: str) -> bool:
    # Of the first ten digits one occurs two or three times, and the others once at most.
    repeats = [count for count in Counter(number[:10]).values() if count > 1]
    if number[0] == "0" or repeats not in ([2], [3]):
        return False
    product = 10
    for digit in number[:10]:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == int(number[10])


def _is_french(number: str) -> bool:
    month = int(number[3:5])
    if not (1 <= month <= 12 or 20 <= month <= 42 or month >= 50):
        return False
    corsican = number[:13].replace("2A", "19").replace("2B", "18")
    return int(number[13:]) == 97 - int(corsican) % 97


def _is_spanish(number: str) -> bool:
    digits = str("XYZ".find(number[0])) + number[1:-1] if number[0] in "XYZ" else number[:-1]
    return SPANISH_LETTERS[int(digits) % 23] == number[-1]


def _is_italian(number: str) -> bool:
    worth = [int(c, 36) - 10 if c.isalpha() else int(c) for c in number]
    total = sum(ITALIAN_ODD[w] for w in worth[:15:2]) + sum(worth[1:15:2])
    return total % 26 == worth[15]


def _is_brazilian(number: str) -> bool:
    digits = [int(c) for c in number]
    for place in (9, 10):
        total = sum(d * weight for d, weight in zip(digits, range(place + 1, 1, -1), strict=False))
        if total * 10 % 11 % 10 != digits[place]:
            return False
    return len(set(number)) > 1


def _is_chinese(number: str) -> bool:
    year, month, day = int(number[6:10]), int(number[10:12]), int(number[12:14])
    try:
        date(year, month, day)
    except ValueError:
        return False
    total = sum(int(c) * weight for c, weight in zip(number, CHINESE_WEIGHTS, strict=False))
    return 1900 <= year < 2100 and "10X98765432"[total % 11] == number[17]


# Digits at the places where letters may stand for them: LMNPQRSTUV, when two people had the same code.
_D = "[0-9LMNPQRSTUV]"
ITALIAN = re.compile(rf"[A-Z][A-Z]{{5}}{_D}{{2}}[ABCDEHLMPRST]{_D}{{2}}[A-Z]{_D}{{3}}[A-Z]")
RULES = [
    (re.compile(pattern), keeps_rule)
    for pattern, keeps_rule in [
        (r"[0-9](?<![0-9].)[0-9]{2}([ -])[0-9]{2}\1[0-9]{4}(?![0-9])", _is_american),
        (r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D]", _is_british),
        (r"[1-9](?<![0-9].)[0-9](?: ?[0-9]{3}){3}(?![0-9])", _is_german),
        (
            r"[123478](?<![0-9].)(?: ?[0-9]{2}){2} ?(?:[0-9]{2}|2[AB])(?: ?[0-9]{3}){2} ?[0-9]{2}(?![0-9])",
            _is_french,
        ),
        (
            rf"[0-9][0-9]{{7}}[ -]?[{SPANISH_LETTERS}]|[XYZ][ -]?[0-9]{{7}}[ -]?[{SPANISH_LETTERS}]",
            _is_spanish,
        ),
        (r"[0-9](?<![0-9].)[0-9]{2}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}", _is_brazilian),
        (r"[1-9](?<![0-9].)[0-9]{16}[0-9X]", _is_chinese),
    ]
]
