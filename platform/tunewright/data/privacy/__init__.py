"""Personal data and secrets in text: found, counted and replaced by placeholders.

    redact.py        `Redactor`, which does it for the texts of a row
    found.py         what a finding is, and which of two that overlap counts
    contact.py       e-mail, phone, IP addresses
    numbers.py       payment cards and IBANs, by their check digits
    national_ids.py  identity numbers, by their countries' rules
    secrets.py       keys, tokens and passwords
    presidio.py      names and places, with Microsoft Presidio

Each finder is a function `text -> findings` that returns at once where a cheap look shows nothing.
"""

from tunewright.data.privacy.redact import Redactor, RowRedactor, redact

__all__ = ["Redactor", "RowRedactor", "redact"]
