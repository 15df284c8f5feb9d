"""The TPM model: keys, quotes, PCRs, NV indices, power, through the client of `backends.tpm`."""

import hashlib
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key
from hypothesis import example, given
from hypothesis import strategies as st

from attestkit.backends.simulator.software_tpm import TpmHooks, TpmIdentity, TpmModel
from attestkit.backends.simulator.software_tpm.in_process import InProcessTransport
from attestkit.backends.tpm.client import TpmClient
from attestkit.backends.tpm.command_channel import TpmError
from attestkit.errors import UsageError
from attestkit.tpm import PcrSelection, TpmsAttest, TpmtPublic, TpmtSignature, pcr_digest
from attestkit.tpm.command_codes import CAP_PCRS
from attestkit.tpm.handles import ENDORSEMENT, OWNER
from attestkit.tpm.pcr_selection import encode_selections
from tests.backends.simulator.software_tpm.command_frames import (
    BANKS,
    INDEX,
    NULL,
    SEED,
    code_of,
    create,
    ecc,
    frame,
    new_model,
    quote,
)
from tests.backends.simulator.software_tpm.swtpm_cases import EVERY
from tests.backends.tpm.templates import ECC_AK, EK, EVERY_PCR, P384_AK, RSA_AK, SHA256
from tests.raising import raises
from tests.runner.cases import every_case

PSS_AK = RSA_AK._replace(scheme="rsapss", scheme_hash="sha384")
HASHES = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384(), "sha512": hashes.SHA512()}


def client_of(model: TpmModel) -> TpmClient:
    """Return a client of a model."""
    return TpmClient(InProcessTransport(model))


def verify(public: TpmtPublic, message: bytes, signature: TpmtSignature) -> None:
    """Verify a quote's signature with another library."""
    key = load_der_public_key(public.spki)
    digest = HASHES[signature.hash_name]
    if isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature.der, message, ec.ECDSA(digest))
        return
    assert isinstance(key, rsa.RSAPublicKey)
    scheme: padding.AsymmetricPadding = padding.PKCS1v15()
    if signature.algorithm == "rsapss":
        scheme = padding.PSS(padding.MGF1(digest), digest.digest_size)
    key.verify(signature.signature, message, scheme, digest)


@every_case(
    "template",
    [RSA_AK, PSS_AK, ECC_AK, P384_AK, RSA_AK._replace(scheme_hash="sha512")],
    ids=["rsa", "pss", "p256", "p384", "rsa-sha512"],
)
def test_quote_is_valid(template: TpmtPublic) -> None:
    """A quote has the caller's data, the key's name, the PCRs' digest, and a valid signature."""
    client = client_of(new_model())
    client.pcr_extend(8, {"sha256": b"\1" * 32, "sha384": b"\2" * 48})
    key = client.create_primary(ENDORSEMENT, template)
    selections = (PcrSelection("sha384", (0, 8, 17)), PcrSelection("sha256", EVERY_PCR))
    found = client.quote(key.handle, b"nonce", selections)
    attest = TpmsAttest.parse(found.message)
    signature = TpmtSignature.parse(found.signature)
    assert signature.algorithm == template.scheme
    assert signature.hash_name == template.scheme_hash
    verify(key.public, found.message, signature)
    values = client.pcr_read(selections)
    assert attest == TpmsAttest(
        key.public.qualified_name(ENDORSEMENT),
        b"nonce",
        0,
        0,
        0,
        safe=True,
        firmware_version=TpmIdentity().firmware_version,
        selections=selections,
        pcr_digest=pcr_digest(selections, values, template.scheme_hash),
    )


def test_keys_are_functions_of_seed_hierarchy_and_template() -> None:
    """The same seed and template make the same key; another seed or hierarchy does not."""
    key = client_of(new_model()).create_primary(ENDORSEMENT, ECC_AK).public
    again = client_of(new_model())
    assert again.create_primary(ENDORSEMENT, ECC_AK).public == key
    others = [
        again.create_primary(OWNER, ECC_AK).public,
        again.create_primary(ENDORSEMENT, ECC_AK._replace(x=b"unique")).public,
        client_of(TpmModel(bytes(32))).create_primary(ENDORSEMENT, ECC_AK).public,
    ]
    assert len({key.x, *(other.x for other in others)}) == 4


