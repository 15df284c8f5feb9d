"""Attempts on reports, certificates and JSON of GPUs and switches."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

from attestkit._crypto.x509.simulated.certificate_encoder import Issuer, Window
from attestkit._crypto.x509.simulated.cloud_certificates import (
    encode_name,
    issue_cloud_authority,
    issue_cloud_leaf,
)
from attestkit.backends.simulator.gpu.gpu_pki import GpuPki
from attestkit.backends.simulator.gpu.gpu_reports import ReportContent
from attestkit.backends.simulator.gpu.simulated_gpus import SimulatedGpus
from attestkit.errors import GpuEvidenceError
from attestkit.gpu.device import opaque_data as fields
from attestkit.gpu.evidence import GpuEvidence
from attestkit.gpu.result import GpuResult
from attestkit.gpu.roots import GpuRoots
from attestkit.gpu.rules import GpuRules
from tests.attacks.attempts import Surfaces
from tests.gpu.made_devices import key, make_device, report_bytes
from tests.gpu.simulated_machine import NONCE, NOW, machine, verify_machine

if TYPE_CHECKING:
    from attestkit._crypto.p384 import P384Key

attacks = Surfaces("gpu")
GPUS: Final = machine(2)
assert len(verify_machine(GPUS).devices) == 2  # what the attempts alter is accepted
assert len(verify_machine(machine(8)).switches) == 4
FIRST, SECOND = GPUS.evidence(NONCE).devices
PKI: Final = GpuPki(GPUS.derive)
VALID: Final = Window(NOW.replace(year=2020), NOW.replace(year=2030))


def with_first(**members: Any) -> GpuResult:
    """Verify the machine with other members of the first device's evidence."""
    return verify_machine(GPUS, GpuEvidence((replace(FIRST, **members), SECOND)))


def with_content(
    change: Callable[[ReportContent], ReportContent], gpus: SimulatedGpus = GPUS, **rules: Any
) -> GpuResult:
    """Verify a machine whose first device signs another report."""
    first, *others = gpus.evidence(NONCE).devices
    own = gpus.devices[0]
    signed = change(own.content(NONCE)).sign(own.device.key)
    changed = GpuEvidence((replace(first, report=signed), *others))
    return verify_machine(gpus, changed, rules=GpuRules(**rules))


# -- reports -----------------------------------------------------------------------------------


@attacks.attempt("forge", GpuEvidenceError, "report_signature")
def report_signed_by_the_boot_rom() -> GpuResult:
    """The CA of a device, not its leaf, signs the report."""
    own = GPUS.devices[0]
    key = cast("P384Key", PKI.brom("gpu/0", own.model).authority.key)
    return with_first(report=own.content(NONCE).sign(key))


@attacks.attempt("forge", GpuEvidenceError, "report_signature")
def signature_above_the_order() -> GpuResult:
    """Values of r and s that no reduction may make valid."""
    return with_first(report=FIRST.report[:-96] + b"\xff" * 96)


@attacks.attempt("recombine", GpuEvidenceError, "report_signature")
def signature_of_the_same_devices_older_report() -> GpuResult:
    """A genuine signature of the same key over another nonce."""
    old = GPUS.evidence(bytes(32)).devices[0].report
    return with_first(report=FIRST.report[:-96] + old[-96:])


@attacks.attempt("replay", GpuEvidenceError, "nonce")
def nonce_as_that_of_the_responder() -> GpuResult:
    """The verifier's nonce is signed, but in the field that the device chooses."""
    return with_content(lambda one: one._replace(nonce=bytes(32), responder_nonce=NONCE))


@attacks.attempt("replay", GpuEvidenceError, "nonce")
def nonce_in_an_opaque_field() -> GpuResult:
    """The verifier's nonce is signed, but in a field of unknown type."""
    return with_content(lambda one: one._replace(nonce=bytes(32)).add_field(200, NONCE))


