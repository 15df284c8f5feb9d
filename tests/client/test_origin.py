"""URLs of servers: https alone, without what would be lost or leak."""

from hypothesis import given
from hypothesis import strategies as st

from attestkit.client.origin import MAX_URL, Origin
from attestkit.errors import UsageError
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped


@every_case(
    ("url", "expected", "authority"),
    [
        ("https://a.example", Origin("a.example", 443), "a.example"),
        ("https://a.example/", Origin("a.example", 443), "a.example"),
        ("https://a.example:443/v1/", Origin("a.example", 443, "/v1"), "a.example"),
        ("HTTPS://A.Example:8443/v1", Origin("a.example", 8443, "/v1"), "a.example:8443"),
        ("https://127.0.0.1:1", Origin("127.0.0.1", 1), "127.0.0.1:1"),
        ("https://[::1]:8443", Origin("::1", 8443), "[::1]:8443"),
        ("https://[2001:DB8::1]", Origin("2001:db8::1", 443), "[2001:db8::1]"),
        ("https://a_b.example.", Origin("a_b.example.", 443), "a_b.example."),
    ],
)
def test_urls(url: str, expected: Origin, authority: str) -> None:
    """Host, port and path; the origin's URL is one, too."""
    origin = Origin.of(url)
    assert origin == expected
    assert origin.authority == authority
    assert Origin.of(origin.url) == expected._replace(path="")


@every_case(
    ("url", "reason"),
    [
        ("http://a.example", "plain_http"),
        ("HTTP://a.example", "plain_http"),
        ("ws://a.example", "wrong_value"),
        ("a.example", "wrong_value"),
        ("", "encoding"),
        ("https://", "wrong_value"),
        ("https:///path", "wrong_value"),
        ("https://:443", "wrong_value"),
        ("https://a.example:", "wrong_value"),
        ("https://a.example:0", "wrong_value"),
        ("https://a.example:65536", "wrong_value"),
        ("https://a.example:+443", "wrong_value"),
        ("https://a.example:4_4", "wrong_value"),
        ("https://a.example:x", "wrong_value"),
        ("https://user:secret@a.example", "wrong_value"),
        ("https://a.example?query", "wrong_value"),
        ("https://a.example?", "wrong_value"),
        ("https://a.example#part", "wrong_value"),
        ("https://a.example/#", "wrong_value"),
        ("https://a..example", "wrong_value"),
        ("https://-a.example", "wrong_value"),
        ("https://" + "a" * 64, "wrong_value"),
        ("https://a%2eexample", "wrong_value"),
        ("https://[::1%25eth0]", "wrong_value"),
        ("https://[::1", "wrong_value"),
        ("https://[a.example]", "wrong_value"),
        ("https://a.example\\@b.example", "wrong_value"),
        ("https://a.example\\b", "encoding"),
        ("https://a.example/\n", "encoding"),
        ("https://a.example/ b", "encoding"),
        ("https://ä.example", "encoding"),
        ("https://a.example/" + "a" * MAX_URL, "too_large"),
    ],
)
def test_other_urls(url: str, reason: str) -> None:
    """Each is refused, without a request."""
    with raises(UsageError, reason):
        Origin.of(url)


def test_password_is_not_shown() -> None:
    """The text of the error has nothing of a URL with a user."""
    with raises(UsageError, "wrong_value") as caught:
        Origin.of("https://user:secret@a.example")
    assert "secret" not in str(caught.value)
    with raises(UsageError, "wrong_type"):
        Origin.of(untyped(b"https://a.example"))


@given(st.text(max_size=40) | st.text("https:/[]@.:a0%?#\\", max_size=30).map("https://".__add__))
def test_any_text(text: str) -> None:
    """It is refused, or the origin of its own URL is the same, and host and port are sound."""
    try:
        origin = Origin.of(text)
    except UsageError:
        return
    assert Origin.of(origin.url + origin.path) == origin
    assert 0 < origin.port < 1 << 16
    assert not set(origin.host) & set("/@?#[]\\ ")