def test_keys_of_the_null_hierarchy_end_with_a_reset() -> None:
    """The null hierarchy has other keys after each reset; the others keep theirs."""
    model = new_model()
    found = []
    for _ in range(2):
        client = client_of(model)
        found.append([client.create_primary(one, ECC_AK).public for one in (NULL, OWNER)])
        model.power_cycle()
        client.startup()
    assert found[0][0] != found[1][0]
    assert found[0][1] == found[1][1]


def test_counters_are_obfuscated_for_owner_keys() -> None:
    """Reset count and firmware version are readable with keys of the endorsement hierarchy only."""
    model = new_model()
    model.power_cycle()
    client = client_of(model)
    client.startup()
    found = []
    for hierarchy in (ENDORSEMENT, OWNER):
        key = client.create_primary(hierarchy, ECC_AK)
        found.append(TpmsAttest.parse(client.quote(key.handle, b"", SHA256).message))
    assert found[0].reset_count == 1
    assert found[0].firmware_version == TpmIdentity().firmware_version
    assert found[1].reset_count != 1
    assert found[1].firmware_version != found[0].firmware_version


def test_persistent_key_survives_a_reset() -> None:
    """A persistent key signs after a reset; a transient one is gone."""
    model = new_model()
    client = client_of(model)
    key = client.create_primary(ENDORSEMENT, RSA_AK)
    client.evict_control(key.handle, 0x81000003)
    model.power_cycle()
    with raises(TpmError, "tpm_error", part="0x100"):
        client.read_public(0x81000003)
    client.startup()
    assert client.read_public(0x81000003).public == key.public
    assert client.find_key(key.handle) is None
    found = client.quote(0x81000003, b"", SHA256)
    verify(key.public, found.message, TpmtSignature.parse(found.signature))


def test_reset_forgets_what_an_index_says_it_forgets() -> None:
    """An index with the attribute clearStClear is as never written after a reset; others stay."""
    model = new_model()
    client = client_of(model)
    for index, attributes in ((INDEX, 0x08020002), (INDEX + 1, 0x00020002)):
        client.nv_define(index, 4, attributes)
        client.nv_write(index, b"data")
    model.power_cycle()
    client.startup()
    assert client.read_nv_index(INDEX) is None
    assert client.read_nv_index(INDEX + 1) == b"data"


@pytest.mark.parametrize("locality", [0, 3, 4])
def test_pcrs_start_as_on_a_pc(locality: int) -> None:
    """PCR 0 starts with the locality, PCRs 17 to 22 as ones, also after a reset."""
    model = TpmModel(SEED, banks=["sha256"], startup_locality=locality)
    for _ in range(2):
        assert model.read_pcr("sha256", 0) == bytes(31) + bytes([locality])
        assert model.read_pcr("sha256", 1) == bytes(32)
        assert {model.read_pcr("sha256", pcr) for pcr in range(17, 23)} == {b"\xff" * 32}
        model.provision_pcr(0, {"sha256": bytes(32)})
        extended = hashlib.sha256(bytes(31) + bytes([locality]) + bytes(32)).digest()
        assert model.read_pcr("sha256", 0) == extended
        model.power_cycle()


def test_absent_bank_is_empty() -> None:
    """A bank that is not allocated has an empty selection in answers, and is not extended."""
    client = client_of(TpmModel(SEED, banks=["sha256"]))
    _, banks = client.get_capability(CAP_PCRS, 0, 1)
    assert banks == encode_selections((PcrSelection("sha256", EVERY_PCR),))
    client.pcr_extend(8, {"sha256": bytes(32), "sha1": bytes(20)})
    key = client.create_primary(ENDORSEMENT, ECC_AK)
    wanted = (PcrSelection("sha1", (0, 8)), PcrSelection("sha256", (8,)))
    attest = TpmsAttest.parse(client.quote(key.handle, b"", wanted).message)
    assert attest.selections == (PcrSelection("sha1", ()), PcrSelection("sha256", (8,)))


