"""Attempts on the manifests of GPUs, and on saved endorsements, which the attacker supplies."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from attestkit._crypto.p384 import P384Key
from attestkit.backends.simulator.gpu.gpu_pki import GpuPki
from attestkit.backends.simulator.gpu.rim_writer import RimContent, RimResource, sign_rim
from attestkit.errors import CollateralError, GpuEvidenceError
from attestkit.gpu.endorsements import GpuEndorsements
from attestkit.gpu.result import GpuResult
from attestkit.gpu.rim.verification import verify_rim
from attestkit.gpu.rules import GpuRules
from tests.attacks.attempts import Surfaces, bound
from tests.gpu.simulated_machine import NONCE, NOW, endorsements, machine, verify_machine

attacks = Surfaces("gpu")
GPUS: Final = machine(1)
[OWN] = GPUS.devices
MODEL: Final = OWN.model
PKI: Final = GpuPki(GPUS.derive)
GOOD: Final = endorsements(GPUS)
DRIVER, VBIOS = sorted(GOOD.rims)
assert verify_machine(GPUS, endorsements=GOOD).devices[0].matched > 0
_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)


# -- manifests ---------------------------------------------------------------------------------

SIGNER_KEY, SIGNER = PKI.rim_signer(MODEL)


def content(indexes: tuple[int, ...], version: str, **changes: Any) -> RimContent:
    """Return the content of a genuine manifest."""
    golden = OWN.content(NONCE).measurements
    resources = tuple(
        RimResource(at in indexes, (golden[at] if at in indexes else bytes(48),))
        for at in range(MODEL.blocks)
    )
    return RimContent(MODEL.product, version, resources)._replace(**changes)


def with_rim(rim: bytes, identifier: str = DRIVER, **rules: Any) -> GpuResult:
    """Verify the machine with another manifest."""
    found = replace(GOOD, rims={**GOOD.rims, identifier: rim})
    return verify_machine(GPUS, endorsements=found, rules=GpuRules(**rules))


DRIVER_CONTENT: Final = content(MODEL.driver_indexes, MODEL.driver)
VBIOS_CONTENT: Final = content(MODEL.vbios_indexes, MODEL.vbios)
assert with_rim(sign_rim(DRIVER_CONTENT, SIGNER_KEY, SIGNER)).devices
L3: Final = PKI.rim_l3(MODEL)


@attacks.attempt("forge", GpuEvidenceError, "driver_rim_chain")
def manifest_signed_by_a_device() -> GpuResult:
    """The chain of a genuine GPU signs golden values of the attacker's."""
    return with_rim(sign_rim(DRIVER_CONTENT, OWN.device.key, OWN.device.chain[:4]))


@attacks.attempt("forge", GpuEvidenceError, "driver_rim_chain")
def manifest_signed_by_an_ocsp_responder() -> GpuResult:
    """A responder has a certificate of the same CA as the signer of manifests."""
    responder, certificate = PKI.responder(L3)
    return with_rim(sign_rim(DRIVER_CONTENT, responder, (certificate, *SIGNER[1:])))


@attacks.attempt("forge", GpuEvidenceError, "driver_rim_chain", "driver_rim_signature")
def manifest_signed_by_a_stranger_with_genuine_certificates() -> GpuResult:
    """The certificates are NVIDIA's, the key is not."""
    return with_rim(sign_rim(DRIVER_CONTENT, P384Key(77), SIGNER))


@attacks.attempt("recombine", GpuEvidenceError, "driver_rim_signature")
def signature_of_another_manifest() -> GpuResult:
    """The signed element of the VBIOS's manifest behind the content of the driver's."""
    driver, vbios = GOOD.rims[DRIVER], GOOD.rims[VBIOS]
    start = b"<ds:Signature "
    forged = driver[: driver.index(start)] + vbios[vbios.index(start) :]
    return with_rim(forged)


@attacks.attempt("recombine", GpuEvidenceError, "driver_rim_format", "driver_rim_signature")
def signed_manifest_inside_of_another_one() -> GpuResult:
    """The genuine document, with its signature, is a child of the attacker's."""
    evil = b"".join(sign_rim(DRIVER_CONTENT, SIGNER_KEY, SIGNER).partition(b"<ds:Signature ")[:1])
    return with_rim(evil + GOOD.rims[DRIVER] + b"</SoftwareIdentity>")


@attacks.attempt("confuse", GpuEvidenceError, "driver_rim_identity")
def manifest_whose_version_differs_in_case_and_space() -> GpuResult:
    """A version that only a lenient comparison takes for the device's."""
    return with_rim(
        sign_rim(DRIVER_CONTENT._replace(version=f"{MODEL.driver} "), SIGNER_KEY, SIGNER)
    )


