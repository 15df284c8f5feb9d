"""Device chains: their facts, their path to the root, and a refusal of all else."""

from datetime import timedelta

import pytest

from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._crypto.x509.simulated.certificate_encoder import Window
from attestkit._crypto.x509.simulated.cloud_certificates import (
    Extension,
    encode_name,
    issue_cloud_authority,
    issue_cloud_leaf,
)
from attestkit.errors import CollateralExpiredError, FormatError, SignatureError
from attestkit.gpu import GpuRoots
from attestkit.gpu.device.device_chain import (
    MAX_CERTIFICATES,
    read_device_chain,
    verify_device_chain,
)
from tests.gpu.gpu_samples import CASES, CHAINS, EXPECTED, SAMPLES, Sample, read_pem, sample
from tests.gpu.made_devices import (
    COMPOSITE_OID,
    FWID,
    NOW,
    TCB_INFO_OID,
    VALIDITY,
    Device,
    authority,
    composite,
    key,
    make_device,
    tcb_info,
)
from tests.raising import raises
from tests.runner.cases import every_case
from tests.thorough import limited
from tests.vectors import needs_shared

NVIDIA = GpuRoots.nvidia().device
DEVICE = make_device()
DAY = timedelta(days=1)

each_sample = every_case("one", SAMPLES, ids=repr)


def verify(device: Device) -> None:
    """Parse and verify a made chain up to its own root."""
    verify_device_chain(read_device_chain(device.certificates), device.root, NOW)


def with_certificate(at: int, der: bytes, device: Device = DEVICE) -> Device:
    """Return the device with one certificate replaced."""
    certificates = list(device.certificates)
    certificates[at] = der
    return device._replace(certificates=tuple(certificates))


@each_sample
def test_chain_of_sample_gives_every_expected_value(one: Sample) -> None:
    """Names, serial numbers, dates, FWIDs and keys are those of the independent verifier."""
    expected = one.expected["chain"]
    chain = verify_device_chain(read_device_chain(one.certificates), NVIDIA, NOW)
    assert chain.certificates == one.certificates
    assert len(chain.path) == expected["certificates"]
    assert chain.hardware_model == expected["subjects"][1]
    assert f"{chain.chip.name[:2]}" == expected["subjects"][0][:2]
    assert [f"{found.serial:x}" for found in chain.path] == expected["serials_hex"]
    for name, side in (("not_before", "valid_from"), ("not_after", "valid_until")):
        dates = [getattr(found, side).strftime("%Y-%m-%dT%H:%M:%SZ") for found in chain.path]
        assert dates == expected[name]
    assert [fwid.hex() for fwid in chain.fwids] == expected["fwids"]
    assert chain.ueid == expected["ueid"]
    assert chain.device_serial == expected["serials_hex"][1]
    assert chain.pdi.hex() == expected["serials_hex"][1][-16:]
    oid = "2.23.133.5.4.1" if chain.dice_key else "2.23.133.5.4.1.1"
    assert oid == expected["dice_oid"]
    assert (expected["dice_device_key_is_issuer_key"] is not False) == chain.has_device_key
    assert chain.leaf_spki == chain.path[0].spki
    assert chain.brom_spki == chain.path[1].spki


@each_sample
def test_fwid_of_sample_equals_that_of_report_as_expected(one: Sample) -> None:
    """The first FWID is that of the report, where the independent verifier found it so."""
    expected = one.expected["report"]
    if expected["fwid_equals_certificate"] is not None:
        equal = read_device_chain(one.certificates).fwid.hex() == expected["fwid"]
        assert equal is expected["fwid_equals_certificate"]


@every_case("name", CHAINS)
def test_chains_alone_are_verified_as_expected(name: str) -> None:
    """A complete chain is accepted; one without leaf or CA, or with the root alone, is refused."""
    expected, certificates = EXPECTED["chains"][name], read_pem(name)
    if not expected["fwids"]:
        with raises(FormatError, "missing"):
            read_device_chain(certificates)
        return
    chain = read_device_chain(certificates)
    assert [fwid.hex() for fwid in chain.fwids] == expected["fwids"]
    assert chain.ueid == expected["ueid"]
    if expected["verified_to_pinned_device_root"]:
        assert verify_device_chain(chain, NVIDIA, NOW).certificates == certificates
        return
    with raises(SignatureError, "chain_length"):
        verify_device_chain(chain, NVIDIA, NOW)


