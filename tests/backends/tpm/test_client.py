"""The client of a TPM, on swtpm."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from attestkit.backends.tpm.client import FAMILY, TpmClient
from attestkit.backends.tpm.command_channel import TpmError
from attestkit.backends.tpm.nv_commands import NvPublic
from attestkit.errors import UsageError
from attestkit.tpm import PcrSelection, TpmsAttest, TpmtPublic, TpmtSignature, pcr_digest
from attestkit.tpm.algorithms import hash_size
from attestkit.tpm.command_codes import CAP_COMMANDS, NV_READ, QUOTE, SELF_TEST
from attestkit.tpm.handles import ENDORSEMENT, OWNER
from attestkit.tpm.nv_attributes import AUTH_READ, AUTH_WRITE, OWNER_READ, OWNER_WRITE, WRITTEN
from attestkit.tpm.response_codes import RC_NV_DEFINED, RC_NV_RANGE, RC_OBJECT_MEMORY
from tests.backends.tpm.templates import ECC_AK, EK, EVERY_PCR, P384_AK, RSA_AK, SHA256
from tests.machines.software_tpm import needs_swtpm, opened_swtpm
from tests.raising import raises

INDEX = 0x01500000

pytestmark = needs_swtpm


def code_of(caught: pytest.ExceptionInfo[TpmError]) -> int:
    """Return the response code of an expected error."""
    return caught.value.code


# -- start and capabilities ------------------------------------------------------------------------


def test_startup_is_idempotent(tmp_path: Path) -> None:
    """A TPM that is already started accepts another Startup; one that is not refuses commands."""
    with opened_swtpm(tmp_path, started=False) as tpm:
        with raises(TpmError, "tpm_error", part="0x100, TPM_RC_INITIALIZE"):
            tpm.pcr_read(SHA256)
        tpm.startup()
        tpm.startup()
        tpm.execute(SELF_TEST, parameters=b"\1")
        assert len(tpm.pcr_read(SHA256)) == 24


def test_capabilities_are_listed(software_tpm: TpmClient) -> None:
    """Commands come in several pages; properties are those of libtpms."""
    commands = software_tpm.list_commands()
    assert {NV_READ, QUOTE} <= commands
    assert len(commands) > 64
    more, _ = software_tpm.get_capability(CAP_COMMANDS, 0, 8)
    assert more
    assert software_tpm.read_property(FAMILY) == int.from_bytes(b"2.0\0", "big")
    assert software_tpm.read_property(0x117) == 2048  # TPM_PT_NV_INDEX_MAX
    assert software_tpm.read_property(0x3FF) is None


def test_handles_are_listed_within_range(software_tpm: TpmClient) -> None:
    """Handles of a range are complete beyond one page."""
    assert software_tpm.list_handles(INDEX, INDEX + 0xFFFF) == ()
    made = tuple(range(INDEX, INDEX + 60, 2))
    for index in made:
        software_tpm.nv_define(index, 1)
    assert software_tpm.list_handles(INDEX, INDEX + 0xFFFF) == made
    assert software_tpm.list_handles(INDEX + 1, INDEX + 5) == (INDEX + 2, INDEX + 4)


# -- PCRs ------------------------------------------------------------------------------------------


def test_pcr_extend_changes_named_banks(software_tpm: TpmClient) -> None:
    """A PCR is extended in each named bank, by the hash of that bank."""
    digests = {bank: bytes([n]) * hash_size(bank) for n, bank in enumerate(("sha256", "sha384"))}
    software_tpm.pcr_extend(8, digests)
    selections = tuple(PcrSelection(bank, (7, 8)) for bank in ("sha1", "sha256", "sha384"))
    values = software_tpm.pcr_read(selections)
    for bank, digest in digests.items():
        size = hash_size(bank)
        assert values[bank, 8] == hashlib.new(bank, bytes(size) + digest).digest()
        assert values[bank, 7] == bytes(size)
    assert values["sha1", 8] == bytes(20)


def test_pcr_read_returns_all_pcrs_of_all_banks(software_tpm: TpmClient) -> None:
    """More than the eight values of one response are read; PCRs 17 to 22 start as ones."""
    banks = ("sha1", "sha256", "sha384", "sha512")
    values = software_tpm.pcr_read(tuple(PcrSelection(bank, EVERY_PCR) for bank in banks))
    assert len(values) == 4 * 24
    for (bank, pcr), value in values.items():
        assert value == (b"\xff" if 17 <= pcr <= 22 else b"\0") * hash_size(bank)
    assert software_tpm.pcr_read(()) == {}


# -- NV indices ------------------------------------------------------------------------------------


def test_nv_index_is_written_and_read_in_pieces(software_tpm: TpmClient) -> None:
    """An index over 1024 bytes is written and read whole; its name changes when it is written."""
    data = os.urandom(2048)
    software_tpm.nv_define(INDEX, len(data))
    before = software_tpm.nv_read_public(INDEX)
    assert before == NvPublic(INDEX, "sha256", OWNER_WRITE | OWNER_READ, b"", 2048, before.name)
    assert before.name == b"\0\x0b" + hashlib.sha256(before.encode()).digest()
    assert software_tpm.read_nv_index(INDEX) is None  # never written
    software_tpm.nv_write(INDEX, data)
    assert software_tpm.read_nv_index(INDEX) == data
    assert software_tpm.nv_read(INDEX, 1100, 7) == data[7:1107]
    after = software_tpm.nv_read_public(INDEX)
    assert after.attributes == before.attributes | WRITTEN
    assert after.name == b"\0\x0b" + hashlib.sha256(after.encode()).digest()
    with raises(TpmError, "tpm_error") as caught:
        software_tpm.nv_read(INDEX, 2049)
    assert code_of(caught) == RC_NV_RANGE


def test_absent_nv_index_is_none(software_tpm: TpmClient) -> None:
    """An index that is absent, was undefined, or was never written is None."""
    assert software_tpm.find_nv(INDEX) is None
    assert software_tpm.read_nv_index(INDEX) is None
    with raises(TpmError, "tpm_error") as caught:
        software_tpm.nv_read_public(INDEX)
    assert caught.value.is_absent
    with raises(TpmError, "tpm_error") as caught:
        software_tpm.nv_undefine(INDEX)
    assert caught.value.is_absent
    software_tpm.nv_define(INDEX, 4)
    with raises(TpmError, "tpm_error") as caught:
        software_tpm.nv_define(INDEX, 4)
    assert code_of(caught) == RC_NV_DEFINED
    with raises(TpmError, "tpm_error") as caught:
        software_tpm.nv_read(INDEX, 4)
    assert caught.value.is_absent
    software_tpm.nv_undefine(INDEX)
    assert software_tpm.find_nv(INDEX) is None


def test_nv_index_that_the_owner_cannot_read_is_read_by_itself(software_tpm: TpmClient) -> None:
    """The index is its own authority where only its own password, here empty, gives access."""
    software_tpm.nv_define(INDEX, 4, AUTH_READ | AUTH_WRITE)
    software_tpm.nv_write(INDEX, b"data", authority=INDEX)
    assert software_tpm.read_nv_index(INDEX) == b"data"
    with raises(TpmError, "tpm_error") as caught:
        software_tpm.nv_read(INDEX, 4)
    assert caught.value.is_denied


def test_nv_index_with_password_is_denied_without(software_tpm: TpmClient) -> None:
    """An index with a password is read with it only."""
    software_tpm.nv_define(INDEX, 4, AUTH_READ | AUTH_WRITE, secret=b"secret")
    software_tpm.nv_write(INDEX, b"data", authority=INDEX, secret=b"secret")
    assert software_tpm.nv_read(INDEX, 4, authority=INDEX, secret=b"secret") == b"data"
    with raises(TpmError, "tpm_error") as caught:
        software_tpm.read_nv_index(INDEX)
    assert caught.value.is_denied
    with raises(TpmError, "tpm_error") as caught:
        software_tpm.nv_read(INDEX, 4, authority=INDEX, secret=b"other")
    assert caught.value.is_denied


def test_nv_index_over_the_limit_is_refused(software_tpm: TpmClient) -> None:
    """The TPM's own limit is an error with its code, and data too large for a frame another."""
    with raises(TpmError, "tpm_error", part="0x2d5, TPM_RC_SIZE of parameter 2"):
        software_tpm.nv_define(INDEX, 2049)


