"""URLs of a KMS get the path /prpc, and only https URLs without extras are accepted."""

from typing import Any

import pytest

from attestkit.errors import ConfigError, UsageError
from attestkit.kms import kms_base_url
from attestkit.kms.url import MAX_URL, KmsUrl, parse_kms_url
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.vectors import load, needs_shared

ROWS = load("kms.json").get("groups", {}).get("urls", {}).get("rows", [])


@needs_shared
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_base_url_of_vectors_matches(row: dict[str, Any]) -> None:
    """Every URL of the vectors has its base, or is refused."""
    if row["base"] is None:
        with raises(ConfigError, "wrong_value"):
            kms_base_url(row["url"])
    else:
        assert kms_base_url(row["url"]) == row["base"]
        assert kms_base_url(row["base"]) == row["base"]


@every_case(
    ("url", "parts"),
    [
        ("https://a", KmsUrl("https://a/prpc", "a", 443, "/prpc")),
        ("https://a:8000//", KmsUrl("https://a:8000/prpc", "a", 8000, "/prpc")),
        ("https://[::1]/x/prpc/", KmsUrl("https://[::1]/x/prpc", "::1", 443, "/x/prpc")),
        (
            "https://127.0.0.1/prpcs",
            KmsUrl("https://127.0.0.1/prpcs/prpc", "127.0.0.1", 443, "/prpcs/prpc"),
        ),
    ],
)
def test_url_is_split_into_parts(url: str, parts: KmsUrl) -> None:
    """Host, port and path of a URL are those of its base."""
    assert parse_kms_url(url) == parts


@every_case(
    "url",
    [
        "",
        "https://",
        "https:///prpc",
        "https://:8000",
        "https://a:",
        "https://a:0",
        "https://a:65536",
        "https://a:x",
        "https://[::1",
        "https://[fe80::1%25eth0]",
        "https://[v1.x]",
        "https://a b",
        "https://a\n",
        "https://a\\b",
        "https://a/\tb",
        "https://-a",
        "https://a-",
        "https://a..b",
        "https://a.",
        "https://" + "a" * 64,
        "https://" + ".".join(["a" * 63] * 4),
        "https://ä",
        "https://a/?",
        "https://a/#",
        "https://a/#b",
        "https://user@a",
        "ftp://a",
        "//a",
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    """Other schemes, users, queries, fragments and malformed hosts are refused."""
    with raises(ConfigError, "wrong_value"):
        parse_kms_url(url)


def test_long_url_is_refused() -> None:
    """A URL over the limit is refused before it is parsed."""
    with raises(ConfigError, "too_large"):
        parse_kms_url("https://a/" + "b" * MAX_URL)


def test_password_of_a_url_is_not_shown() -> None:
    """The error about a URL with a user does not contain the URL."""
    with pytest.raises(ConfigError) as caught:
        parse_kms_url("https://user:s3cret@kms.example.com")
    assert "s3cret" not in str(caught.value)


@every_case("value", [None, b"https://kms", 5, ["https://kms"]])
def test_url_of_another_type_is_usage_error(value: object) -> None:
    """Any text gives a base URL or a ConfigError."""
    with raises(UsageError, "wrong_type"):
        kms_base_url(untyped(value))
