"""Evidence of dstack guests in answers: the app compose is the measured one, or refused."""

import json

import pytest

from attestkit._crypto.hashes import sha256
from attestkit.attestation import Attestation
from attestkit.attestation.launch.mr_config import config_id_v1
from attestkit.client.services.dstack_evidence import (
    app_id_of,
    check_app_compose,
    object_of_text,
    read_dstack_evidence,
)
from attestkit.errors import FormatError
from attestkit.testing import SimulatedTee
from tests.raising import raises

COMPOSE = '{"manifest_version":2,"name":"a","runner":"docker-compose"}'
CONFIG_ID = slice(232, 280)  # of a TDX quote, version 4


@pytest.fixture
def evidence() -> Attestation:
    """Evidence of a guest with this app."""
    with SimulatedTee(app_compose=COMPOSE.encode()) as tee:
        found = tee.attest(report_data=bytes(64))
    assert found.quote is not None
    return found


def sealed(evidence: Attestation, compose: str) -> bytes:
    """Return the quote with an app compose in MR_CONFIG_ID; its signature is not of interest."""
    assert evidence.quote is not None
    quote = bytearray(evidence.quote.raw)
    quote[CONFIG_ID] = config_id_v1(sha256(compose.encode()))
    return bytes(quote)


def test_log_may_be_text_or_a_list(evidence: Attestation) -> None:
    """Both forms of the log are read; without one the quote is all."""
    assert evidence.quote is not None
    quote, text = evidence.quote.raw, evidence.event_log.to_json()
    for log in (text, json.loads(text)):
        found = read_dstack_evidence(quote, log, {"a": 1}, "answer")
        assert isinstance(found, Attestation)
        assert found.event_log == evidence.event_log
        assert json.loads(found.config) == {"a": 1}
        assert app_id_of(found, "answer") == evidence.app_info.app_id
        check_app_compose(found, COMPOSE, "answer")
        check_app_compose(found, None, "answer")
    assert read_dstack_evidence(quote, None, None, "answer") == quote
    assert app_id_of(quote, "answer") is None


def test_other_app_than_the_logged_or_sealed_one(evidence: Attestation) -> None:
    """An app compose has to be that of the event, and of MR_CONFIG_ID, where there is one."""
    with raises(FormatError, "inconsistent"):
        check_app_compose(evidence, COMPOSE + " ", "answer")
    check_app_compose(sealed(evidence, COMPOSE), COMPOSE, "answer")
    with raises(FormatError, "inconsistent"):
        check_app_compose(sealed(evidence, COMPOSE + " "), COMPOSE, "answer")


@pytest.mark.parametrize(("compose", "reason"), [({}, "wrong_type"), ("\ud800", "encoding")])
def test_app_compose_is_text(evidence: Attestation, compose: object, reason: str) -> None:
    """Its bytes are hashed, so that it has to be text."""
    with raises(FormatError, reason):
        check_app_compose(evidence, compose, "answer")


def test_object_or_its_text() -> None:
    """Some services send an object, others its JSON text."""
    assert object_of_text('{"a":1}', "x") == object_of_text({"a": 1}, "x") == {"a": 1}
    wrong: tuple[object, ...] = (None, [], "[]")
    for value in wrong:
        with raises(FormatError, "wrong_type"):
            object_of_text(value, "x")
