"""Private keys, access tokens, passwords: by their issuers' published prefixes, or by their names."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from tunewright.data.privacy.found import Found

PEM_BEGIN = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
PEM_END = "-----END "
PEM_CHARS = 1 << 15  # RSA of 16,384 bits needs 13,000
PEM_BODY = re.compile(r"(?:\s{0,4}[A-Za-z0-9+/=]{16,80})+")
"""Lines of a key that is cut off before its end."""

# A character that some tokens hold -> the letters by which they are known -> their shape. What is cheap to
# look for comes first.
TOKENS = {
    "_": {
        "gh": r"gh[pousr]_[A-Za-z0-9]{36,255}",  # GitHub
        "github_pat_": r"github_pat_[A-Za-z0-9_]{22,255}",
        "k_": r"[sr]k_(?:live|test)_[A-Za-z0-9]{16,255}",  # Stripe
        "whsec_": r"whsec_[A-Za-z0-9+/=]{24,128}",
        "hf_": r"hf_[A-Za-z0-9]{30,64}",  # Hugging Face
        "npm_": r"npm_[A-Za-z0-9]{36}",
    },
    "-": {
        "sk-": r"sk-(?=[A-Za-z_-]{0,200}[0-9])[A-Za-z0-9_-]{20,255}",  # OpenAI, Anthropic
        "xox": r"xox[abeoprs]-[A-Za-z0-9-]{10,250}",  # Slack
        "glpat-": r"glpat-[A-Za-z0-9_-]{20,64}",  # GitLab
        "GOCSPX-": r"GOCSPX-[A-Za-z0-9_-]{28}",  # Google
    },
    "/": {
        "hooks.slack.com/": r"hooks\.slack\.com/services/T[A-Z0-9]{6,12}/B[A-Z0-9]{6,12}/[A-Za-z0-9]{20,30}"
    },
    "": {
        "AIza": r"AIza[A-Za-z0-9_-]{35}",  # Google
        "AKIA": r"AKIA[A-Z0-9]{16}",  # Amazon
        "ASIA": r"ASIA[A-Z0-9]{16}",
        # JSON Web Tokens
        "eyJ": r"eyJ[A-Za-z0-9_-]{8,4096}\.eyJ[A-Za-z0-9_-]{8,8192}\.[A-Za-z0-9_-]{8,2048}",
    },
}
SHAPES = {
    character: [
        (mark, re.compile(rf"(?<![A-Za-z0-9_-])(?:{shape})(?![A-Za-z0-9_])"))
        for mark, shape in shapes.items()
    ]
    for character, shapes in TOKENS.items()
}
URL_PASSWORD = re.compile(r"://[^\s:/@\[\]]{0,64}:([^\s:/@\[\]]{3,128})@")

NAMES = ("key", "token", "secret", "password", "passwd", "pwd")
KEY_NAME = re.compile(
    r"(?:api|access|secret|private|auth|account|encryption|signing|shared|master|client)[ _-]?$",
    re.IGNORECASE,
)
"""What comes before `key` where it is one that opens something."""
VALUE = re.compile(
    r"[A-Za-z0-9_]{0,20}[\"'`]?\s{0,3}(?::=|=>|[:=])\s{0,3}[\"'`]?([A-Za-z0-9+/=_.~!#%^&*-]{8,512})"
)
KEY_CHARS, KEY_DIGITS, KEY_BITS = 12, 2, 3.0
"""What a value called key, token or secret must have: so many characters and digits, and bits of entropy
a character. A password needs a letter and a digit."""
ASCII_LOWER = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}


def find_secrets(text: str) -> Sequence[Found]:
    """Keys and tokens of known shape, private keys whole, passwords in URLs, and values called secret."""
    spans: list[tuple[int, int]] = []
    if "-----BEGIN " in text:
        spans += _private_keys(text)
    for character, shapes in SHAPES.items():
        if character in text:
            for mark, shape in shapes:
                if mark in text:
                    spans += [match.span() for match in shape.finditer(text)]
    if "@" in text and "://" in text:
        spans += [match.span(1) for match in URL_PASSWORD.finditer(text)]
    if "=" in text or ":" in text:
        spans += _assigned(text)
    return [Found(start, end, "secret", text[start:end]) for start, end in spans]


def _private_keys(text: str) -> list[tuple[int, int]]:
    """Blocks from BEGIN to END, or as far as the key goes where the end is missing."""
    spans: list[tuple[int, int]] = []
    last_end = text.rfind(PEM_END)
    for match in PEM_BEGIN.finditer(text):
        if spans and match.start() < spans[-1][1]:
            continue
        end = match.end()
        close = text.find(PEM_END, end, end + PEM_CHARS) if end <= last_end else -1
        if close >= 0:
            dashes = text.find("-----", close + len(PEM_END), close + 80)
            end = dashes + 5 if dashes >= 0 else close + len(PEM_END)
        elif body := PEM_BODY.match(text, end, end + PEM_CHARS):
            end = body.end()
        spans.append((match.start(), end))
    return spans


def _assigned(text: str) -> list[tuple[int, int]]:
    """Values of what is called a key, token, secret or password: `api_key = "..."`; the name stays."""
    lower = text.lower()
    if len(lower) != len(text):  # some letters become two
        lower = text.translate(ASCII_LOWER)
    spans = []
    for name in NAMES:
        at = lower.find(name)
        while at >= 0:
            after = at + len(name)
            if name != "key" or KEY_NAME.search(text, max(0, at - 12), at):
                match = VALUE.match(text, after)
                if match:
                    after = match.end()
                    value = match.group(1).rstrip(".!")
                    if _looks_secret(value, is_password=name.startswith("p")):
                        spans.append((match.start(1), match.start(1) + len(value)))
            at = lower.find(name, after)
    return spans


def _looks_secret(value: str, is_password: bool) -> bool:
    digits = sum(c.isdigit() for c in value)
    if is_password:
        return digits > 0 and any(c.isalpha() for c in value)
    return len(value) >= KEY_CHARS and KEY_DIGITS <= digits < len(value) and _entropy(value) >= KEY_BITS


def _entropy(text: str) -> float:
    """Bits a character, by how often each occurs in the text."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())
