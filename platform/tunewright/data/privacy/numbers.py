"""Payment cards and bank accounts: numbers that pass their check digits."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tunewright.data.privacy.found import Found, bare, stands_alone

# 14 to 19 digits in one piece, or in groups as printed: 4-4-4-4 and up to three more, or 4-6-5, 4-6-4.
# Each place where a card may begin is looked at, so that it is found among other numbers too.
CARD = re.compile(
    r"[2-6](?<![0-9].)(?<![0-9][.,].)(?=((?:[0-9]{13,18}"
    r"|[0-9]{3}([ \u00a0-])(?:[0-9]{6}\2[0-9]{4,5}|[0-9]{4}\2[0-9]{4}\2[0-9]{4}(?:\2[0-9]{1,3})?))(?![0-9])))"
)
# Ranges that the networks publish, with the lengths they use.
ISSUED = re.compile(
    r"4[0-9]{15}(?:[0-9]{3})?"  # Visa
    r"|(?:5[1-5][0-9]{2}|222[1-9]|22[3-9][0-9]|2[3-6][0-9]{2}|27[01][0-9]|2720)[0-9]{12}"  # Mastercard
    r"|3[47][0-9]{13}"  # American Express
    r"|3(?:0[0-5]|[689][0-9])[0-9]{11,16}"  # Diners Club
    r"|35(?:2[89]|[3-8][0-9])[0-9]{12,15}"  # JCB
    r"|(?:5[06-9]|6[0-9])[0-9]{12,17}"  # Discover, UnionPay, Maestro
)
WITHOUT_SEPARATORS = str.maketrans("", "", " \u00a0-")
DOUBLED = bytes.maketrans(b"0123456789", b"0246813579")  # 7: 14: 1 + 4: 5
IBAN = re.compile(
    r"[0-9](?<=[A-Za-z]{2}.)(?<![0-9A-Za-z_][A-Za-z]{2}.)[0-9](?=((?:[ \u00a0-]?[0-9A-Za-z]){11,30}))"
)
# ISO 13616: characters of an IBAN, and the countries where it has so many
IBAN_COUNTRIES = {
    15: "NO",
    16: "BE",
    18: "DK FI FK FO GL NL SD",
    19: "MK SI",
    20: "AT BA EE KZ LT LU MN XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM SO TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "BI DJ FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU YE",
    31: "MT SC",
    32: "LC",
    33: "RU",
}
IBAN_LENGTH = {country: n for n, countries in IBAN_COUNTRIES.items() for country in countries.split()}


def find_cards(text: str) -> Sequence[Found]:
    """Numbers that a payment network could have given and whose last digit checks the others."""
    found: list[Found] = []
    for match in CARD.finditer(text):
        start = match.start()
        if found and start < found[-1].end:
            continue
        ends = [match.end(1)]
        if match.group(2):  # the last group may be a number of its own
            ends.append(match.start(1) + match.group(1).rindex(match.group(2)))
        for end in ends:
            number = text[start:end].translate(WITHOUT_SEPARATORS)
            if ISSUED.fullmatch(number) and passes_luhn(number) and not _is_inside(text, start, end):
                found.append(Found(start, end, "card", number))
                break
    return found


def _is_inside(text: str, start: int, end: int) -> bool:
    """Whether letters stand on both sides, as in a hash written in hexadecimal."""
    sides = text[start - 1 : start] + text[end : end + 1]
    return len(sides) == 2 and sides.isascii() and sides.isalpha()


def find_ibans(text: str) -> Sequence[Found]:
    """Numbers of bank accounts with their country's length and the right check digits."""
    found = []
    for match in IBAN.finditer(text):
        start = match.start() - 2
        length = IBAN_LENGTH.get(text[start : start + 2].upper(), 0)
        ends = [match.start(1) + one.end() for one in re.finditer("[0-9A-Za-z]", match.group(1))]
        if length and len(ends) >= length - 4:
            end = ends[length - 5]
            number = bare(text[start:end])
            if stands_alone(text, start, end) and passes_mod_97(number):
                found.append(Found(start, end, "iban", number))
    return found


def passes_luhn(number: str) -> bool:
    """Whether a number, all of it digits, passes the check of payment card numbers (ISO/IEC 7812-1)."""
    digits = number.encode()
    return (sum(digits[-1::-2]) + sum(digits[-2::-2].translate(DOUBLED)) - len(digits) * ord("0")) % 10 == 0


def passes_mod_97(number: str) -> bool:
    """Whether an IBAN without blanks passes its check (ISO 7064, MOD 97-10)."""
    return int("".join(str(int(c, 36)) for c in number[4:] + number[:4])) % 97 == 1