@every_case("case", CASES, ids=lambda case: str(case["name"]))
def test_chains_of_fabricated_cases_are_verified_as_expected(case: dict[str, str]) -> None:
    """Exactly the case with another root fails in its chain; its root may be left out."""
    path = f"fabricated/{case['name']}"
    chain = read_device_chain(read_pem(f"{path}/chain.pem"))
    root = read_pem(f"{path}/device-root.pem")[0]
    if case["failed_check"] == "device_chain":
        with raises(SignatureError, "untrusted_root"):
            verify_device_chain(chain, root, NOW)
        return
    verified = verify_device_chain(chain, root, NOW)
    assert verified.certificates[-1] == root
    assert (len(verified.path), verified.has_device_key) == (5, True)


@needs_shared
def test_chain_without_its_root_is_closed_with_the_trusted_one() -> None:
    """The root may be left out, and the verified chain has it."""
    certificates = sample("hopper-550.90.07").certificates
    chain = read_device_chain(certificates[:-1])
    assert verify_device_chain(chain, NVIDIA, NOW).certificates == certificates


def test_made_chain_gives_its_values() -> None:
    """The values that a chain was made of are those that it is parsed to."""
    chain = read_device_chain(DEVICE.certificates)
    assert chain.chip == ("GH100", "HOPPER")
    assert (chain.chip.kind, chain.hardware_model) == ("gpu", "GH100 A01 GSP BROM")
    assert (chain.leaf_spki, chain.fwid, chain.ueid) == (DEVICE.key.spki, FWID, "12345")
    assert chain.dice_key == chain.brom_spki == authority("GH100 A01 GSP BROM").spki
    assert (chain.pdi.hex(), chain.device_serial) == ("0102030405060708", "410102030405060708")
    verify(DEVICE)


def test_made_chains_of_other_chips_are_verified() -> None:
    """Blackwell has two FWIDs and no key; a switch is one by its name."""
    blackwell = read_device_chain(make_device("GB202").certificates)
    assert blackwell.chip == ("GB202", "BLACKWELL")
    assert (blackwell.fwids, blackwell.dice_key) == ((FWID, bytes(48)), None)
    assert blackwell.has_device_key
    switch = read_device_chain(make_device("LS_10").certificates)
    assert (switch.chip, switch.chip.kind) == (("LS10", "LS10"), "switch")
    verify(make_device("GB202"))
    verify(make_device("LS_10"))


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_certificate_with_changed_signed_byte_is_refused(at: int) -> None:
    """A change of any byte of a certificate below the root is refused."""
    der = DEVICE.certificates[at]
    for offset in range(0, len(der), 7):
        changed = bytearray(der)
        changed[offset] ^= 0x01
        with pytest.raises((FormatError, SignatureError, CollateralExpiredError)):
            verify(with_certificate(at, bytes(changed)))


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize("at", range(5))
def test_sample_certificate_with_any_changed_byte_is_refused(at: int) -> None:
    """A change of any byte of a real certificate is refused, of the root's too."""
    device = Device(sample("hopper-550.90.07").certificates, DEVICE.key)
    for offset in limited(range(len(device.certificates[at]))):
        changed = bytearray(device.certificates[at])
        changed[offset] ^= 0x01
        chain = with_certificate(at, bytes(changed), device).certificates
        with pytest.raises((FormatError, SignatureError, CollateralExpiredError)):
            verify_device_chain(read_device_chain(chain), NVIDIA, NOW)


def test_read_of_every_prefix_of_a_certificate_is_refused() -> None:
    """A truncated certificate is refused, wherever it ends, and the error has its index."""
    for at, der in enumerate(DEVICE.certificates):
        for size in range(len(der)):
            with raises(FormatError, "truncated", "syntax", part=f"certificate {at}: "):
                read_device_chain(with_certificate(at, der[:size]).certificates)


