"""`Redactor`: counts and replaces what the finders find in the texts of a row.

The same value gets the same placeholder in all texts of a row, and another one another: `[email]`,
`[email_2]`. No placeholder matches a pattern, and a text is looked at until nothing more is found, so
redacting twice is redacting once.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from tunewright.config.data import Privacy
from tunewright.data.privacy.contact import find_emails, find_ips, find_phones
from tunewright.data.privacy.found import KINDS, Finder, Found, settled
from tunewright.data.privacy.national_ids import find_italian_ids, find_national_ids
from tunewright.data.privacy.numbers import find_cards, find_ibans
from tunewright.data.privacy.presidio import Presidio
from tunewright.data.privacy.secrets import find_secrets

FINDERS: dict[str, Finder] = {"secret": find_secrets, "email": find_emails, "ip": find_ips}
MIXED_FINDERS: dict[str, Finder] = {"iban": find_ibans, "national_id": find_italian_ids}
"""Of digits and letters: texts with fewer than `DIGITS` digits have none."""
NUMBER_FINDERS: dict[str, Finder] = {
    "card": find_cards,
    "national_id": find_national_ids,
    "phone": find_phones,
}
"""Of digits: they have so many of them in a row, with little between them."""
DIGITS = 6
LONG_NUMBER = re.compile(rf"[0-9](?:[ \u00a0()./-]{{0,2}}[0-9]){{{DIGITS - 1}}}")
ESCAPE = re.compile(r"\\[nrtbf]")


def redact(text: str, kinds: Collection[str]) -> tuple[str, dict[str, int]]:
    """The text with each finding replaced by its placeholder, and how many of each kind there were.

    redact("mail a@b.org", ["email"])  ->  ("mail [email]", {"email": 1})
    """
    row = RowRedactor(_finders(kinds))
    return row.text(text), row.counts


class Redactor:
    """Finds what the settings ask for.

    Raises:
        DataError: Presidio is asked for and it, or its model, is not installed.
    """

    def __init__(self, config: Privacy):
        looks = config.action != "keep"
        names = (Presidio(config.presidio_model),) if looks and config.presidio else ()
        self._finders = (*_finders(config.kinds), *names) if looks else ()
        self._all = (*_finders(KINDS), *names)

    def row(self) -> RowRedactor:
        """For the texts of one row, in their order."""
        return RowRedactor(self._finders)

    def masked(self, text: str) -> str:
        """The text as it may be shown: without anything of any kind, whatever the settings say.

        Raw JSON may be given: an escaped line end or quote parts words as a real one does.
        """
        return RowRedactor(self._all, escaped=True).text(text)


class RowRedactor:
    """Replaces findings in the texts of one row.

    Attributes:
        counts: kind -> findings so far.
    """

    def __init__(self, finders: Sequence[Finder], escaped: bool = False):
        self.counts: dict[str, int] = {}
        self._finders, self._escaped = finders, escaped
        self._placeholders: dict[tuple[str, str], str] = {}
        self._numbers: dict[str, int] = {}

    def text(self, text: str) -> str:
        """The text with placeholders; the same object if nothing was found."""
        # Again, since a finding may have hidden the half of another that overlapped it.
        while found := self._find(text):
            text = self._replace(text, settled(found))
        return text

    def _find(self, text: str) -> list[Found]:
        # Of the same length, so that places in it are places in the text.
        seen = ESCAPE.sub("  ", text).replace('\\"', ' "') if self._escaped else text
        return [finding for find in self._finders for finding in find(seen)]

    def _replace(self, text: str, found: Sequence[Found]) -> str:
        out, done = [], 0
        for finding in found:
            out += [text[done : finding.start], self._placeholder(finding, text)]
            done = finding.end
            self.counts[finding.kind] = self.counts.get(finding.kind, 0) + 1
        return "".join([*out, text[done:]])

    def _placeholder(self, finding: Found, text: str) -> str:
        known = (finding.kind, finding.value)
        while known not in self._placeholders:
            number = self._numbers[finding.kind] = self._numbers.get(finding.kind, 0) + 1
            name = f"[{finding.kind}]" if number == 1 else f"[{finding.kind}_{number}]"
            # One that stands in the text already, from an earlier redaction, is somebody else's.
            if name not in text:
                self._placeholders[known] = name
        return self._placeholders[known]


class _Numbers:
    """Finders of numbers, for texts with enough digits."""

    def __init__(self, kinds: Collection[str]):
        self.mixed = [find for kind, find in MIXED_FINDERS.items() if kind in kinds]
        self.numbers = [find for kind, find in NUMBER_FINDERS.items() if kind in kinds]

    def __call__(self, text: str) -> Sequence[Found]:
        raw = text.encode("utf-8", "surrogatepass")
        if len(raw) - len(raw.translate(None, b"0123456789")) < DIGITS:
            return ()
        finders = self.mixed
        if self.numbers and LONG_NUMBER.search(text):
            finders = finders + self.numbers
        return [finding for find in finders for finding in find(text)]


def _finders(kinds: Collection[str]) -> tuple[Finder, ...]:
    others = tuple(find for kind, find in FINDERS.items() if kind in kinds)
    numbers = _Numbers(kinds)
    return (*others, numbers) if numbers.mixed or numbers.numbers else others
