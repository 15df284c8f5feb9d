"""Virtual CPUs of SEV-SNP guests: types, and initial state by VMM."""

from typing import Final, Literal

from attestkit._sanitize import near, shown
from attestkit.attestation.launch.snp import CPU_IDENTITIES, cpu_signature
from attestkit.attestation.launch.vmsa import (
    RESET_VECTOR,
    CpuState,
    Segment,
    build_vmsa,
    reset_state,
)
from attestkit.errors import UsageError

Vmm = Literal["qemu", "ec2", "gce"]
"""QEMU, Amazon EC2, Google Compute Engine."""

IDENTITIES: Final = CPU_IDENTITIES | {"epyc-turin": (26, 0, 0)}
"""Family, model and stepping by CPU type of QEMU, in lower case."""

_CLOUD_RDX: Final = 0x600  # EC2 and GCE set no CPU signature


def find_cpu_signature(cpu_type: str) -> int:
    """Return EAX of CPUID function 1 of a CPU type of QEMU, such as `EPYC-Milan-v2`.

    Raises:
        UsageError: If the type is unknown.
    """
    identity = IDENTITIES.get(cpu_type.strip().lower())
    if identity is None:
        hint = near(cpu_type, IDENTITIES)
        raise UsageError(f"CPU type: unknown: {shown(cpu_type)}{hint}", reason="unknown_name")
    return cpu_signature(*identity)


def initial_vmsa(eip: int, signature: int, guest_features: int, vmm: Vmm = "qemu") -> bytes:
    """Return the save area (4096 bytes) of a virtual CPU that starts in real mode.

    Args:
        eip: Start address: the reset vector for the first virtual CPU.
        signature: EAX of CPUID function 1; EC2 and GCE do not use it.
        guest_features: SEV_FEATURES, 64 bits.
        vmm: The VMM.
    """
    state = reset_state(eip, signature)
    if vmm == "ec2":
        attributes = 0x9A if eip == RESET_VECTOR else 0x9B
        state = state._replace(
            code=state.code._replace(attributes=attributes),
            stack=Segment(0, 0x92),
            task_attributes=0x83,
        )
    elif vmm == "gce":
        state = state._replace(pat=0x00070106)
    if vmm != "qemu":
        state = state._replace(rdx=_CLOUD_RDX, mxcsr=0, x87_control=0)
    return build_vmsa(state, guest_features)


def svsm_vmsa(entry: int, signature: int) -> bytes:
    """Return the save area of a virtual CPU that starts COCONUT-SVSM in 32-bit protected mode.

    Args:
        entry: Guest physical address of the entry point.
        signature: EAX of CPUID function 1.
    """
    flat = Segment(16, 0xC93, 0xFFFFFFFF)
    state = CpuState(
        rip=entry,
        code=Segment(8, 0xC9B, 0xFFFFFFFF),
        stack=flat,
        data=flat,
        cr0=0x11,
        rdx=signature,
        x87_control=0,
    )
    return build_vmsa(state, 1)
