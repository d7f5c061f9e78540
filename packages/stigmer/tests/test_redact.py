"""Redaction: known secrets go everywhere masked, key-shaped texts where we speak ourselves."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest
from stigmer import redact


def test_a_known_secret_is_masked_in_every_form() -> None:
    secret = 'pass"word/with=signs'
    redact.remember([secret])
    text = f"{secret} {json.dumps(secret)} {quote(secret, safe='')}"
    assert redact.mask(text) == '*** "***" ***'
    assert redact.mask_bytes(text.encode()) == b'*** "***" ***'


def test_short_words_are_no_secrets() -> None:
    redact.remember(["none", "ollama", ""])
    assert redact.mask("ollama needs none") == "ollama needs none"


@pytest.mark.parametrize(
    "key",
    [
        "sk-ant-api03-abcdefghijklmnop",
        "sk-proj-0123456789abcdefghij",
        "ghp_0123456789abcdefghij0123",
        "xoxb-1234567890-abcdef",
        "AKIAIOSFODNN7EXAMPLE",
        "hf_0123456789abcdefghijkl",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    ],
)
def test_what_looks_like_a_key_is_masked_in_our_own_words(key: str) -> None:
    assert redact.scrub(f"bad key {key}!") == "bad key ***!"
    assert redact.mask(f"bad key {key}!") == f"bad key {key}!"


def test_headers_and_addresses_are_masked_in_our_own_words() -> None:
    assert redact.scrub("Authorization: Bearer abcdefgh12345678") == "Authorization: Bearer ***"
    assert redact.scrub("x-api-key: abcdefgh12345678") == "x-api-key: ***"
    assert redact.scrub("http://ann:hunter22@host/x") == "http://***@host/x"
    assert redact.scrub("see http://host:8080/path") == "see http://host:8080/path"


def test_the_beginning_of_a_secret_is_held_back() -> None:
    redact.remember(["zq-held-back-secret"])
    assert redact.held_back("abc zq-held") == len("zq-held")
    assert redact.held_back("abc") == 0
    assert redact.held_back("zq-held-back-secret") == 0 or redact.mask("zq-held-back-secret") == "***"
