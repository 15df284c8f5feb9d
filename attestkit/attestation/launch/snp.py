"""Launch measurement of an AMD SEV-SNP guest (SEV Secure Nested Paging Firmware ABI, 8.17.2).

The firmware extends a SHA-384 digest page by page: the guest's firmware (OVMF), a page with the
hashes of kernel, initrd and command line, and the initial VMSA of every virtual CPU.

The VMSA is the initial save area of a virtual CPU (AMD64 APM, vol. 2, table B-4).
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from attestkit._crypto.hashes import sha256, sha384
from attestkit._formats.cbor import Value
from attestkit._outcomes.reasons import FormatReason
from attestkit._sanitize import shown
from attestkit.attestation.launch.kernel_cmdline import has_rootfs_hash
from attestkit.errors import FormatError

RESET_VECTOR: Final = 0xFFFFFFF0
"""EIP of the first virtual CPU."""

_SIZE: Final = 4096  # bytes


class Segment(NamedTuple):
    """A segment register of a virtual CPU: selector, attributes, limit and base."""

    selector: int  # 16 bits
    attributes: int  # 12 bits, as in the VMSA
    limit: int = 0xFFFF  # last offset
    base: int = 0  # linear address


class CpuState(NamedTuple):
    """Registers of a virtual CPU in which VMMs differ; others have their values after reset."""

    rip: int
    code: Segment  # CS
    stack: Segment = Segment(0, 0x93)  # SS
    data: Segment = Segment(0, 0x93)  # ES, DS, FS
    task_attributes: int = 0x8B  # of TR
    cr0: int = 0x10
    pat: int = 0x0007040600070406
    rdx: int = 0
    mxcsr: int = 0x1F80
    x87_control: int = 0x37F


def reset_state(eip: int, cpu_signature: int) -> CpuState:
    """Return the state of a virtual CPU of QEMU that starts in real mode.

    Args:
        eip: Physical address of the first instruction, 32 bits.
        cpu_signature: EAX of CPUID function 1, which is in RDX after reset; see `cpu_signature`.
    """
    return CpuState(
        rip=eip & 0xFFFF, code=Segment(0xF000, 0x9B, base=eip & 0xFFFF0000), rdx=cpu_signature
    )


def build_vmsa(state: CpuState, guest_features: int) -> bytes:
    """Return the save area (VMSA) of a virtual CPU: 4096 bytes.

    Args:
        state: Registers of the virtual CPU.
        guest_features: SEV_FEATURES, 64 bits.
    """
    page = bytearray(_SIZE)

    def put(at: int, value: int, size: int = 8) -> None:
        page[at : at + size] = value.to_bytes(size, "little")

    def segment(at: int, value: Segment) -> None:
        put(at, value.selector, 2)
        put(at + 2, value.attributes, 2)
        put(at + 4, value.limit, 4)
        put(at + 8, value.base)

    for at in (0x00, 0x30, 0x40):  # ES, DS, FS
        segment(at, state.data)
    segment(0x10, state.code)
    segment(0x20, state.stack)
    segment(0x50, Segment(0, 0x93))  # GS
    segment(0x60, Segment(0, 0))  # GDTR
    segment(0x70, Segment(0, 0x82))  # LDTR
    segment(0x80, Segment(0, 0))  # IDTR
    segment(0x90, Segment(0, state.task_attributes))  # TR
    put(0xD0, 0x1000)  # EFER
    put(0x148, 0x40)  # CR4
    put(0x158, state.cr0)
    put(0x160, 0x400)  # DR7
    put(0x168, 0xFFFF0FF0)  # DR6
    put(0x170, 2)  # RFLAGS
    put(0x178, state.rip)
    put(0x268, state.pat)
    put(0x310, state.rdx)
    put(0x3B0, guest_features)  # SEV_FEATURES
    put(0x3E8, 1)  # XCR0
    put(0x408, state.mxcsr, 4)
    put(0x410, state.x87_control, 2)
    return bytes(page)


_PAGE = 4096
# The reference verifier accepts 16,777,216 pages: 25 seconds of hashing for an unsigned document of
# a few hundred bytes. OVMF has 31.
_MAX_PAGES = 65_536
_ZERO_PAGES = {1: 3, 4: 3}  # section type: page type; contents of the pages are not measured
_SINGLE_PAGES = {2: 5, 3: 6}  # section type: page type; secrets and CPUID
_KERNEL_HASHES = 0x10
NORMAL_PAGE, VMSA_PAGE = 1, 2
"""Page types: contents that are measured, and the save area of a virtual CPU."""
VMSA_GPA = 0x0000_FFFF_FFFF_F000
"""Guest physical address with which every save area is measured."""

# GUIDs in memory byte order (OVMF's table of hashes, which QEMU fills).
_TABLE = bytes.fromhex("06d63894224fc94cb479a793d411fd21")
_CMDLINE = bytes.fromhex("d82dd09720bd944caa78e7714d36ab2a")
_INITRD = bytes.fromhex("31f7ba442f3ad74b9af141e29169781d")
_KERNEL = bytes.fromhex("3794e74dd2ab7f42b835d5b172d2045b")

CPU_IDENTITIES: dict[str, tuple[int, int, int]] = {
    **dict.fromkeys(["epyc", "epyc-v1", "epyc-v2", "epyc-v3", "epyc-v4", "epyc-ibpb"], (23, 1, 2)),
    **dict.fromkeys(["epyc-rome", "epyc-rome-v1", "epyc-rome-v2", "epyc-rome-v3"], (23, 49, 0)),
    **dict.fromkeys(["epyc-milan", "epyc-milan-v1", "epyc-milan-v2"], (25, 1, 1)),
    **dict.fromkeys(["epyc-genoa", "epyc-genoa-v1"], (25, 17, 0)),
}
"""Family, model and stepping of CPU types of QEMU, by names in lower case."""
CPU_TYPES = ("EPYC", "EPYC-Rome", "EPYC-Milan", "EPYC-Genoa")
"""CPU types of QEMU, one for each that is measured differently."""


class OvmfSection(NamedTuple):
    """A section of OVMF metadata: guest physical address, size in bytes, and kind."""

    gpa: int  # guest physical address
    size: int  # bytes
    kind: int  # 1 and 4 are zeroed memory, 2 secrets, 3 CPUID, 0x10 kernel hashes

    @property
    def pages(self) -> int:
        """Number of pages, rounded up."""
        return (self.size + _PAGE - 1) // _PAGE


class SnpLaunch(NamedTuple):
    """Launch parameters of an SEV-SNP guest: virtual CPUs, their type in QEMU, and SEV_FEATURES."""

    vcpus: int  # 1 to 512
    vcpu_type: str  # CPU type of QEMU
    guest_features: int  # SEV_FEATURES, 64 bits


class SnpImage(NamedTuple):
    """Measurement document of an image, for SEV-SNP."""

    cmdline: str
    ovmf_hash: bytes  # 48 bytes
    kernel_hash: bytes  # 32 bytes
    initrd_hash: bytes  # 32 bytes
    hashes_table_gpa: int  # guest physical address of the table of kernel hashes
    reset_eip: int  # EIP of all virtual CPUs but the first
    ovmf_sections: tuple[OvmfSection, ...]

    @classmethod
    def read(cls, document: dict[Value, Value]) -> "SnpImage":
        """Convert the measurement document, decoded from CBOR.

        Raises:
            FormatError: If a field is missing or invalid, or the version is not 3.
        """
        if document.get("version") != 3:
            raise _error("unsupported_version", "version must be 3")
        cmdline, sections = document.get("cmdline"), document.get("ovmf_sections")
        if not isinstance(cmdline, str):
            raise _error("wrong_type", "cmdline must be text")
        if not isinstance(sections, list):
            raise _error("wrong_type", "ovmf_sections must be an array")
        return cls(
            cmdline=cmdline,
            ovmf_hash=_bytes(document, "ovmf_hash", {48}),
            kernel_hash=_bytes(document, "kernel_hash", {32}),
            initrd_hash=_bytes(document, "initrd_hash", {0, 32}) or sha256(b""),
            hashes_table_gpa=_number(document, "hashes_table_gpa", 64),
            reset_eip=_number(document, "reset_eip", 32),
            ovmf_sections=tuple([_section(section) for section in sections]),
        )


def compute_measurement(image: SnpImage, launch: SnpLaunch) -> bytes:
    """Return the launch measurement (48 bytes) of an image with these launch parameters.

    Raises:
        FormatError: If a value is out of range, the CPU type or a section type is unknown, the
            command line does not name the root file system (`dstack.rootfs_hash`), or no section is
            for kernel hashes.
    """
    _check(image, launch)
    digest = image.ovmf_hash
    for section in image.ovmf_sections:
        for kind, gpa, contents in _section_pages(image, section):
            digest = extend_page(digest, kind, gpa, contents)
    family, model, stepping = CPU_IDENTITIES[launch.vcpu_type.strip().lower()]
    signature = cpu_signature(family, model, stepping)
    first, others = [
        sha384(build_vmsa(reset_state(eip, signature), launch.guest_features))
        for eip in (RESET_VECTOR, image.reset_eip)
    ]
    for vcpu in range(launch.vcpus):
        digest = extend_page(digest, VMSA_PAGE, VMSA_GPA, others if vcpu else first)
    return digest


def canonical_cpu_type(name: str) -> str:
    """Return the name in `CPU_TYPES` whose measurement the CPU type `name` of QEMU shares.

    Raises:
        FormatError: If the type is unknown.
    """
    identity = CPU_IDENTITIES.get(name.strip().lower())
    for known in CPU_TYPES:
        if CPU_IDENTITIES[known.lower()] == identity:
            return known
    raise FormatError(f"sev_snp_measurement: {_unsupported_cpu(name)}", reason="unsupported")


def _unsupported_cpu(name: str) -> str:
    return f"vcpu_type: unsupported CPU type: {shown(name)}"


def _check(image: SnpImage, launch: SnpLaunch) -> None:
    sections = image.ovmf_sections
    kinds = {section.kind for section in sections}
    unknown = sorted(kinds - _ZERO_PAGES.keys() - _SINGLE_PAGES.keys() - {_KERNEL_HASHES})
    kind = shown(unknown[0]) if unknown else ""
    offset = image.hashes_table_gpa % _PAGE
    in_memory = all(section.gpa + section.size < 1 << 64 for section in sections)
    rules: list[tuple[bool, FormatReason, str]] = [
        (launch.guest_features != 0, "wrong_value", "guest_features must not be 0"),
        (
            has_rootfs_hash(image.cmdline),
            "missing",
            "cmdline must have dstack.rootfs_hash=<64 hex digits>",
        ),
        (1 <= launch.vcpus <= 512, "wrong_value", "vcpus must be 1 to 512"),
        (
            launch.vcpu_type.strip().lower() in CPU_IDENTITIES,
            "unsupported",
            _unsupported_cpu(launch.vcpu_type),
        ),
        (1 <= len(sections) <= 64, "wrong_size", "ovmf_sections must be 1 to 64 sections"),
        (all(section.size for section in sections), "wrong_value", "ovmf_sections: one is empty"),
        (in_memory, "wrong_value", "ovmf_sections: a section exceeds 64-bit addresses"),
        (
            sum(s.pages for s in sections) <= _MAX_PAGES,
            "too_large",
            "ovmf_sections: more than 65,536 pages",
        ),
        (not unknown, "unsupported", f"ovmf_sections: unsupported section type: {kind}"),
        (_KERNEL_HASHES in kinds, "missing", "ovmf_sections: no section for kernel hashes"),
        (image.hashes_table_gpa != 0, "wrong_value", "hashes_table_gpa must not be 0"),
        (offset + 176 <= _PAGE, "wrong_value", "hashes_table_gpa: the table crosses a page"),
        (image.reset_eip != 0, "wrong_value", "reset_eip must not be 0"),
    ]
    for valid, reason, problem in rules:
        if not valid:
            raise FormatError(f"sev_snp_measurement: {problem}", reason=reason)


def _section_pages(image: SnpImage, section: OvmfSection) -> Iterator[tuple[int, int, bytes]]:
    """Yield page type, guest physical address and measured contents of each page."""
    nothing = bytes(48)
    if section.kind in _ZERO_PAGES:
        for page in range(section.pages):
            yield _ZERO_PAGES[section.kind], section.gpa + page * _PAGE, nothing
    elif section.kind in _SINGLE_PAGES:
        yield _SINGLE_PAGES[section.kind], section.gpa, nothing
    else:
        yield NORMAL_PAGE, section.gpa, sha384(_hashes_page(image))


def extend_page(digest: bytes, kind: int, gpa: int, contents: bytes) -> bytes:
    """Return the launch digest after a page (PAGE_INFO, 112 bytes), with no rights for VMPL 1 to 3.

    Args:
        digest: The digest before, 48 bytes; zeros at the start.
        kind: Page type.
        gpa: Guest physical address.
        contents: SHA-384 of the page, or 48 zeros if its type does not measure it.
    """
    head = _le(0x70, 2) + bytes([kind, 0]) + bytes(4)
    return sha384(digest + contents + head + _le(gpa, 8))


def _hashes_page(image: SnpImage) -> bytes:
    cmdline = sha256(image.cmdline.strip().encode() + b"\0")
    table = kernel_hash_table(cmdline, image.initrd_hash, image.kernel_hash)
    return (bytes(image.hashes_table_gpa % _PAGE) + table).ljust(_PAGE, b"\0")


def kernel_hash_table(cmdline: bytes, initrd: bytes, kernel: bytes) -> bytes:
    """Return the table of SHA-256 hashes that QEMU gives the firmware: 168 bytes.

    Args:
        cmdline: Hash of the command line with a final NUL.
        initrd: Hash of the initrd; SHA-256 of no bytes without one.
        kernel: Hash of the kernel file.
    """
    entries = ((_CMDLINE, cmdline), (_INITRD, initrd), (_KERNEL, kernel))
    return _TABLE + _le(168, 2) + b"".join(guid + _le(50, 2) + hashed for guid, hashed in entries)


def cpu_signature(family: int, model: int, stepping: int) -> int:
    """Return EAX of CPUID function 1 for a family, model and stepping of AMD.

    The arguments are the whole numbers, base and extended parts combined (AMD64 Architecture
    Programmer's Manual, vol. 3, E.3.2).
    """
    base, extended = (15, family - 15) if family > 15 else (family, 0)
    return extended << 20 | (model >> 4 & 15) << 16 | base << 8 | (model & 15) << 4 | stepping


def _section(value: Value) -> OvmfSection:
    if not isinstance(value, dict):
        raise _error("wrong_type", "ovmf_sections: each must be a map")
    return OvmfSection(
        _number(value, "gpa", 64), _number(value, "size", 64), _number(value, "type", 32)
    )


def _number(fields: dict[Value, Value], name: str, bits: int) -> int:
    found = fields.get(name)
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < 1 << bits:
        raise _error("wrong_value", f"{name} must be an integer of {bits} bits")
    return found


def _bytes(fields: dict[Value, Value], name: str, sizes: set[int]) -> bytes:
    found = fields.get(name)
    if not isinstance(found, bytes) or len(found) not in sizes:
        raise _error("wrong_size", f"{name} must be {max(sizes)} bytes")
    return found


def _error(reason: FormatReason, problem: str) -> FormatError:
    return FormatError(f"SEV-SNP measurement document: {problem}", reason=reason)


def _le(value: int, size: int) -> bytes:
    return value.to_bytes(size, "little")