@attacks.attempt("replay", GpuEvidenceError, "nonce")
def nonce_stated_in_the_json_only() -> GpuResult:
    """The JSON states the verifier's nonce beside a report of another one."""
    return with_first(report=GPUS.evidence(bytes(32)).devices[0].report, nonce=NONCE)


@attacks.attempt("replay", GpuEvidenceError, "nonce")
def one_old_device_of_eight() -> GpuResult:
    """The last switch replays the report of an earlier nonce."""
    gpus = machine(8)
    old = gpus.evidence(bytes(32)).devices[-1]
    return verify_machine(gpus, GpuEvidence((*gpus.evidence(NONCE).devices[:-1], old)))


@attacks.attempt("confuse", GpuEvidenceError, "device_chain")
def report_of_a_switch_by_a_gpu() -> GpuResult:
    """A GPU signs a report in the form of a switch, which has fewer checks."""
    switch, own = machine(8).devices[-1], GPUS.devices[0]
    report = switch.content(NONCE).sign(own.device.key)
    return with_first(architecture=None, report=report)


@attacks.attempt("confuse", GpuEvidenceError, "device_chain")
def report_of_a_gpu_by_a_switch() -> GpuResult:
    """A switch signs a report in the form of a GPU."""
    gpus = machine(8)
    report = GPUS.devices[0].content(NONCE).sign(gpus.devices[-1].device.key)
    *others, last = gpus.evidence(NONCE).devices
    made = GpuEvidence((*others, replace(last, architecture=None, report=report)))
    return verify_machine(gpus, made)


@attacks.attempt("confuse", GpuEvidenceError, "device_chain")
def chip_info_of_another_chip() -> GpuResult:
    """A report that names another chip would choose that chip's manifests."""
    return with_content(lambda one: one.add_field(fields.CHIP_INFO, b"GB100\0"))


@attacks.attempt("forge", GpuEvidenceError, "fwid")
def fwid_of_zeros() -> GpuResult:
    """A report of firmware without identity."""
    return with_content(lambda one: one.with_field(fields.FWID, bytes(48)), allow_absent_fwid=True)


@attacks.attempt("forge", GpuEvidenceError, "format")
def fwid_that_is_a_prefix() -> GpuResult:
    """The first half of the right identity."""
    half = GPUS.devices[0].device.fwid[:24]
    return with_content(lambda one: one.with_field(fields.FWID, half), allow_absent_fwid=True)


@attacks.attempt("confuse", GpuEvidenceError, "format")
def two_driver_versions() -> GpuResult:
    """The second one would hide a driver that the policy does not accept."""
    return with_content(lambda one: one.add_field(fields.DRIVER_VERSION, b"999.99.99\0"))


@attacks.attempt("confuse", GpuEvidenceError, "format")
def driver_version_with_text_behind_a_nul() -> GpuResult:
    """A version that programs in C and in Python read differently."""
    return with_content(
        lambda one: one.with_field(fields.DRIVER_VERSION, b"999.10.01\0" + b"1.2.3\0")
    )


@attacks.attempt("confuse", GpuEvidenceError, "format")
def driver_version_as_a_path() -> GpuResult:
    """The version is part of the address of a manifest."""
    return with_content(lambda one: one.with_field(fields.DRIVER_VERSION, b"../../x\0"))


@attacks.attempt("confuse", GpuEvidenceError, "format")
def opaque_data_of_a_later_version() -> GpuResult:
    """Fields whose meaning this version does not know."""
    return with_content(lambda one: one.add_field(fields.OPAQUE_VERSION, b"\2\0"))


@attacks.attempt("exhaust", GpuEvidenceError, "format")
def opaque_data_of_many_fields() -> GpuResult:
    """Sixty-four empty fields beside the known ones."""

    def add(one: ReportContent) -> ReportContent:
        return one._replace(opaque=(*one.opaque, *((300 + at, b"") for at in range(64))))

    return with_content(add)


