"""Key and certificates are read from an agent's response, or the response is rejected by field."""

import json
from typing import Any

from attestkit import ra_tls
from attestkit.errors import FormatError
from tests.ra_tls import tds
from tests.raising import raises
from tests.runner.cases import every_case


def agent_response(**changes: object) -> dict[str, object]:
    """Return a GetTlsKey response with changed fields; None removes one."""
    issued = tds.issue()
    fields = {"key": issued.key_pem, "certificate_chain": [*issued.certificate_chain], "more": 1}
    return {name: value for name, value in {**fields, **changes}.items() if value is not None}


def test_issued_from_agent_response_is_usable() -> None:
    """GetTlsKey's JSON gives key and chain unchanged, and a context accepts them."""
    answer = json.loads(json.dumps(agent_response()))
    found = ra_tls.Issued.from_agent_response(answer)
    assert found.key_pem == answer["key"]
    assert found.certificate_chain == tuple(answer["certificate_chain"])
    ra_tls.server_context(issued=found)


@every_case(
    ("changes", "reason", "field"),
    [
        ({"key": None}, "missing", "key"),
        ({"key": "SECRET"}, "syntax", "key"),
        ({"key": tds.CA}, "syntax", "key"),
        ({"certificate_chain": None}, "missing", "certificate_chain"),
        ({"certificate_chain": []}, "wrong_size", "certificate_chain"),
        ({"certificate_chain": [tds.CA] * 17}, "wrong_size", "certificate_chain"),
        ({"certificate_chain": [tds.CA, 1]}, "wrong_type", "certificate_chain[1]"),
        ({"certificate_chain": ["SECRET"]}, "syntax", "certificate_chain[0]"),
    ],
)
def test_issued_from_malformed_response_names_field(
    changes: dict[str, object], reason: str, field: str
) -> None:
    """The error names the field and contains no value."""
    with raises(FormatError, reason, start=f"{field}: ") as caught:
        ra_tls.Issued.from_agent_response(agent_response(**changes))
    assert "SECRET" not in str(caught.value)
    others: list[Any] = [None, [], "SECRET", {}]
    for other in others:
        with raises(FormatError, "missing" if other == {} else "wrong_type"):
            ra_tls.Issued.from_agent_response(other)
