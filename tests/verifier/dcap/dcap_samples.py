"""The simulated PKI of the DCAP tests, its evidence, and altered collateral."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from struct import pack
from typing import Any, Final

from attestkit._crypto.pem import encode_pem
from attestkit._crypto.x509.simulated.certificate_encoder import Window
from attestkit._crypto.x509.simulated.sgx_certificates import Authority, issue_certificate
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.pki.quoting_enclave import QuotingEnclave, TdBody
from attestkit.backends.simulator.scenarios.config import (
    CollateralConfig,
    CrlConfig,
    PkiConfig,
    QeIdentityConfig,
    QuoteConfig,
    TcbInfoConfig,
)
from attestkit.collateral import Collateral
from attestkit.errors import AttestKitError
from attestkit.quote import Quote
from attestkit.verifier.claims import Authenticated
from attestkit.verifier.dcap.engine import Dcap
from tests.vectors import SHARED

NOW: Final = 1790000000
PKI: Final = SimulatedPki(bytes(range(32)))
OTHER: Final = SimulatedPki(bytes(range(32, 64)))
ROOT: Final = PKI.root_der
COLLATERAL: Final = PKI.collateral(NOW)
RAW: Final = QuotingEnclave(PKI).quote(TdBody().td10())
QUOTE: Final = Quote.parse(RAW)
DCAP: Final = Dcap(ROOT)
REAL: Final = SHARED / "data" / "quotes" / "dcap-qvl"
TCB_SIGNER: Final = "Intel SGX TCB Signing"
PAST: Final = datetime.fromtimestamp(NOW - 1, timezone.utc)
FUTURE: Final = datetime.fromtimestamp(NOW + 1, timezone.utc)


def authenticate(
    quote: bytes = RAW,
    collateral: Collateral = COLLATERAL,
    *,
    now: int = NOW,
    root: bytes = ROOT,
) -> Authenticated:
    """Return the verified claims of a quote under the simulator's root."""
    dcap = DCAP if root is ROOT else Dcap(root)
    return dcap.authenticate(Quote.parse(quote), collateral, now)


def get_rejection(
    quote: bytes = RAW,
    collateral: Collateral = COLLATERAL,
    *,
    now: int = NOW,
    root: bytes = ROOT,
) -> AttestKitError:
    """Return the error of an authentication that must fail."""
    try:
        accepted = authenticate(quote, collateral, now=now, root=root)
    except AttestKitError as error:
        return error
    raise AssertionError(f"accepted as {accepted.status}")


def collateral(**config: Any) -> Collateral:
    """Return the simulator's collateral with another configuration."""
    return PKI.collateral(NOW, CollateralConfig(**config))


def create_tcb_info(**config: Any) -> Collateral:
    """Return the simulator's collateral with this TCB info configuration."""
    return collateral(tcb_info=TcbInfoConfig(**config))


def create_qe_identity(**config: Any) -> Collateral:
    """Return the simulator's collateral with this QE identity configuration."""
    return collateral(qe_identity=QeIdentityConfig(**config))


def create_crl(kind: str, **config: Any) -> Collateral:
    """Return the simulator's collateral with this configuration of `root_crl` or `pck_crl`."""
    return collateral(**{kind: CrlConfig(**config)})


def replace_collateral(**fields: Any) -> Collateral:
    """Return the simulator's collateral with other fields."""
    return replace(COLLATERAL, **fields)


def create_td_quote(**fields: bytes) -> bytes:
    """Return the quote of a TD with these fields; TDX 1.5 if a field requires it."""
    body = TdBody(**fields)
    if {"tee_tcb_svn2", "mr_service_td"} & fields.keys():
        return QuotingEnclave(PKI).quote(body.td15(), version=5)
    return QuotingEnclave(PKI).quote(body.td10())


def create_enclave_quote(pki: SimulatedPki = PKI, **config: Any) -> bytes:
    """Return a quote of a quoting enclave with this configuration."""
    return QuotingEnclave(pki, config=QuoteConfig(**config)).quote(TdBody().td10())


def create_pki(**config: Any) -> SimulatedPki:
    """Return the same PKI with other certificates."""
    return SimulatedPki(bytes(range(32)), config=PkiConfig(**config))


def tcb_info(alter: Callable[[dict[str, Any]], object]) -> Collateral:
    """Return signed collateral with altered TCB info."""
    text = _alter_json(COLLATERAL.tcb_info, alter)
    return replace(COLLATERAL, tcb_info=text, tcb_info_signature=sign(text))


def qe_identity(alter: Callable[[dict[str, Any]], object]) -> Collateral:
    """Return signed collateral with an altered QE identity."""
    text = _alter_json(COLLATERAL.qe_identity, alter)
    return replace(COLLATERAL, qe_identity=text, qe_identity_signature=sign(text))


def _alter_json(text: str, alter: Callable[[dict[str, Any]], object]) -> str:
    body = json.loads(text)
    alter(body)
    return json.dumps(body, separators=(",", ":"))


def sign(text: str, key: str = "tcb-signing") -> bytes:
    """Return a signature over `text` by the PKI's key with that label."""
    return PKI.key(key).sign(text.encode())


def issue_signer(
    name: str = TCB_SIGNER,
    *,
    validity: Window | None = None,
    path_length: int | None = None,
    issuer: SimulatedPki = PKI,
) -> bytes:
    """Return another certificate of the TCB signer's key, issued by the root of `issuer`."""
    config = PKI.config
    return issue_certificate(
        Authority(name, PKI.key("tcb-signing")),
        Authority("Intel SGX Root CA", issuer.key("root-ca")),
        serial=0x4000_0000_0000,
        validity=validity or Window(config.not_before, config.not_after),
        crl_url="https://pcs.attestkit.invalid/IntelSGXRootCA.der",
        path_length=path_length,
    )


def pem(*certificates: bytes) -> str:
    """Return certificates in PEM."""
    return "".join(encode_pem("CERTIFICATE", der) for der in certificates)


def remove_pck_chain(quote: bytes, kind: int = 3) -> bytes:
    """Return a version 4 quote whose certification data is not a PCK chain."""
    sizes = {1: 36, 2: 276, 3: 404, 4: 500}
    inner = quote[770:1252] + pack("<HI", kind, sizes[kind]) + bytes(sizes[kind])
    signed = quote[636:764] + pack("<HI", 6, len(inner)) + inner
    return quote[:632] + pack("<I", len(signed)) + signed


def load_hardware_quote(name: str) -> tuple[Quote, Collateral]:
    """Return a shared hardware quote with its collateral."""
    path = REAL / name
    raw = (
        path.read_bytes()
        if path.exists()
        else bytes.fromhex((REAL / f"{name}_hex.txt").read_text())
    )
    return Quote.parse(raw), Collateral.load(REAL / f"{name}_collateral.json")