@attacks.attempt("forge", GpuEvidenceError, "modes")
def status_of_protected_pcie_alone_on() -> GpuResult:
    """One of two GPUs claims protected memory."""
    return with_content(lambda one: one.with_field(fields.PROTECTED_PCIE_STATUS, b"\xaa"))


@attacks.attempt("forge", GpuEvidenceError, "measurements")
def measurement_of_zeros() -> GpuResult:
    """A measurement that firmware did not take."""
    return with_content(lambda one: one.measured(9, bytes(48)))


@attacks.attempt("recombine", GpuEvidenceError, "measurements")
def measurements_of_two_indexes_exchanged() -> GpuResult:
    """Golden values in each other's places."""

    def swap(one: ReportContent) -> ReportContent:
        first, second = one.measurements[9], one.measurements[25]
        assert first != second
        return one.measured(9, second).measured(25, first)

    return with_content(swap)


@attacks.attempt("confuse", GpuEvidenceError, "measurements")
def video_decoder_off_hides_other_indexes() -> GpuResult:
    """The decoder that is off excuses one index, and no other one."""

    def change(one: ReportContent) -> ReportContent:
        return one.with_field(fields.NVDEC0_STATUS, b"\x55").measured(26, b"\xee" * 48)

    return with_content(change)


# -- certificates ------------------------------------------------------------------------------


def own_leaf(issuer: Issuer, spki: bytes) -> bytes:
    """Return a leaf of the attacker, with the name and extensions of the genuine one."""
    from attestkit._crypto.x509.simulated.gpu_extensions import encode_dice_fwid

    own = GPUS.devices[0].device
    brom = PKI.brom("gpu/0", own.model)
    subject = encode_name(CN=f"{own.model.chip} A01 GSP FMC LF")
    return issue_cloud_leaf(
        (subject, spki),
        issuer,
        serial=77,
        validity=VALID,
        extensions=(encode_dice_fwid(brom.authority.spki, own.fwid),),
        constrained=False,
    )


@attacks.attempt("forge", GpuEvidenceError, "device_chain")
def leaf_below_the_leaf() -> GpuResult:
    """The key of a genuine leaf certifies a key of the attacker's."""
    own, mine = GPUS.devices[0], key("attacker")
    leaf = own_leaf(Issuer(encode_name(CN="GH100 A01 GSP FMC LF"), own.device.key), mine.spki)
    chain = (leaf, *FIRST.certificates)
    return with_first(report=own.content(NONCE).sign(mine), certificates=chain)


@attacks.attempt("forge", GpuEvidenceError, "device_chain")
def leaf_in_place_of_the_boot_rom() -> GpuResult:
    """The genuine leaf stands where its CA must be."""
    own, mine = GPUS.devices[0], key("attacker")
    leaf = own_leaf(Issuer(encode_name(CN="GH100 A01 GSP FMC LF"), own.device.key), mine.spki)
    chain = (leaf, FIRST.certificates[0], *FIRST.certificates[2:])
    return with_first(report=own.content(NONCE).sign(mine), certificates=chain)


@attacks.attempt("forge", GpuEvidenceError, "device_chain")
def root_with_the_name_of_the_trusted_one() -> GpuResult:
    """The attacker's root has the subject and serial number of the trusted one."""
    root, mine = PKI.device_root, key("attacker")
    fake = Issuer(root.authority.name, mine)
    der = issue_cloud_authority(fake, fake, serial=1, validity=VALID, path_length=None)
    return with_first(certificates=(*FIRST.certificates[:-1], der))


@attacks.attempt("recombine", GpuEvidenceError, "device_chain")
def root_of_the_manifests_as_that_of_devices() -> GpuResult:
    """Both roots are trusted, each for its own purpose."""
    return with_first(certificates=(*FIRST.certificates[:-1], PKI.rim_root.der))


@attacks.attempt("forge", GpuEvidenceError, "device_chain", "device_key")
def device_of_own_make_without_its_root() -> GpuResult:
    """A chain of the attacker's with the usual names, whose root is left out."""
    made = make_device("GH100")
    return with_first(certificates=made.certificates[:-1], report=report_bytes(made.key))


