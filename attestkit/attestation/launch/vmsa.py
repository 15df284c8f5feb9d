"""Initial save area (VMSA) of a virtual CPU of an SEV-SNP guest (AMD64 APM, vol. 2, table B-4)."""

from typing import Final, NamedTuple

RESET_VECTOR: Final = 0xFFFFFFF0
"""EIP of the first virtual CPU."""

_SIZE: Final = 4096  # bytes


class Segment(NamedTuple):
    """A segment register."""

    selector: int
    attributes: int
    limit: int = 0xFFFF
    base: int = 0


class CpuState(NamedTuple):
    """The registers in which VMMs differ; the others have their values after reset."""

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
    """Return the state of a virtual CPU of QEMU that starts at `eip` in real mode."""
    return CpuState(
        rip=eip & 0xFFFF, code=Segment(0xF000, 0x9B, base=eip & 0xFFFF0000), rdx=cpu_signature
    )


def build_vmsa(state: CpuState, guest_features: int) -> bytes:
    """Return the save area: 4096 bytes.

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
