"""Names and places, as Microsoft Presidio finds them with a spaCy model that is installed.

The only module that knows Presidio, the extra `pii`. Nothing is downloaded: Presidio would fetch a model
that is missing, so it is handed one that is loaded already; and of its recognizers only the one that
reads the model's entities is used, since others fetch lists from the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

from tunewright.data.privacy.found import PLACEHOLDER, Found
from tunewright.errors import DataError

KINDS = {"PERSON": "person", "LOCATION": "place"}
CHARS_AT_ONCE = 50_000  # spaCy refuses a million, and takes 1 GiB for each 100,000 by its own account


class Presidio:
    """A finder of names and places; loads its model once in a process.

    Args:
        model: a spaCy package, or the folder of a saved pipeline.
    Raises:
        DataError: Presidio or the model is not installed.
    """

    def __init__(self, model: str):
        self.model = model
        _analyzer(model)

    def __call__(self, text: str) -> Sequence[Found]:
        analyzer, language = _analyzer(self.model)
        placeholders = [match.span() for match in PLACEHOLDER.finditer(text)]
        found = []
        for at, part in _parts(text):
            for result in analyzer.analyze(part, language=language, entities=list(KINDS)):
                start, end = at + result.start, at + result.end
                if not any(first < end and start < last for first, last in placeholders):
                    value = " ".join(text[start:end].split())
                    found.append(Found(start, end, KINDS[result.entity_type], value))
        return found


def _parts(text: str) -> Iterator[tuple[int, str]]:
    """Pieces of a text, each with its place, cut at line ends or blanks where there are any."""
    at = 0
    while at < len(text):
        end = at + CHARS_AT_ONCE
        if end < len(text):
            cut = max(text.rfind("\n", at, end), text.rfind(" ", at, end))
            end = cut + 1 if cut > at else end
        yield at, text[at:end]
        at = end


@cache
def _analyzer(model: str) -> tuple[Any, str]:
    """Presidio's analyzer with one recognizer, and the language of the model."""
    if find_spec("presidio_analyzer") is None or find_spec("spacy") is None:
        raise DataError(
            "data.privacy.presidio needs Microsoft Presidio, which is not installed: "
            "pip install 'tunewright[pii]', or say presidio: false"
        )
    import spacy
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import SpacyNlpEngine
    from presidio_analyzer.predefined_recognizers import SpacyRecognizer

    try:
        loaded = spacy.load(model)
    except (OSError, ValueError) as error:
        raise DataError(
            f"data.privacy.presidio_model={model!r} cannot be loaded ({str(error).splitlines()[0]}): "
            f"python -m spacy download {model}, or name an installed model or the folder of a saved one"
        ) from None
    language = str(loaded.lang)
    engine = SpacyNlpEngine(models=[{"lang_code": language, "model_name": model}])
    engine.nlp = {language: loaded}  # what its load() would set, without the download
    reader = SpacyRecognizer(supported_language=language, supported_entities=list(KINDS))
    registry = RecognizerRegistry(recognizers=[reader], supported_languages=[language])
    return AnalyzerEngine(registry, engine, supported_languages=[language]), language