def test_read_of_wrong_number_of_certificates_is_refused() -> None:
    """Two to six certificates are parsed."""
    for count in (0, 1):
        with raises(FormatError, "missing"):
            read_device_chain(DEVICE.certificates[:count])
    with raises(FormatError, "too_many"):
        read_device_chain(DEVICE.certificates[:1] * (MAX_CERTIFICATES + 1))
    assert len(read_device_chain(DEVICE.certificates[:2]).path) == 2


@pytest.mark.parametrize("left_out", [1, 2, 3])
def test_chain_without_an_intermediate_certificate_is_refused(left_out: int) -> None:
    """Four certificates below the root are required."""
    certificates = tuple(der for at, der in enumerate(DEVICE.certificates) if at != left_out)
    if left_out == 1:
        with raises(FormatError, "unsupported", "inconsistent"):
            read_device_chain(certificates)
        return
    with raises(SignatureError, "chain_length"):
        verify_device_chain(read_device_chain(certificates), DEVICE.root, NOW)


def test_device_certified_by_another_device_is_refused() -> None:
    """The key of a BROM cannot certify another device, though its certificate is one of a CA."""
    brom, victim = authority("GH100 A01 GSP BROM"), authority("GH100 A01 GSP BROM victim")
    forged = issue_cloud_authority(
        victim, brom, serial=0x41 << 64 | 99, validity=VALIDITY, path_length=None
    )
    leaf = issue_cloud_leaf(
        (encode_name(CN="GH100 A01 GSP FMC LF"), key("forged").spki),
        victim,
        serial=1,
        validity=VALIDITY,
        extensions=(Extension(COMPOSITE_OID, composite(victim.spki)),),
    )
    certificates = (leaf, forged, *DEVICE.certificates[1:])
    with raises(SignatureError, "chain_length"):
        verify_device_chain(read_device_chain(certificates), DEVICE.root, NOW)
    with raises(SignatureError, "chain_length", "untrusted_root"):
        verify_device_chain(read_device_chain(certificates[:-1]), DEVICE.root, NOW)


def test_chain_of_another_root_is_refused() -> None:
    """A root of another key is refused, even if it has the name of the trusted one."""
    other = make_device("GB202", root="test device root")  # the same root in other certificates
    verify_device_chain(read_device_chain(other.certificates), DEVICE.root, NOW)
    stranger = make_device(root="another device root")
    with raises(SignatureError, "untrusted_root"):
        verify_device_chain(read_device_chain(DEVICE.certificates), stranger.root, NOW)
    with raises(SignatureError, "untrusted_root"):
        verify_device_chain(read_device_chain(DEVICE.certificates[:-1]), stranger.root, NOW)
    namesake = authority("test device root")._replace(key=key("another key"))
    forged = issue_cloud_authority(
        namesake, namesake, serial=5, validity=VALIDITY, path_length=None
    )
    with raises(SignatureError, "untrusted_root"):
        verify_device_chain(
            read_device_chain(with_certificate(4, forged).certificates), DEVICE.root, NOW
        )
    with raises(SignatureError, "untrusted_root"):
        verify_device_chain(read_device_chain(DEVICE.certificates[:-1]), forged, NOW)


def test_root_of_another_key_that_the_trusted_one_signed_is_refused() -> None:
    """A certificate at the root's place must be of the root's key, even if the root signed it."""
    root = authority("test device root")
    signed = issue_cloud_authority(
        root._replace(key=key("another key")), root, serial=6, validity=VALIDITY, path_length=None
    )
    chain = read_device_chain(with_certificate(4, signed).certificates)
    with raises(SignatureError, "untrusted_root"):
        verify_device_chain(chain, DEVICE.root, NOW)


def test_another_certificate_of_the_trusted_root_is_accepted() -> None:
    """A root with the name and key of the trusted one is replaced by it, if it signed itself."""
    root = authority("test device root")
    twin = issue_cloud_authority(
        root, root, serial=77, validity=Window(VALIDITY.start - DAY, NOW - DAY), path_length=None
    )
    chain = read_device_chain(with_certificate(4, twin).certificates)
    assert verify_device_chain(chain, DEVICE.root, NOW).certificates == DEVICE.certificates
    broken = twin[:-1] + bytes([twin[-1] ^ 1])
    chain = read_device_chain(with_certificate(4, broken).certificates)
    with raises(SignatureError, "untrusted_root"):
        verify_device_chain(chain, DEVICE.root, NOW)