@attacks.attempt("replay", GpuEvidenceError, "device_chain")
def chain_that_another_verifier_accepted() -> GpuResult:
    """A chain that was verified under one trust anchor is rejected under another."""
    other = SimulatedGpus(b"\x66" * 32, 2)
    assert verify_machine(other).devices
    assert verify_machine(other).devices  # kept now
    return verify_machine(other, roots=GPUS.roots)


@attacks.attempt("replay", GpuEvidenceError, "driver_rim_chain")
def manifest_that_another_verifier_accepted() -> GpuResult:
    """The same for manifests, whose root is chosen apart."""
    mixed = GpuRoots(GPUS.roots.device, SimulatedGpus(b"\x66" * 32, 2).roots.rim)
    return verify_machine(GPUS, roots=mixed)


@attacks.attempt("confuse", GpuEvidenceError, "device_chain")
def roots_exchanged() -> GpuResult:
    """A verifier that is given both roots in the other order trusts nothing."""
    return verify_machine(GPUS, roots=GpuRoots(GPUS.roots.rim, GPUS.roots.device))


@attacks.attempt("replay", GpuEvidenceError, "device_chain")
def verification_before_the_device_was_made() -> GpuResult:
    """A clock that the attacker has set back, after the chain was verified."""
    return verify_machine(GPUS, now=NOW.replace(year=2019))


# -- machines ----------------------------------------------------------------------------------


def protected(*parts: tuple[SimulatedGpus, slice]) -> GpuResult:
    """Verify devices of machines with switches, which have the same vendors."""
    devices = [one for gpus, part in parts for one in gpus.evidence(NONCE).devices[part]]
    return verify_machine(machine(8), GpuEvidence(tuple(devices)))


def _with_pdis(at: int, kind: int, *devices: Any) -> GpuResult:
    """Verify the machine with switches, in which a device states other connections."""
    gpus = machine(8)
    own, found = gpus.devices[at], list(gpus.evidence(NONCE).devices)
    content = own.content(NONCE).with_field(kind, b"".join(devices))
    found[at] = replace(found[at], report=content.sign(own.device.key))
    return verify_machine(gpus, GpuEvidence(tuple(found)))


PDIS: Final = [one.device.pdi for one in machine(8).devices]
attacks.add(
    "recombine",
    "GPU connected to a switch that is not in the evidence",
    lambda: _with_pdis(0, fields.SWITCH_PDIS, *(one[::-1] for one in PDIS[8:]), b"\7" * 8),
    GpuEvidenceError,
    "topology",
)
attacks.add(
    "recombine",
    "GPU connected to no switch",
    lambda: _with_pdis(0, fields.SWITCH_PDIS, bytes(8 * 18)),
    GpuEvidenceError,
    "topology",
)
attacks.add(
    "recombine",
    "switch with a GPU of another tenant",
    lambda: _with_pdis(8, fields.GPU_PDIS, *PDIS[:7], b"\7" * 8, b"\xff" * 64),
    GpuEvidenceError,
    "topology",
)
attacks.add(
    "forge",
    "switch that states the identifier of another one",
    lambda: _with_pdis(8, fields.SWITCH_PDIS, PDIS[9]),
    GpuEvidenceError,
    "topology",
)


@attacks.attempt("recombine", GpuEvidenceError, "topology")
def switch_named_as_a_gpu_twice() -> GpuResult:
    """The same switch stands for two."""
    return protected((machine(8), slice(0, 11)), (machine(8), slice(10, 11)))


@attacks.attempt("recombine", GpuEvidenceError, "topology", "device_count")
def switches_of_the_machine_beside_no_gpu() -> GpuResult:
    """Switches alone, where the policy has a rule about GPUs."""
    devices = machine(8).evidence(NONCE).devices[8:]
    return verify_machine(machine(8), GpuEvidence(devices), rules=GpuRules(min_driver="1"))