# -- keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template", [ECC_AK, P384_AK, RSA_AK, EK], ids=["p256", "p384", "rsa", "ek"]
)
def test_primary_key_is_deterministic(software_tpm: TpmClient, template: TpmtPublic) -> None:
    """The same template gives the same key, with the names that the TPM computes."""
    with software_tpm.primary_key(ENDORSEMENT, template) as key:
        assert key.public.has_key
        assert key == software_tpm.read_public(key.handle)
        assert key.raw == key.public.encode()
        first = key.public
    assert software_tpm.find_key(key.handle) is None
    with software_tpm.primary_key(ENDORSEMENT, template.encode()) as key:
        assert key.public == first
    with software_tpm.primary_key(OWNER, template) as key:
        assert key.public != first


def test_persistent_key_survives_flush(software_tpm: TpmClient) -> None:
    """A key that was made persistent is found there, until it is removed."""
    persistent = 0x81010002
    assert software_tpm.find_key(persistent) is None
    with software_tpm.primary_key(ENDORSEMENT, ECC_AK) as key:
        software_tpm.evict_control(key.handle, persistent)
    found = software_tpm.find_key(persistent)
    assert found is not None
    assert found == key._replace(handle=persistent)
    software_tpm.evict_control(persistent, persistent)
    assert software_tpm.find_key(persistent) is None


