"""Hosts of URLs are names or addresses, written as URLs have them."""

from urllib.parse import urlsplit

from attestkit._formats.host_names import is_host
from tests.runner.cases import every_case


@every_case("netloc", ["a", "a.b-c.d_e", "127.0.0.1:1", "[::1]", "[2001:db8::1]:443"])
def test_names_and_addresses(netloc: str) -> None:
    """Names, IPv4 addresses, and IPv6 addresses in brackets are hosts."""
    assert is_host(netloc, urlsplit(f"https://{netloc}").hostname or "")


@every_case(
    ("netloc", "host"),
    [
        ("", ""),
        ("a..b", "a..b"),
        ("a.", "a."),
        ("-a", "-a"),
        ("a-", "a-"),
        ("a" * 64, "a" * 64),
        ("a." * 127 + "a", "a." * 127 + "a"),
        ("a\n", "a\n"),
        ("[a]", "a"),
        ("::1", "::1"),
        ("[::1%25eth0]", "::1%25eth0"),
        ("[::g]", "::g"),
    ],
)
def test_others_are_refused(netloc: str, host: str) -> None:
    """Empty labels, long names, brackets around names, and zones are refused."""
    assert not is_host(netloc, host)
