"""Text that has been given is never taken back: characters are whole, stop strings never show."""

from __future__ import annotations

import random

import pytest

from tunewright.serve.detokenize import TextStream


def decode_bytes(ids):
    return bytes(ids).decode("utf-8", errors="replace")


def pieces(data: bytes, stop=()):
    """What is given after each byte, and at the end."""
    stream = TextStream(decode_bytes, stop)
    given = []
    for byte in data:
        given.append(stream.add(byte))
        if stream.stopped:
            return given
    return [*given, stream.finish()]


def test_a_character_is_given_whole():
    assert pieces("aé€😀z".encode()) == ["a", "", "é", "", "", "€", "", "", "", "😀", "z", ""]


def test_half_a_character_at_the_end_is_dropped():
    assert "".join(pieces("ok😀".encode()[:-1])) == "ok"


def test_bytes_that_are_no_text_do_not_hold_up_what_follows():
    assert "".join(pieces(b"a\xff\xfeb\xc3")) == "a\ufffd\ufffdb"


def test_the_pieces_make_up_the_whole_text_for_any_bytes():
    draw = random.Random(5)
    alphabet = ["a", " ", "é", "€", "😀", "\ufffd", "\n"]
    for _ in range(300):
        data = "".join(draw.choices(alphabet, k=draw.randrange(20))).encode()
        noise = bytearray(data)
        for _ in range(draw.randrange(3)):
            noise.insert(draw.randrange(len(noise) + 1), draw.randrange(256))
        whole = decode_bytes(noise)
        assert "".join(pieces(bytes(noise))) == whole.rstrip("\ufffd")


def test_a_decoder_that_strips_the_first_space_of_a_text_does_not_lose_others():
    words = ["▁the", "▁cat", "s", "▁▁", "▁sat", "<special>", "▁on", "<special>", "<special>", "▁", "it", "."]

    def decode(ids):
        kept = "".join(words[i] for i in ids if words[i] != "<special>")
        return kept.replace("▁", " ").removeprefix(" ")

    assert decode(range(len(words))) == "the cats   sat on it."
    stream = TextStream(decode)
    assert "".join([stream.add(i) for i in range(len(words))] + [stream.finish()]) == decode(
        range(len(words))
    )


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one END two", ("END",), "one "),
        ("one EN two", ("END",), "one EN two"),
        ("one EN", ("END",), "one EN"),
        ("aab", ("ab",), "a"),
        ("ababac", ("abac",), "ab"),
        ("x<|y|>z", ("z", "<|y|>"), "x"),
        ("é€END", ("€E",), "é"),
        ("STOP", ("STOP",), ""),
        ("abcd", ("bc", "abcd"), "a"),
        ("none of them", ("#", "@@"), "none of them"),
    ],
)
def test_text_ends_before_the_first_stop_string(text, stop, expected):
    given = pieces(text.encode(), stop)
    assert "".join(given) == expected


def test_what_may_become_a_stop_string_is_held_and_then_given():
    assert pieces(b"a##b", ("##c",)) == ["a", "", "", "##b", ""]


def test_nothing_given_is_ever_part_of_a_stop_string():
    draw = random.Random(7)
    found = 0
    for _ in range(500):
        text = "".join(draw.choices("ab#", k=12))
        stop = tuple(
            {"".join(draw.choices("ab#", k=draw.randrange(1, 4))) for _ in range(draw.randrange(1, 4))}
        )
        stream = TextStream(decode_bytes, stop)
        given = ""
        for byte in text.encode():
            given += stream.add(byte)
            if stream.stopped:
                break
        else:
            given += stream.finish()
        cuts = [text.find(s) for s in stop if s in text]
        found += bool(cuts)
        first_end = min((text.find(s) + len(s) for s in stop if s in text), default=None)
        if first_end is None:
            assert given == text
        else:
            # Byte by byte, the stop string that is complete first decides.
            assert stream.stopped
            assert given == text[: min(text.find(s) for s in stop if s in text[:first_end])]
    assert found > 100