def test_full_transient_slots_are_an_error(software_tpm: TpmClient) -> None:
    """Without a resource manager there are three slots; flushing one makes room."""
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(software_tpm.primary_key(ENDORSEMENT, ECC_AK))
        with raises(TpmError, "tpm_error", part="TPM_RC_OBJECT_MEMORY") as caught:
            software_tpm.create_primary(ENDORSEMENT, ECC_AK)
    assert code_of(caught) == RC_OBJECT_MEMORY
    with software_tpm.primary_key(ENDORSEMENT, ECC_AK):
        pass


def test_failed_block_flushes_its_key(software_tpm: TpmClient) -> None:
    """The error of a block is the one that counts, also if the key cannot be flushed."""
    with pytest.raises(ZeroDivisionError), software_tpm.primary_key(ENDORSEMENT, ECC_AK) as key:
        _ = 1 / 0
    assert software_tpm.find_key(key.handle) is None
    with pytest.raises(ZeroDivisionError):
        fail_without_connection(software_tpm)


def fail_without_connection(tpm: TpmClient) -> None:
    """Fail in a block whose key cannot be flushed any more."""
    with tpm.primary_key(ENDORSEMENT, ECC_AK):
        tpm.close()
        _ = 1 / 0


# -- quotes ----------------------------------------------------------------------------------------


@pytest.fixture(params=[ECC_AK, P384_AK, RSA_AK], ids=["p256", "p384", "rsa"])
def key(software_tpm: TpmClient, request: pytest.FixtureRequest) -> Iterator[int]:
    """Return the handle of an attestation key."""
    with software_tpm.primary_key(ENDORSEMENT, request.param) as made:
        yield made.handle


def test_quote_is_over_data_and_pcrs(software_tpm: TpmClient, key: int) -> None:
    """A quote has the qualifying data, the selection, the digest of the values, and the signer."""
    banks = (PcrSelection("sha384", (0, 8, 23)), PcrSelection("sha256", EVERY_PCR))
    software_tpm.pcr_extend(8, {"sha384": bytes(48)})
    for data in (b"", b"challenge", bytes(range(66))):
        response = software_tpm.quote(key, data, banks)
        quote = TpmsAttest.parse(response.message)
        signature = TpmtSignature.parse(response.signature)
        assert quote.extra_data == data
        assert quote.selections == banks
        values = software_tpm.pcr_read(banks)
        assert quote.pcr_digest == pcr_digest(banks, values, signature.hash_name)
        assert quote.qualified_signer == software_tpm.read_public(key).qualified_name
    with raises(TpmError, "tpm_error", part="0x1d5, TPM_RC_SIZE of parameter 1"):
        software_tpm.quote(key, bytes(67), banks)


def test_command_beyond_the_largest_frame_is_refused(software_tpm: TpmClient) -> None:
    """A frame has at most 4096 bytes; a longer command is not sent."""
    with raises(UsageError, "too_large"):
        software_tpm.execute(0x0143, parameters=bytes(4087))
    software_tpm.execute(SELF_TEST, parameters=b"\1")


def test_unknown_command_is_named(software_tpm: TpmClient) -> None:
    """The vendor command of a NitroTPM is unknown to another TPM."""
    with raises(TpmError, "tpm_error", start="swtpm: command 0x20000001: 0x143") as caught:
        software_tpm.execute(0x20000001, (INDEX, INDEX))
    assert caught.value.is_unknown_command
