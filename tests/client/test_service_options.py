"""Options of `connect` for certain services: headers of the question, and fields that stay open."""

from collections.abc import Callable

import pytest

import attestkit
from attestkit.errors import UsageError
from attestkit.testing import AttestedServer


def test_evidence_headers_are_sent_and_told(
    attested_server: Callable[..., AttestedServer],
) -> None:
    """They go with the question alone, and the proof says that the server was not proven yet."""
    server = attested_server()
    headers = {"Authorization": "Bearer of-a-service"}
    with (
        attestkit.connect(
            server.url, policy=server.policy, server_ca=server.ca, evidence_headers=headers
        ) as endpoint,
        endpoint.client() as client,
    ):
        client.get("/")
    assert b"Bearer of-a-service" in server.received[0] + server.received[1]
    assert not any(b"of-a-service" in str(one.headers).encode() for one in server.requests)
    assert any("headers" in text for text in endpoint_gaps(server, headers))


def endpoint_gaps(server: AttestedServer, headers: dict[str, str]) -> tuple[str, ...]:
    """Return what the proof does not show."""
    with attestkit.connect(
        server.url, policy=server.policy, server_ca=server.ca, evidence_headers=headers
    ) as endpoint:
        return endpoint.proof.not_proven


@pytest.mark.parametrize("encrypt", [False, True])
def test_open_fields_need_a_service_that_seals_fields(
    attested_server: Callable[..., AttestedServer], *, encrypt: bool
) -> None:
    """Nothing is asked of a server to which no single fields can be sealed."""
    server = attested_server()
    with pytest.raises(UsageError) as refused:
        attestkit.connect(
            server.url,
            policy=server.policy,
            server_ca=server.ca,
            encrypt=encrypt,
            allow_open=["user"],
        )
    assert refused.value.reason == "not_applicable"
    assert server.documents == 0
