"""Questions may go to another port of the server, or to another server."""

import pytest

from attestkit.client.origin import Origin, origin_of_question
from attestkit.errors import UsageError
from tests.raising import raises
from tests.runner.cases import every_case


@pytest.mark.parametrize("host", ["a.example", "::1"])
def test_another_port_of_the_own_host(host: str) -> None:
    """A port alone keeps the host."""
    assert origin_of_question(":29343", Origin(host, 443, "/v1")) == Origin(host, 29343)


def test_another_server() -> None:
    """A URL names both."""
    own = Origin("a.example", 443)
    assert origin_of_question("https://b.example", own) == Origin("b.example", 443)


@every_case("text", [":", ":x", ":0", ":99999", "http://b.example", ":1@b.example"])
def test_malformed_origin(text: str) -> None:
    """Neither a port nor an https URL: refused."""
    with raises(UsageError, "wrong_value", "plain_http"):
        origin_of_question(text, Origin("a.example", 443))
