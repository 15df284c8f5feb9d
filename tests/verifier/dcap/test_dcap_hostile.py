"""Whatever stands in collateral or in a certificate chain, only our errors come out."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.errors import AttestKitError, CollateralError
from attestkit.quote import Quote
from attestkit.verifier.dcap.tcb_levels import shortfall
from tests.keeping import Keeping
from tests.verifier.dcap.dcap_samples import (
    COLLATERAL,
    DCAP,
    NOW,
    PKI,
    QUOTE,
    RAW,
    changed,
    enclave,
    sign,
    without_chain,
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
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def attempt(quote: Quote, endorsements: Any, *, details: bool) -> None:
    """Authenticate and explain; either works or ends in an error of ours."""
    for ask in (
        lambda: DCAP.authenticate(quote, endorsements, NOW, details=details),
        lambda: shortfall(endorsements, quote),
    ):
        with Keeping(only=AttestKitError) as kept:  # any of ours is good
            ask()
        assert kept.error is None or str(kept.error)


@st.composite
def altered(draw: st.DrawFn, value: bytes) -> bytes:
    """Return `value` with a few bytes replaced, put in or taken out."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(value)))
        gone = draw(st.integers(0, 4))
        value = value[:at] + draw(st.binary(max_size=4)) + value[at + gone :]
    return value or b"\0"


@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("field", TEXTS)
@given(data=st.data())
def test_any_text(field: str, data: st.DataObject) -> None:
    """Any text in a field, and the right one with a few characters changed; surrogates too."""
    right = getattr(COLLATERAL, field) or PKI.platform().pck_chain
    near = altered(right.encode()).map(lambda value: value.decode("utf-8", "surrogateescape"))
    text = data.draw(st.text(min_size=1, max_size=200) | near)
    quote = Quote.parse(without_chain(RAW)) if field == "pck_certificate_chain" else QUOTE
    attempt(quote, changed(**{field: text}), details=data.draw(st.booleans()))


@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("field", BYTES)
@given(data=st.data())
def test_any_bytes(field: str, data: st.DataObject) -> None:
    """Any bytes in a field, and the right ones with a few changed."""
    right = getattr(COLLATERAL, field)
    size = 64 if field.endswith("_signature") else None
    anything = st.binary(min_size=size or 1, max_size=size or 200)
    value = data.draw(anything if size else anything | altered(right))
    attempt(QUOTE, changed(**{field: value}), details=data.draw(st.booleans()))


@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("body", ["tcb_info", "qe_identity"])
@given(data=st.data())
def test_any_signed_body(body: str, data: st.DataObject) -> None:
    """A body that is signed, and not what it should be: any value at any of its keys."""
    content = json.loads(getattr(COLLATERAL, body))
    for key in data.draw(st.sets(st.sampled_from(sorted(content)), min_size=1, max_size=2)):
        content[key] = data.draw(JSON)
    text = json.dumps(content)
    given_ = changed(**{body: text, f"{body}_signature": sign(text)})
    attempt(QUOTE, given_, details=data.draw(st.booleans()))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_chain_in_the_quote(data: st.DataObject) -> None:
    """Certification data of any kind, and the right ones with a few bytes changed."""
    right = PKI.platform().pck_chain.encode() + b"\0"
    chain = data.draw(st.binary(max_size=200) | altered(right))
    attempt(Quote.parse(enclave(certification=chain)), COLLATERAL, details=False)


@pytest.mark.parametrize("field", TEXTS)
def test_text_that_cannot_be_written(field: str) -> None:
    """Half a character, which no encoding has, ends in an error of ours."""
    quote = Quote.parse(without_chain(RAW)) if field == "pck_certificate_chain" else QUOTE
    with pytest.raises(CollateralError):
        DCAP.authenticate(quote, changed(**{field: "\ud800"}), NOW)


def test_deep_json_is_refused_before_a_parser_sees_it() -> None:
    """A hundred thousand brackets end in an error and not the process."""
    for text in ("[" * 100_000, '{"tcbLevels":' + '{"a":' * 100_000):
        for field in ("tcb_info", "qe_identity"):
            attempt(QUOTE, changed(**{field: text}), details=True)