@every_case("at", range(5))
def test_chain_with_certificate_out_of_its_validity_is_refused(at: int) -> None:
    """Every certificate must be valid at the time of the verification, the root too."""
    device = make_device(valid={at: Window(NOW - DAY, NOW + DAY)})
    chain = read_device_chain(device.certificates)
    for now in (NOW - DAY, NOW, NOW + DAY):
        verify_device_chain(chain, device.root, now)
    for now in (NOW - 2 * DAY, NOW + 2 * DAY):
        with raises(CollateralExpiredError, "cert_expired"):
            verify_device_chain(chain, device.root, now)


def test_verification_is_repeated_at_another_time() -> None:
    """The time is compared at each verification, also of a path that is cached."""
    device = make_device(valid={1: Window(NOW - DAY, NOW + DAY)})
    chain = verify_device_chain(read_device_chain(device.certificates), device.root, NOW)
    with raises(CollateralExpiredError, "cert_expired"):
        verify_device_chain(chain, device.root, NOW + 2 * DAY)
    assert verify_device_chain(chain, device.root, NOW) == chain


def test_leaf_that_is_an_authority_is_refused() -> None:
    """The certificate of the signing key must be one of an end entity."""
    brom = authority("GH100 A01 GSP BROM")
    leaf = DEVICE.certificates[0]
    as_authority = issue_cloud_authority(
        authority("GH100 A01 GSP FMC LF"), brom, serial=1, validity=VALIDITY, path_length=None
    )
    assert read_path_certificate(leaf).authority is False
    with raises(FormatError, "missing"):  # without a DICE extension
        read_device_chain(with_certificate(0, as_authority).certificates)


def test_leaf_of_another_chip_than_its_brom_is_refused() -> None:
    """A device cannot claim to be another chip than its BROM's certificate states."""
    for name in ("LS_10 A01 FSP FMC LF", "GB100 A01 GSP FMC LF"):
        with raises(FormatError, "inconsistent"):
            read_device_chain(make_device(leaf_name=name).certificates)
    for name in ("GR100 A01 GSP FMC LF", "GH100", "", "NVIDIA GH100 Identity", "gh100 A01"):
        with raises(FormatError, "unsupported"):
            read_device_chain(make_device(leaf_name=name).certificates)


def test_dice_extension_is_required_exactly_once() -> None:
    """None, or one of each kind, is refused."""
    spki = authority("GH100 A01 GSP BROM").spki
    both = [Extension(COMPOSITE_OID, composite(spki)), Extension(TCB_INFO_OID, tcb_info())]
    with raises(FormatError, "missing"):
        read_device_chain(make_device(extensions=[]).certificates)
    with raises(FormatError, "duplicate"):
        read_device_chain(make_device(extensions=both).certificates)
    with raises(FormatError, "duplicate"):
        read_device_chain(make_device(extensions=both[:1] * 2).certificates)


def test_device_key_of_another_brom_is_detected() -> None:
    """The key in the DICE extension is compared with that of the BROM."""
    other = Extension(COMPOSITE_OID, composite(key("another BROM").spki))
    device = make_device(extensions=[other])
    verify(device)
    assert not read_device_chain(device.certificates).has_device_key
    assert read_device_chain(DEVICE.certificates).has_device_key


def test_short_serial_number_of_brom_is_refused() -> None:
    """The serial number of the BROM's certificate has at least the bytes of an identifier."""
    brom, ica = authority("GH100 A01 GSP BROM"), authority("Test GH100 ICA")
    short = issue_cloud_authority(
        brom, ica, serial=(1 << 56) - 1, validity=VALIDITY, path_length=None
    )
    with raises(FormatError, "wrong_size"):
        read_device_chain(with_certificate(1, short).certificates)
    lowest = issue_cloud_authority(brom, ica, serial=1 << 56, validity=VALIDITY, path_length=None)
    chain = read_device_chain(with_certificate(1, lowest).certificates)
    assert chain.pdi == b"\x01" + bytes(7)