def test_model_is_configured_with_valid_values() -> None:
    """An unknown bank or locality, no bank, and a seed of another size are refused."""
    with raises(UsageError, "wrong_size"):
        TpmModel(b"short")
    with raises(UsageError, "out_of_range"):
        TpmModel(SEED, startup_locality=1)
    with raises(UsageError, "missing"):
        TpmModel(SEED, banks=[])
    with raises(UsageError, "unsupported_algorithm"):
        TpmModel(SEED, banks=["md5"])


@every_case("size", [0, 1, 1024, 1025, 2600, 65535])
def test_provisioned_index_has_any_size(size: int) -> None:
    """The platform defines indices over the limit of commands; clients read them in pieces."""
    model = new_model()
    content = bytes(range(256)) * 256
    model.provision_index(INDEX, content[:size], 0x00020002)
    client = client_of(model)
    assert client.read_nv_index(INDEX) == content[:size]
    assert client.nv_read_public(INDEX).size == size
    with raises(TpmError, "tpm_error", part="0x2d5"):
        client.nv_define(INDEX + 1, 2049)


def test_large_index_is_written_and_read() -> None:
    """A TPM like NitroTPM has indices of 8192 bytes."""
    client = client_of(new_model(largest_index=8192))
    client.nv_define(INDEX, 8192)
    content = bytes(range(256)) * 32
    client.nv_write(INDEX, content)
    assert client.read_nv_index(INDEX) == content


def test_provisioning_takes_valid_values() -> None:
    """Platforms get an error for a wrong PCR, digest, index, size or hash; nothing is changed."""
    model = TpmModel(SEED, banks=["sha256"])
    with raises(UsageError, "unknown_name"):
        model.read_pcr("sha1", 0)
    with raises(UsageError, "out_of_range"):
        model.read_pcr("sha256", 24)
    with raises(UsageError, "out_of_range"):
        model.provision_pcr(24, {"sha256": bytes(32)})
    with raises(UsageError, "wrong_size"):
        model.provision_pcr(0, {"sha256": bytes(20)})
    model.provision_pcr(0, {"sha1": bytes(20)})
    assert model.read_pcr("sha256", 0) == bytes(32)
    with raises(UsageError, "out_of_range"):
        model.provision_index(0x02000000, b"", 0x00020002)
    with raises(UsageError, "too_large"):
        model.provision_index(INDEX, bytes(65536), 0x00020002)
    with raises(UsageError, "unsupported_algorithm"):
        model.provision_index(INDEX, b"", 0x00020002, name_alg="md5")
    assert client_of(model).find_nv(INDEX) is None


def test_identity_is_in_properties_and_quotes() -> None:
    """Manufacturer and firmware version are those of the platform."""
    identity = TpmIdentity("MSFT", "xCG fTPM", 0x2020031200120003)
    client = client_of(TpmModel(SEED, identity=identity))
    assert client.read_property(0x105) == int.from_bytes(b"MSFT", "big")
    assert client.read_property(0x106) == int.from_bytes(b"xCG ", "big")
    assert client.read_property(0x10C) == 0x00120003
    key = client.create_primary(ENDORSEMENT, ECC_AK)
    attest = TpmsAttest.parse(client.quote(key.handle, b"", SHA256).message)
    assert attest.firmware_version == 0x2020031200120003


def test_clock_runs() -> None:
    """The clock counts milliseconds since the model was made."""
    now = 5.0
    client = client_of(new_model(clock=lambda: now))
    now = 6.25
    key = client.create_primary(ENDORSEMENT, ECC_AK)
    assert TpmsAttest.parse(client.quote(key.handle, b"", SHA256).message).clock_ms == 1250


def test_lockout_ends() -> None:
    """A wrong password is forgotten after 1000 seconds."""
    now = 0.0
    model = new_model(clock=lambda: now)
    model.execute(create(ecc()))
    codes = [code_of(model.execute(quote(secret=b"wrong"))) for _ in range(4)]
    assert codes == [0x98E, 0x98E, 0x98E, 0x921]
    now = 999.0
    assert code_of(model.execute(quote())) == 0x921
    now = 1000.0
    assert code_of(model.execute(quote())) == 0


