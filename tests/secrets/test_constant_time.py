"""No secret is compared with `==`, `in` or a look-up, which stop at the first different byte.

Secrets and attested values are recognised by the names of variables and attributes, and through
conversions such as hex. Other names are not recognised, except in files that compare in constant
time already; comparisons in C and in libraries are not checked.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.runner.cases import every_case

PACKAGE = Path(__file__).resolve().parents[2] / "attestkit"
# They compare measurements of public files only, and import no keys.
WITHOUT_SECRETS = ("measure/", "verifier/images/")
# Suffixes of names and attributes whose bytes or hex an attacker could guess step by step.
# No `tag`: here these are DER and CBOR tags; AES-GCM tags stay inside the library.
GUESSABLE = (
    *("secret", "seed", "mac", "hmac", "token", "password", "scalar", "nonce"),
    *("private_key", "k256_key", "ca_key", "env_crypt_key", "disk_crypt_key"),
    *("report_data", "host_data", "chip_id", "digest", "hash", "spki_der", "signature"),
)
# Comparisons of values known to both sides, by reason.
PUBLIC_BY_REASON = {
    "public keys, and the form of a key or token": {
        ("_crypto/x509/app_certificates.py", "certificate.spki_der != spki_der"),
        ("kms/release/state_folder.py", "certificate.spki_der != key.spki_der"),
        ("kms/cert_request.py", "request.pubkey != key.spki_der"),
        ("serve/kms_service/onboarding.py", "ca_key.spki_der != root"),
        (
            "verifier/dcap/engine.py",
            (
                "self._enclaves.get((key.point, parts.qe_report, parts.qe_report_signature, "
                "parts.attestation_key, parts.qe_auth_data), lambda: _certified_key(parts, key), "
                "store=len(parts.qe_auth_data) <= _LARGE_AUTH_DATA)"
            ),
        ),
        (
            "verifier/dcap/verified_collateral.py",
            (
                "self._tcb_infos.get((given.tcb_info, given.tcb_info_signature, signer.der), "
                "lambda: _signed_tcb_info(given, signer), store=store)"
            ),
        ),
        (
            "verifier/dcap/verified_collateral.py",
            (
                "self._qe_identities.get((given.qe_identity, given.qe_identity_signature, "
                "qe_signer.der), lambda: _signed_qe_identity(given, qe_signer), store=store)"
            ),
        ),
        ("verifier/ear/signed_token.py", "token.startswith(bytes([_TAG]))"),
    },
    "one part of a document and another part of it": {
        ("verifier/dcap/engine.py", "report[_REPORT_DATA] != digest + _UPPER_HALF"),
        ("verifier/dcap/engine.py", "report[_REPORT_DATA]"),
        (
            "_native/_python_quote.py",
            "report_data != sha256(key + data[auth:auth + auth_size]).digest() + bytes(32)",
        ),
        ("attestation/launch/os_image.py", "(actual := sha256(checksums)) != os_image_hash"),
        ("verifier/os_image.py", "images.find(image_hash)"),
        ("attestation/coco/platforms.py", "user_data == report_data"),
        ("event_log/ima.py", "digest_of(_measured(record)) != record.digest"),
        ("event_log/__init__.py", "wire.digest != event.digest"),
        ("event_log/__init__.py", "event.digest not in (own, b'')"),
        ("event_log/runtime_events.py", "hashlib.sha384(preimage).digest() != wire.digest"),
        ("keys/agent_keys.py", "first != signature"),
        ("td_report.py", "sha384(report.raw[_TCB_INFO]).digest() != report.tee_tcb_info_hash"),
        ("td_report.py", "sha384(report.raw[_TD_INFO]).digest() != report.tee_info_hash"),
    },
    "an OID, and slices of a report": {
        ("_crypto/x509/ocsp/request.py", "extensions.get(NONCE)"),
        ("gpu/device/report.py", "data[_NONCE]"),
        ("gpu/device/report.py", "report[_NONCE]"),
    },
    "lengths": {
        ("backends/dstack_agent/backend.py", "len(report_data) != _REPORT_DATA"),
        ("collateral/intel_collateral.py", "len(value) != _SIGNATURE"),
        ("verifier/policy/vtpm_rules.py", "len(one) == _DIGEST"),
        ("verifier/policy/vtpm_rules.py", "len(one) != _DIGEST"),
    },
    "a quote that this process requested, a public file, or values after the verification": {
        ("backends/azure/backend.py", "signed != report.report_data"),
        ("cli/doctor/examine.py", "signed == report_data"),
        ("serve/listener_apps.py", "request.query == b'v=%s' % digest.encode('ascii')"),
        (
            "verifier/ear/token_claims.py",
            "result.claims.os_image_hash in (policy.os_image_hash or ())",
        ),
    },
    "assertions of tests": {
        ("testing/contract.py", "SnpReport.parse(evidence.report).report_data == _REPORT_DATA"),
        ("testing/contract.py", "evidence.report_data == _REPORT_DATA"),
        ("testing/contract.py", "made.report_data == _REPORT_DATA"),
        ("testing/contract.py", "parsed.report_data == report_data"),
    },
    "what a service shows to everybody, compared with itself": {
        ("client/sealing/aci_e2ee.py", "one != self._digest"),
        ("client/services/aci/aci.py", "claims.keys[KEYSET_DIGEST]"),
        ("client/services/bound.py", "_NONCE in self._path"),
        (
            "client/services/vllm/vllm_proxy.py",
            "report.machine.report_data == other.machine.report_data",
        ),
        ("client/proofs/trust.py", "binding.report_data != machine.report_data"),
    },
}
PUBLIC = frozenset().union(*PUBLIC_BY_REASON.values())
# Number of constant-time comparisons per file, whatever the names.
CONSTANT_TIME = {
    "_crypto/ecdsa.py": 1,
    "_crypto/x509/ocsp/check.py": 1,
    "attestation/app_info.py": 1,
    "attestation/azure.py": 1,
    "attestation/coco/platforms.py": 1,
    "attestation/gcp.py": 3,
    "attestation/launch/os_image.py": 1,  # of all measurements and host data
    "attestation/wire/agent_response.py": 1,
    "attester/evidence_source.py": 1,
    "attester/snp_source.py": 1,
    "backends/azure/backend.py": 1,
    "backends/dstack_agent/backend.py": 1,
    "backends/gcp/backend.py": 1,
    "backends/nitro_tpm.py": 1,
    "backends/simulator/software_tpm/model/authorization.py": 2,
    "backends/simulator/software_tpm/model/commands/key_commands.py": 1,
    "backends/simulator/td_reports.py": 1,
    "backends/tdx/device.py": 1,
    "backends/tpm/hmac_session.py": 1,
    "backends/tpm/quote_reader.py": 2,
    "cli/commands/env.py": 1,
    "cli/file_verifier.py": 1,
    "client/document.py": 1,
    "client/proofs/appraisal.py": 1,
    "client/services/aci/aci.py": 3,
    "client/services/aci/aci_keyset.py": 2,
    "client/services/vllm/answer_signatures.py": 2,
    "client/services/vllm/vllm_report.py": 4,
    "client/services/dstack_evidence.py": 2,
    "client/services/own_document.py": 1,
    "client/services/ra_tls.py": 1,
    "client/services/secretvm.py": 3,
    "client/services/tinfoil/tinfoil.py": 4,
    "client/services/tinfoil/tinfoil_documents.py": 4,
    "client/services/vllm/near_ai.py": 3,
    "client/wire/observed_peer.py": 1,
    "event_log/ima.py": 1,
    "backends/gcp/event_logs.py": 3,
    "gpu/checks/device_checks.py": 2,
    "gpu/checks/rim_checks.py": 2,
    "gpu/collection.py": 1,
    "gpu/device/topology.py": 1,
    "gpu/nras/detached_eat.py": 1,
    "gpu/nras/nvattest_output.py": 1,
    "gpu/nras/tokens.py": 2,
    "gpu/rim/xml_signature.py": 1,
    "gpu/endorsement_fetcher.py": 2,
    "keys/key_chain.py": 1,
    "keys/key_file.py": 1,
    "kms/boot.py": 2,
    "kms/client.py": 3,
    "kms/answers.py": 1,
    "kms/local_provider/client.py": 2,
    "kms/local_provider/provider.py": 1,
    "kms/root.py": 4,
    "kms/tls_chain.py": 1,
    "ra_tls/certificate.py": 1,
    "ra_tls/interoperable_certificates.py": 1,
    "serve/kms_service/admin.py": 1,
    "serve/kms_service/release_engine.py": 1,
    "verifier/ear/result_token.py": 3,
    "verifier/ear/signed_token.py": 2,
    "verifier/evidence/checks.py": 4,
    "verifier/gpu_join.py": 1,
    "verifier/platforms/azure.py": 2,
    "verifier/platforms/gcp.py": 3,
    "verifier/platforms/nitro_tpm.py": 6,
    "verifier/platforms/snp/authenticator.py": 1,
    "verifier/platforms/snp/chain.py": 1,
    "verifier/platforms/tpm.py": 3,
    "verifier/platforms/vtpm/attestation_key.py": 1,
    "verifier/platforms/vtpm/pcr_logs.py": 3,
    "verifier/platforms/vtpm/quote.py": 1,
    "verifier/policy/rules.py": 1,
}
_COMPARE = (ast.Eq, ast.NotEq, ast.In, ast.NotIn)
# Methods and types that return the same bytes in another encoding.
_SAME = {
    *("hex", "encode", "decode", "ljust", "rjust", "strip", "lstrip", "rstrip", "lower", "upper"),
    *("bytes", "bytearray", "memoryview", "str", "fromhex", "tobytes"),
}
_BY_VALUE = {"__eq__", "__contains__", "startswith", "endswith", "find", "index", "count"}
_BY_KEY = {"get", "pop", "setdefault", "remove", "add", "discard"}


def operand_names(node: ast.AST) -> Iterator[str]:
    """Yield the names that an operand of a comparison may stand for."""
    match node:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            yield name
        case ast.Subscript(value=inner) | ast.Await(value=inner) | ast.Starred(value=inner):
            yield from operand_names(inner)
        case ast.Call(func=func, args=args):
            yield from operand_names(func)
            if _SAME.intersection(operand_names(func)):
                yield from operand_names(func.value) if isinstance(func, ast.Attribute) else ()
                for one in args:
                    yield from operand_names(one)
        case ast.NamedExpr(target=name, value=value):
            yield from operand_names(name)
            yield from operand_names(value)
        case ast.BoolOp() | ast.IfExp() | ast.BinOp() | ast.Tuple() | ast.List() | ast.Set():
            for child in ast.iter_child_nodes(node):
                yield from operand_names(child)


def is_type(name: str) -> bool:
    """Return whether a name is that of a class, as in `dict[str, Scalar]`."""
    return name[:1].isupper() and not name.isupper()


def is_guessable(node: ast.AST) -> bool:
    """Return whether an expression is bytes that an attacker could guess."""
    found = [name.lower().strip("_") for name in operand_names(node) if not is_type(name)]
    return any(name == word or name.endswith(f"_{word}") for name in found for word in GUESSABLE)


def is_public_constant(node: ast.AST) -> bool:
    """Return whether an operand is a constant, compared as a format or a length."""
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return all(map(is_public_constant, node.elts))
    return isinstance(node, ast.Constant)


def is_leaking(node: ast.AST) -> bool:
    """Return whether a node compares guessable bytes in variable time."""
    match node:
        case ast.Compare(left=left, ops=ops, comparators=others):
            sides = [left, *others]
            by_value = any(isinstance(op, _COMPARE) for op in ops)
            return (
                by_value
                and any(map(is_guessable, sides))
                and not any(map(is_public_constant, sides))
            )
        case ast.Subscript(slice=key):
            return not isinstance(key, ast.Slice) and is_guessable(key)
        case ast.Call(func=ast.Attribute(attr=name, value=value), args=[first, *_]):
            if name in _BY_VALUE:
                return not is_public_constant(first) and (
                    is_guessable(value) or is_guessable(first)
                )
            return name in _BY_KEY and is_guessable(first)
        case ast.MatchValue(value=value):
            return is_guessable(value)
    return False


def find_comparisons(text: str) -> Iterator[tuple[int, str]]:
    """Return line and source of each variable-time comparison of a secret."""
    for node in ast.walk(ast.parse(text)):
        if is_leaking(node):
            yield getattr(node, "lineno", 0), ast.unparse(node)


def package_comparisons() -> frozenset[tuple[str, str]]:
    """Return file and source of all such comparisons in the package."""
    names = (path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
    return frozenset(
        (name, source)
        for name in names
        if not name.startswith(WITHOUT_SECRETS)
        for _, source in find_comparisons((PACKAGE / name).read_text())
    )


def test_package_compares_secrets_in_constant_time() -> None:
    """Every comparison is in constant time, or listed as public; the list has no others."""
    assert package_comparisons() == PUBLIC


def test_packages_without_secrets_import_no_keys() -> None:
    """Packages that are left out of the comparison above cannot compare a key."""
    for folder in WITHOUT_SECRETS:
        for path in (PACKAGE / folder).rglob("*.py"):
            assert "attestkit.keys" not in path.read_text(), path


def test_constant_time_comparisons_remain() -> None:
    """The number of constant-time comparisons per file does not decrease."""
    texts = {
        path.relative_to(PACKAGE).as_posix(): path.read_text() for path in PACKAGE.rglob("*.py")
    }
    counts = {name: text.count("hmac.compare_digest(") for name, text in texts.items()}
    assert {name: count for name, count in counts.items() if count} == CONSTANT_TIME


@every_case(
    "source",
    [
        "seed == given",
        "a.k256_key == b",
        "quote.report_data == wanted",
        "sha256_digest(data) == x",
        '(ear.nonce or b"") != wanted',
        "own.mac.hex() == given.lower()",
        "(found := read_token()) == own",
        "given in (self._token, other)",
        "key_hash in b",
        "known.get(request.nonce.hex())",
        "secret.startswith(given)",
        "seen.index(nonce)",
        "match given:\n case self.token: pass",
    ],
)
def test_find_comparisons_detects_variable_time(source: str) -> None:
    """Variable-time comparisons of secrets are detected."""
    assert list(find_comparisons(source))


@every_case(
    "source",
    [
        "len(seed) == 32",
        "hmac.compare_digest(seed, x)",
        "seed == b''",
        "name == 'seed'",
        "nonce in (None, b'')",
        "token.startswith(b'ey')",
        "token[0]",
        "secrets_of(app)['seed']",
    ],
)
def test_find_comparisons_accepts_other_code(source: str) -> None:
    """Other code is accepted."""
    assert not list(find_comparisons(source))
