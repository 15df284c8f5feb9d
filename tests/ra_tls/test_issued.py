"""Key and certificates come from an agent's answer, or the answer is refused by name."""

import json
from typing import Any

import pytest

from attestkit import ra_tls
from attestkit.errors import FormatError
from tests.ra_tls import tds


def agents_answer(**changes: object) -> dict[str, object]:
    """Return what an agent answers to GetTlsKey, a field changed; None leaves it out."""
    issued = tds.issued()
    fields = {"key": issued.key_pem, "certificate_chain": [*issued.certificate_chain], "more": 1}
    return {name: value for name, value in {**fields, **changes}.items() if value is not None}


def test_an_agents_answer() -> None:
    """GetTlsKey's JSON becomes key and chain, as the agent wrote them, and a context takes them."""
    answer = json.loads(json.dumps(agents_answer()))
    found = ra_tls.Issued.from_agent_response(answer)
    assert found.key_pem == answer["key"]
    assert found.certificate_chain == tuple(answer["certificate_chain"])
    ra_tls.server_context(issued=found)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"key": None}, "key: not a private key in PEM"),
        ({"key": 1}, "key: not"),
        ({"key": "SECRET"}, "key: not"),
        ({"key": tds.CA}, "key: not"),
        ({"certificate_chain": None}, "certificate_chain: not a list of 1 to 16"),
        ({"certificate_chain": []}, "certificate_chain: not a list"),
        ({"certificate_chain": tds.CA}, "certificate_chain: not a list"),
        ({"certificate_chain": [tds.CA] * 17}, "certificate_chain: not a list"),
        ({"certificate_chain": [tds.CA, 1]}, r"certificate_chain\[1\]: not text"),
        ({"certificate_chain": ["SECRET"]}, r"certificate_chain\[0\]: not a sequence of PEM"),
    ],
)
def test_answers_that_are_none(changes: dict[str, object], wanted: str) -> None:
    """A malformed answer is named by its field, and never shown."""
    with pytest.raises(FormatError, match=wanted) as caught:
        ra_tls.Issued.from_agent_response(agents_answer(**changes))
    assert "SECRET" not in str(caught.value)
    others: list[Any] = [None, [], "SECRET", {}]
    for other in others:
        with pytest.raises(FormatError):
            ra_tls.Issued.from_agent_response(other)
