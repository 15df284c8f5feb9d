"""Options of `connect` for certain services: headers of the question, and fields that stay open."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

import attestkit
from attestkit.errors import UsageError
from attestkit.testing import AttestedServer
from tests.runner.cases import every_case


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


@every_case(
    ("name", "value", "reason"),
    [
        ("timeout", 0, "out_of_range"),
        ("timeout", -1, "out_of_range"),
        ("timeout", float("nan"), "out_of_range"),
        ("timeout", float("inf"), "out_of_range"),
        ("timeout", "10", "wrong_type"),
        ("timeout", None, "wrong_type"),
        ("max_age", timedelta(0), "out_of_range"),
        ("max_age", timedelta.max, "out_of_range"),
        ("max_age", 3600, "wrong_type"),
    ],
)
def test_limits_are_checked_first(name: str, value: Any, reason: str) -> None:
    """A limit of another type or range is refused before anything is connected."""
    with pytest.raises(UsageError) as refused:
        attestkit.connect("https://127.0.0.1:1", policy="hardware-only", **{name: value})
    assert refused.value.reason == reason
