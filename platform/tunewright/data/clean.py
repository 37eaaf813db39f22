"""One example -> the example as it may be learned, or the reason why it may not."""

from __future__ import annotations

from collections.abc import Mapping

from tunewright.config import DataConfig
from tunewright.data.normalize import normalize
from tunewright.data.privacy import Redactor
from tunewright.data.quality import check_quality
from tunewright.data.records import map_texts, question_and_answer
from tunewright.data.rows import Example
from tunewright.errors import DataError


def clean(example: Example, config: DataConfig, redactor: Redactor) -> tuple[Example, Mapping[str, int]]:
    """The example with normalised and redacted text, and the personal data found in it by kind.

    Raises:
        DataError: it holds what the settings do not allow.
    """
    rules, privacy = config.normalize, config.privacy
    if (rules.unicode, rules.control, rules.whitespace) != ("keep", "keep", "keep"):
        example = map_texts(example, lambda text: normalize(text, rules))
    found: Mapping[str, int] = {}
    if privacy.action != "keep":
        row = redactor.row()
        redacted = map_texts(example, row.text)
        found = row.counts
        if found and privacy.action == "reject":
            raise DataError(f"holds personal data: {', '.join(sorted(found))}")
        if privacy.action == "redact":
            example = redacted
    reason = check_quality(*question_and_answer(example), config.quality)
    if reason:
        raise DataError(reason)
    return example, found