@attacks.attempt("confuse", GpuEvidenceError, "measurements", "vbios_rim_format")
def manifests_that_claim_one_index() -> GpuResult:
    """The VBIOS's manifest names an index of the driver's, with another value."""
    at = MODEL.driver_indexes[0]
    evil = VBIOS_CONTENT.with_resource(at, RimResource(active=True, hashes=(b"\xee" * 48,)))
    return with_rim(sign_rim(evil, SIGNER_KEY, SIGNER), VBIOS)


def altered_rim(old: bytes, new: bytes) -> GpuResult:
    """Verify a manifest with another text."""
    rim = GOOD.rims[DRIVER]
    assert old in rim
    return with_rim(rim.replace(old, new, 1))


_XML: Final[dict[str, tuple[bytes, bytes]]] = {
    "entities that grow": (
        b"<SoftwareIdentity",
        b'<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><SoftwareIdentity',
    ),
    "document type in the second line": (b"<SoftwareIdentity", b"\n<!DOCTYPE a><SoftwareIdentity"),
    "comment in the payload": (b"<ns0:Payload>", b"<ns0:Payload><!-- -->"),
    "instruction in the payload": (b"<ns0:Payload>", b"<ns0:Payload><?php 1?>"),
    "second payload": (b"<ns0:Payload>", b"<ns0:Payload></ns0:Payload><ns0:Payload>"),
    "base address of XML": (b"<ns0:Payload>", b'<ns0:Payload xml:base="http://evil/">'),
    "byte order mark": (b"<SoftwareIdentity", b"\xef\xbb\xbf<SoftwareIdentity"),
    "encoding UTF-7": (
        b"<SoftwareIdentity",
        b'<?xml version="1.0" encoding="utf-7"?><SoftwareIdentity',
    ),
    "second version without a prefix": (b'edition="GPU"', b'edition="GPU" version="9"'),
    "reference to a part of the document": (b'URI=""', b'URI="#evil"'),
    "weaker digest": (b"xmldsig-more#sha384", b"xmldsig#sha1"),
    "signature by a shared secret": (b"xmldsig-more#ecdsa-sha384", b"xmldsig-more#hmac-sha384"),
    "transform by a stylesheet": (
        b"http://www.w3.org/2000/09/xmldsig#enveloped-signature",
        b"http://www.w3.org/TR/1999/REC-xslt-19991116",
    ),
}
for _name, (_old, _new) in _XML.items():
    attacks.add(
        "confuse",
        f"manifest with {_name}",
        bound(altered_rim, _old, _new),
        GpuEvidenceError,
        *("driver_rim_format", "driver_rim_signature"),
    )


@attacks.attempt("exhaust", GpuEvidenceError, "driver_rim_format")
def manifest_of_many_elements() -> GpuResult:
    """Half a megabyte of nested and empty elements."""
    return with_rim(b"<SoftwareIdentity>" + b"<a/>" * 100_000 + b"</SoftwareIdentity>")


@attacks.attempt("exhaust", GpuEvidenceError, "driver_rim_format")
def manifest_of_many_names_in_scope() -> GpuResult:
    """Namespaces that each level of elements inherits."""
    names = b" ".join(b'xmlns:n%d="http://x/%d"' % (at, at) for at in range(60))
    return with_rim(b"<a %s>" % names + b"<b/>" * 900 + b"</a>")


@attacks.attempt("replay", GpuEvidenceError, "driver_rim_chain")
def manifest_kept_beyond_the_end_of_its_signer() -> object:
    """A manifest that was verified when its signer was valid."""
    rim, root = GOOD.rims[DRIVER], GPUS.roots.rim
    assert verify_rim(rim, root, NOW) is verify_rim(rim, root, NOW)
    until = verify_rim(rim, root, NOW).valid_until
    return verify_machine(GPUS, now=until + timedelta(seconds=1), rules=GpuRules(ocsp="off"))


attacks.add(
    "confuse",
    "manifest whose identifier is a path",
    lambda: GpuEndorsements({"../../etc/passwd": b"x"}),
    CollateralError,
    "malformed",
)
attacks.add(
    "exhaust",
    "129 manifests",
    lambda: GpuEndorsements({f"NV_{at}": b"x" for at in range(129)}),
    CollateralError,
    "too_large",
)
attacks.add(
    "exhaust",
    "manifest of a megabyte",
    lambda: GpuEndorsements({"NV_A": bytes(1 << 20)}),
    CollateralError,
    "too_large",
)


def _document(**changes: object) -> object:
    return GpuEndorsements.from_json(json.dumps({**json.loads(GOOD.to_json()), **changes}))


assert _document() == GOOD
CHANGES: Final[dict[str, dict[str, Any]]] = {
    "endorsements of a later version": {"version": 2},
    "endorsements with an unknown member": {"trusted": True},
    "endorsements in another format": {"format": "x"},
    "manifests as a list": {"rims": ["a"]},
}
for _name, _change in CHANGES.items():
    attacks.add("confuse", _name, bound(_document, **_change), CollateralError, "malformed")
