"""Content of RIMs: samples, and what is rejected although it is signed."""

import pickle
from dataclasses import replace

import pytest

from attestkit.errors import FormatError, GpuEvidenceError
from attestkit.gpu.rim.document import read_document
from attestkit.gpu.rim.manifest import MAX_MEASUREMENTS, Rim, RimMeasurement, read_measurements
from attestkit.gpu.rim.verification import verify_rim
from tests.gpu.rim import samples
from tests.gpu.rim.rims import HASHES, NOW, manifest, resource, sign, signer
from tests.gpu.simulated_machine import NONCE, machine, verify_machine
from tests.gpu.simulated_machine import NOW as MACHINE_NOW
from tests.raising import raises
from tests.runner.cases import every_case

GOOD = manifest()


@samples.needs_shared
@every_case("name", samples.EXPECTED["rims"])
def test_fields_of_sample(name: str) -> None:
    """Names, versions and active measurements are the expected ones."""
    expected = samples.EXPECTED["rims"][name]
    rim = Rim.parse(samples.read(name))
    assert rim.tag_id == expected["tag_id"]
    assert rim.name == expected["name"]
    assert rim.version == expected["colloquial_version"]
    assert rim.product == expected["product"]
    assert rim.edition == expected["edition"]
    assert rim.manufacturer_id == expected["manufacturer_id"]
    assert list(rim.measurements) == list(range(expected["resources"]))
    assert sorted(rim.active) == expected["active"]
    alternatives = {
        str(index): len(one.alternatives)
        for index, one in rim.measurements.items()
        if len(one.alternatives) > 1
    }
    assert alternatives == expected["with_alternatives"]
    assert len(rim.certificates) == len(expected["certificates"])


@samples.needs_shared
@every_case("name", samples.EXPECTED["malformed_rims"])
def test_malformed_sample(name: str) -> None:
    """Malformed manifests are rejected, and those without a signature."""
    if samples.EXPECTED["malformed_rims"][name]["signed_by_pinned_root"]:
        assert Rim.parse(samples.read(name)).product == "GH100"
        return
    with pytest.raises(FormatError):
        Rim.parse(samples.read(name))


PAYLOADS = {
    "failure_duplicate_index": "duplicate",
    "failure_empty_payload": "missing",
    "failure_invalid_alternatives": "wrong_value",
    "failure_invalid_index": "wrong_value",
    "failure_missing_alternatives": "missing",
    "failure_missing_index": "missing",
    "success_payload_multiple_alternatives": "",
    "success_payload_multiple_measurements": "wrong_size",  # not SHA-384, which its origin allows
}


@samples.needs_shared
@pytest.mark.parametrize(("name", "reason"), PAYLOADS.items())
def test_payload_of_malformed_sample(name: str, reason: str) -> None:
    """The payloads alone, without a signature, are accepted or rejected as by their origin."""
    root = read_document(samples.read(f"rims/synthetic/{name}.xml"))
    (payload,) = [one for one in root.elements() if one.local == "Payload"]
    if not reason:
        assert read_measurements(payload)
        return
    # Their sizes and hashes are invalid too, and are checked after the index.
    with raises(FormatError, reason, "wrong_size"):
        read_measurements(payload)


def test_measurements_of_manifest() -> None:
    """Measurements have their accepted values in order, and keep the inactive ones."""
    rim = Rim.parse(sign(GOOD))
    assert rim.measurements == {
        0: RimMeasurement(True, HASHES[:1], "Measurement_0"),
        1: RimMeasurement(True, HASHES[1:3], "Measurement_1"),
        2: RimMeasurement(False, HASHES[3:4], "Measurement_2"),
    }
    assert rim.active == {0, 1}
    assert (rim.version, rim.product, rim.edition) == ("1.2.3", "GH100", "GPU")
    assert rim.certificates == signer().certificates
    assert pickle.loads(pickle.dumps(rim)) == rim