def test_startup_comes_first() -> None:
    """Before Startup all other commands are refused; a second one is too."""
    model = new_model(started=False)
    codes = [
        code_of(model.execute(one))
        for one in (frame(0x143, b"\1"), frame(0x144, b"\0\1"), frame(0x144, b"\0\2"))
    ]
    assert codes == [0x100, 0x1C4, 0x1C4]
    assert code_of(model.execute(frame(0x144, b"\0\0"))) == 0
    assert code_of(model.execute(frame(0x144, b"\0\0"))) == 0x100


@every_case("size", range(10))
def test_short_frame_is_refused(size: int) -> None:
    """A frame without a whole header has no valid size."""
    command = frame(0x181)[:size]
    expected = {0: 0x9A, 1: 0x9A, 2: 0x9A, 3: 0x9A, 4: 0x9A, 5: 0x9A}.get(size, 0x142)
    assert code_of(new_model().execute(command)) == expected


def test_frame_of_another_size_is_refused() -> None:
    """The size in the header is that of the frame, at most 4096."""
    model = new_model()
    for command in (
        frame(0x181) + b"x",
        frame(0x143, b"\1")[:-1],
        frame(0x181, bytes(4087)),
        frame(0x181)[:2] + bytes(4) + frame(0x181)[6:],
    ):
        assert code_of(model.execute(command)) == 0x142


def test_fault_replaces_the_answer() -> None:
    """An injected code is the answer; the client repeats busy ones, and reports failure mode."""
    codes = [0x922, 0x90A, 0x908, 0, 0x101]
    hooks = TpmHooks(fault=lambda code: codes.pop(0) if code == 0x17E else 0)
    client = client_of(new_model(hooks=hooks))
    assert len(client.pcr_read((PcrSelection("sha256", (0,)),))) == 1
    with raises(TpmError, "tpm_error", part="0x101"):
        client.pcr_read((PcrSelection("sha256", (0,)),))
    assert codes == []


def test_endorsement_key_matches_its_template() -> None:
    """The default EK template is accepted; its key needs a policy, and has no password."""
    client = client_of(new_model())
    key = client.create_primary(ENDORSEMENT, EK)
    assert key.public == EK._replace(modulus=key.public.modulus)
    assert len(key.public.modulus) == 256
    with raises(TpmError, "tpm_error", part="0x12f"):
        client.quote(key.handle, b"", SHA256)


# -- any bytes -------------------------------------------------------------------------------------

SEQUENCES = [case for cases in EVERY.values() for case in cases.values()]


def is_response(response: bytes) -> bool:
    """Return whether this is a response with the size that it says."""
    tag, size = int.from_bytes(response[:2], "big"), int.from_bytes(response[2:6], "big")
    error = code_of(response) != 0
    return tag in (0x8001, 0x8002) and size == len(response) and (not error or size == 10)


@given(st.binary(max_size=200))
@example(b"")
def test_any_bytes_get_a_response(data: bytes) -> None:
    """Malformed commands get a response code."""
    assert is_response(new_model().execute(data))


@given(
    st.sampled_from(SEQUENCES),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=3),
    st.integers(-3, 3),
)
def test_changed_commands_get_a_response(
    commands: tuple[bytes, ...], changes: list[tuple[int, int]], longer: int
) -> None:
    """Commands with other bytes, also cut or longer ones, get a response."""
    model = new_model()
    for command in commands[:-1]:
        assert is_response(model.execute(command))
    body = bytearray(commands[-1][10:])
    for at, value in changes:
        if body:
            body[at % len(body)] = value
    body = body + bytes(longer) if longer > 0 else body[: len(body) + longer]
    size = (10 + len(body)).to_bytes(4, "big")
    changed = commands[-1][:2] + size + commands[-1][6:10] + bytes(body)
    assert is_response(model.execute(changed))


def run_all(model: TpmModel, run: Callable[[TpmModel, bytes], bytes]) -> list[bytes]:
    """Return the responses to all cases."""
    return [run(model, command) for case in SEQUENCES[::7] for command in case]


def test_responses_are_reproducible() -> None:
    """With the same seed, clock and random bytes, all responses are the same."""
    found = [
        run_all(TpmModel(SEED, banks=BANKS, clock=lambda: 0.0, random=bytes), TpmModel.execute)
        for _ in range(2)
    ]
    assert found[0] == found[1]
