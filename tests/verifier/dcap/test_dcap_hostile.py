"""Tests of malformed collateral and certificate chains: only attestkit's errors are raised."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.backends.simulator.scenarios.config import TcbLevel
from attestkit.errors import AttestKitError, CollateralError, SignatureError
from attestkit.quote import Quote
from tests.concurrency.keeping import Keeping
from tests.raising import raises
from tests.runner.cases import every_case
from tests.verifier.dcap.dcap_samples import (
    COLLATERAL,
    DCAP,
    NOW,
    PKI,
    QUOTE,
    RAW,
    create_enclave_quote,
    create_qe_identity,
    pem,
    remove_pck_chain,
    replace_collateral,
    sign,
)

TEXTS = [
    "pck_crl_issuer_chain",
    "tcb_info_issuer_chain",
    "tcb_info",
    "qe_identity_issuer_chain",
    "qe_identity",
    "pck_certificate_chain",
]
BYTES = ["root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature"]
# Characters of JSON, PEM and hex; all of Unicode takes seconds to set up.
LETTERS = '{}[]":,-0189BEGINacefz+/= \n\u0660\ud800'
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(LETTERS, max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(LETTERS, max_size=5), inner)
    ),
    max_leaves=6,
)


def check_errors(quote: Quote, endorsements: Any) -> None:
    """Authenticate and explain; each succeeds or raises an AttestKitError."""
    for call in (
        lambda: DCAP.authenticate(quote, endorsements, NOW),
        lambda: DCAP.explain(quote, endorsements),
    ):
        with Keeping(only=AttestKitError) as outcome:
            call()
        assert outcome.error is None or str(outcome.error)


@st.composite
def alter_bytes(draw: st.DrawFn, value: bytes) -> bytes:
    """Return `value` with a few bytes replaced, inserted or removed."""
    for _ in range(draw(st.integers(1, 3))):
        offset = draw(st.integers(0, len(value)))
        removed = draw(st.integers(0, 4))
        value = value[:offset] + draw(st.binary(max_size=4)) + value[offset + removed :]
    return value or b"\0"


@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("field", [*TEXTS, *BYTES])
@given(data=st.data())
def test_collateral_any_field_raises_only_attestkit_errors(field: str, data: st.DataObject) -> None:
    """A random field, or a valid one with a few bytes changed, raises only attestkit's errors."""
    valid = getattr(COLLATERAL, field) or PKI.platform().pck_chain
    value: object
    if field.endswith("_signature"):
        value = data.draw(st.binary(min_size=64, max_size=64))
    elif isinstance(valid, bytes):
        value = data.draw(st.binary(min_size=1, max_size=200) | alter_bytes(valid))
    else:
        similar = alter_bytes(valid.encode()).map(
            lambda altered: altered.decode("utf-8", "surrogateescape")
        )
        value = data.draw(st.text(LETTERS, min_size=1, max_size=200) | similar)
    quote = Quote.parse(remove_pck_chain(RAW)) if field == "pck_certificate_chain" else QUOTE
    check_errors(quote, replace_collateral(**{field: value}))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("body", ["tcb_info", "qe_identity"])
@given(data=st.data())
def test_signed_body_any_value_raises_only_attestkit_errors(body: str, data: st.DataObject) -> None:
    """A signed body with any JSON values raises only attestkit's errors."""
    content = json.loads(getattr(COLLATERAL, body))
    for key in data.draw(st.sets(st.sampled_from(sorted(content)), min_size=1, max_size=2)):
        content[key] = data.draw(JSON)
    text = json.dumps(content)
    endorsements = replace_collateral(**{body: text, f"{body}_signature": sign(text)})
    check_errors(QUOTE, endorsements)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_pck_chain_any_bytes_raise_only_attestkit_errors(data: st.DataObject) -> None:
    """Any certification data raises only attestkit's errors."""
    valid = PKI.platform().pck_chain.encode() + b"\0"
    chain = data.draw(st.binary(max_size=200) | alter_bytes(valid))
    check_errors(Quote.parse(create_enclave_quote(certification=chain)), COLLATERAL)


@every_case("field", TEXTS)
def test_collateral_lone_surrogate_is_rejected(field: str) -> None:
    """A lone surrogate in a chain is malformed; a body that has one is not signed."""
    quote = Quote.parse(remove_pck_chain(RAW)) if field == "pck_certificate_chain" else QUOTE
    with pytest.raises(SignatureError if field in {"tcb_info", "qe_identity"} else CollateralError):
        DCAP.authenticate(quote, replace_collateral(**{field: "\ud800"}), NOW)


def test_collateral_deep_json_raises_attestkit_error() -> None:
    """JSON nested 100,000 levels deep does not exhaust the stack."""
    for text in ("[" * 100_000, '{"tcbLevels":' + '{"a":' * 100_000):
        for field in ("tcb_info", "qe_identity"):
            check_errors(QUOTE, replace_collateral(**{field: text}))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [b"Intel SGX TCB \xff\xfegning", b"Intel SGX TCB S\x1b[31mg"])
def test_signer_with_unreadable_name_is_rejected(name: bytes) -> None:
    """An error escapes the name of a signer that has control characters or invalid UTF-8."""
    signer = PKI.tcb_signing_der.replace(b"Intel SGX TCB Signing", name)
    assert signer != PKI.tcb_signing_der
    altered = replace_collateral(tcb_info_issuer_chain=pem(signer, PKI.root_der))
    with raises(SignatureError, "unexpected_subject") as caught:
        DCAP.authenticate(QUOTE, altered, NOW)
    assert str(caught.value).isprintable()


def test_advisories_are_escaped_and_cut_in_texts() -> None:
    """Advisories, which are signed text of any length, are escaped and cut in steps and errors."""
    advisories = ("\x1b[31m" * 1000, "\u00e9")
    for status in ("OutOfDate", "Revoked"):
        level = TcbLevel(4, "2026-05-01T00:00:00Z", status, advisories)
        given = create_qe_identity(levels=(level,))
        try:
            text = DCAP.authenticate(QUOTE, given, NOW).steps[-1].text
        except AttestKitError as error:
            text = str(error)
        assert text.isascii()
        assert text.isprintable()
        assert len(text) < 500
