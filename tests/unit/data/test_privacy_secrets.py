"""Keys, tokens and passwords are found by their shape or their name; ordinary words are not."""

from __future__ import annotations

import pytest

from tunewright.data.privacy import redact

# Put together here, so that no scanner takes this file for a leak.
MIXED = "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8s9T0"
TOKENS = [
    "AKIA" + "IOSFODNN7EXAMPLE",
    "ASIA" + "IOSFODNN7EXAMPLE",
    "ghp_" + MIXED[:36],
    "github_pat_" + MIXED[:22] + "_" + MIXED,
    "glpat-" + MIXED[:20],
    "xoxb-" + "123456789012-" + MIXED[:24],
    "hooks.slack.com/services/" + "T0ABCDEFG/B0ABCDEFG/" + MIXED[:24],
    "AIza" + MIXED[:35],
    "GOCSPX-" + MIXED[:28],
    "sk-" + MIXED,
    "sk-" + "proj-" + MIXED,
    "sk-" + "ant-api03-" + MIXED,
    "sk_" + "live_" + MIXED[:24],
    "rk_" + "test_" + MIXED[:24],
    "whsec_" + MIXED[:32],
    "hf_" + MIXED[:34],
    "npm_" + MIXED[:36],
    "eyJ" + "hbGciOiJIUzI1NiJ9.eyJ" + "zdWIiOiIxMjM0In0." + MIXED,
]
LINES = "\n".join(["MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQ" + "C7x1"] * 3)


@pytest.mark.parametrize("token", TOKENS)
def test_tokens_are_found_by_their_prefix(token: str) -> None:
    assert redact(f"use {token}, please", ["secret"]) == ("use [secret], please", {"secret": 1})
    assert redact(f'("{token}")', ["secret"]) == ('("[secret]")', {"secret": 1})


@pytest.mark.parametrize("token", [t for t in TOKENS if "/" not in t and "." not in t])
def test_a_prefix_alone_is_no_token(token: str) -> None:
    assert redact(f"use {token[:9]} or x{token}", ["secret"])[1] == {}


@pytest.mark.parametrize("kind", ["", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "])
def test_a_private_key_is_replaced_whole(kind: str) -> None:
    block = f"-----BEGIN {kind}PRIVATE KEY-----\n{LINES}\n-----END {kind}PRIVATE KEY-----"
    assert redact(f"a\n{block}\nb\n{block}", ["secret"])[0] == "a\n[secret]\nb\n[secret]"


def test_a_private_key_that_is_cut_off_is_replaced_as_far_as_it_goes() -> None:
    text = f"-----BEGIN PRIVATE KEY-----\n{LINES}\nThat is all."
    assert redact(text, ["secret"])[0] == "[secret]\nThat is all."


def test_a_certificate_is_no_secret() -> None:
    text = f"-----BEGIN CERTIFICATE-----\n{LINES}\n-----END CERTIFICATE-----"
    assert redact(text, ["secret"]) == (text, {})


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        (f'api_key = "{MIXED}"', 'api_key = "[secret]"'),
        (f"API-KEY: {MIXED}", "API-KEY: [secret]"),
        (f"AWS_SECRET_ACCESS_KEY={MIXED}", "AWS_SECRET_ACCESS_KEY=[secret]"),
        (f"{{'client_secret': '{MIXED}'}}", "{'client_secret': '[secret]'}"),
        (f"access token => {MIXED}.", "access token => [secret]."),
        ("password: hunter22!", "password: [secret]!"),
        ("PGPASSWORD=s3cretpass", "PGPASSWORD=[secret]"),
        ("postgresql://app:s3cr3t@db.example.com/x", "postgresql://app:[secret]@db.example.com/x"),
        (f"İİ token={MIXED}", "İİ token=[secret]"),
    ],
)
def test_values_are_found_by_their_name(text: str, redacted: str) -> None:
    assert redact(text, ["secret"]) == (redacted, {"secret": 1})


@pytest.mark.parametrize(
    "text",
    [
        "max_tokens = 123456789012",
        "the key: remember1234567890abc",
        "keyboard: qwertyuiop12345",
        "token: authentication",
        'api_key = "YOUR_API_KEY_HERE"',
        'api_key = os.environ["OPENAI_API_KEY"]',
        "api_key = ${OPENAI_API_KEY2}",
        "password: must be 8 characters",
        "password is hunter22",
        "secret: 111111111111a",
        "sk-learn-is-a-library-for-machine-learning",
        "risk-a1b2c3d4e5f6g7h8i9j0k1l2",
        "https://example.com:8080/a@b",
    ],
)
def test_ordinary_text_is_no_secret(text: str) -> None:
    assert redact(text, ["secret"]) == (text, {})