HASH = HASHES[0].hex()
CHANGES = {
    "root of another name": ("SoftwareIdentity", "SoftwareIdentitx", "unrecognized"),
    "root of another namespace": ("2015/schema.xsd", "2016/schema.xsd", "unrecognized"),
    "no name": (' name="GH100"', "", "missing"),
    "no tag": ("tagId=", "tagIe=", "missing"),
    "short tag": ('tagId="5a', 'tagId="', "wrong_size"),
    "tag not hex": ('tagId="5a', 'tagId="zz', "encoding"),
    "no version": ("colloquialVersion=", "colloquialVersiom=", "missing"),
    "empty version": ('colloquialVersion="1.2.3"', 'colloquialVersion=""', "wrong_value"),
    "version not ASCII": ('"1.2.3"', '"1.2.é"', "wrong_value"),
    "version with a line break": ('"1.2.3"', '"1.2.3&#10;"', "wrong_value"),
    "version in a namespace": ("colloquialVersion", "t:colloquialVersion", "missing"),
    "long version": ('"1.2.3"', f'"{129 * "1"}"', "wrong_value"),
    "no product": ("product=", "productt=", "missing"),
    "no edition": ("edition=", "editiom=", "missing"),
    "no manufacturer": ("t:FirmwareManufacturerId", "FirmwareManufacturerId", "missing"),
    "no Meta": ("s:Meta", "s:Entity", "missing"),
    "Meta of another namespace": ("<s:Meta", "<t:Meta", "unknown_field"),
    "two Meta": ("<s:Payload>", "<s:Meta/><s:Payload>", "duplicate"),
    "two payloads": ("<s:Payload>", "<s:Payload/><s:Payload>", "duplicate"),
    "content of Meta": ("<s:Payload>", "<s:Meta><s:a/></s:Meta><s:Payload>", "duplicate"),
    "content of Entity": ("<s:Payload>", "<s:Entity>a</s:Entity><s:Payload>", "unknown_field"),
    "unknown element": ("<s:Payload>", "<s:Link/><s:Payload>", "unknown_field"),
    "text": ("<s:Payload>", "x<s:Payload>", "unknown_field"),
    "text in the payload": ("<s:Payload>", "<s:Payload>x", "unknown_field"),
    "directory": ("<s:Payload>", "<s:Payload><s:Directory/>", "unknown_field"),
    "resource of another namespace": ("<s:Payload>", "<s:Payload><h:Resource/>", "unknown_field"),
    "nested resource": (
        "<s:Payload>",
        '<s:Payload><s:Resource type="Measurement"><s:a/></s:Resource>',
        "unknown_field",
    ),
    "other type": ('type="Measurement"', 'type="Firmware"', "wrong_value"),
    "no type": ('type="Measurement"', "", "missing"),
    "other size": ('size="48"', 'size="32"', "wrong_size"),
    "no size": ('size="48"', "", "missing"),
    "no resource's name": ('name="Measurement_0"', "", "missing"),
    "active in lower case": ('active="True"', 'active="true"', "wrong_value"),
    "no active": ('active="True"', "", "missing"),
    "no index": ('index="0"', "", "missing"),
    "empty index": ('index="0"', 'index=""', "wrong_value"),
    "index with a sign": ('index="0"', 'index="+0"', "wrong_value"),
    "index with a zero": ('index="0"', 'index="00"', "wrong_value"),
    "negative index": ('index="0"', 'index="-1"', "wrong_value"),
    "index of other digits": ('index="0"', 'index="\u0660"', "wrong_value"),
    "large index": ('index="0"', f'index="{MAX_MEASUREMENTS}"', "wrong_value"),
    "huge index": ('index="0"', f'index="{10**100}"', "wrong_value"),
    "index twice": ('index="0"', 'index="1"', "duplicate"),
    "no alternatives": ('alternatives="1"', "", "missing"),
    "zero alternatives": ('alternatives="1"', 'alternatives="0"', "wrong_value"),
    "more alternatives": ('alternatives="1"', 'alternatives="2"', "wrong_size"),
    "fewer alternatives": ('alternatives="2"', 'alternatives="1"', "wrong_size"),
    "too many alternatives": ('alternatives="1"', 'alternatives="17"', "wrong_value"),
    "hash of another number": ("h:Hash1", "h:Hash2", "wrong_size"),
    "hash without a namespace": ("h:Hash0", "Hash0", "unknown_field"),
    "hash of another namespace": ("xmlenc#sha384", "xmlenc#sha512", "wrong_size"),
    "short hash": (HASH, HASH[:-2], "wrong_size"),
    "long hash": (HASH, f"{HASH}00", "wrong_size"),
    "half a byte": (HASH, HASH[:-1], "encoding"),
    "hash not hex": (HASH, f"zz{HASH[2:]}", "encoding"),
    "unknown attribute": ('size="48"', 'size="48" rank="1"', "unknown_field"),
}


@every_case(("old", "new", "reason"), CHANGES.values(), ids=CHANGES)
def test_other_content_is_rejected_although_signed(old: str, new: str, reason: str) -> None:
    """Parts that are missing, unknown, twice or out of range are rejected by both functions."""
    assert old in GOOD.decode()
    changed = sign(GOOD.decode().replace(old, new).encode())
    with raises(FormatError, reason):
        Rim.parse(changed)
    with raises(FormatError, reason):
        verify_rim(changed, signer().root, NOW)


def test_empty_payload_is_rejected() -> None:
    """A manifest has at least one measurement."""
    with raises(FormatError, "missing"):
        Rim.parse(sign(manifest([])))


def test_malformed_certificate_is_rejected() -> None:
    """Certificates are parsed, and the error names the malformed one."""
    certificates = [*signer().certificates[:2], b"\x30\x00", signer().root]
    with raises(FormatError, "truncated", "wrong_type", "syntax", start="RIM: certificate 2: "):
        Rim.parse(sign(GOOD, certificates=certificates))


def test_malformed_manifest_of_a_device_is_named_once() -> None:
    """The error names the malformed manifest, and names it once."""
    gpus = machine(1)
    good = gpus.endorsements(MACHINE_NOW.timestamp(), NONCE)
    changed = replace(good, rims=dict.fromkeys(good.rims, sign(manifest([]))))
    with raises(GpuEvidenceError, "driver_rim_format", part=": driver RIM: ") as caught:
        verify_machine(gpus, endorsements=changed)
    assert ": RIM: " not in str(caught.value)


def test_largest_manifest_is_accepted() -> None:
    """All indexes of SPDM's blocks, with 16 alternatives each, are within the limits."""
    hashes = [bytes([number]) * 48 for number in range(16)]
    resources = [resource(index, *hashes) for index in range(MAX_MEASUREMENTS)]
    rim = Rim.parse(sign(manifest(resources)))
    assert len(rim.active) == MAX_MEASUREMENTS
    assert rim.measurements[253].alternatives == tuple(hashes)


def test_upper_case_hash_is_accepted() -> None:
    """Hex digits are accepted in both cases."""
    changed = GOOD.replace(HASH.encode(), HASH.upper().encode())
    assert Rim.parse(sign(changed)).measurements[0].alternatives == HASHES[:1]
