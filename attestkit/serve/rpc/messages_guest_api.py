"""Messages of the service GuestApi, for the host over vsock: protobuf package `guest_api`.

`message_fields` explains how a message is described. Upstream's 32-bit and signed numbers are
`uint64` here: the encoding of their values is the same.
"""

from typing import Annotated, Final, NamedTuple

from attestkit.serve.rpc.message_fields import PACKAGES

PACKAGE: Final = PACKAGES["messages_guest_api"]
"""Protobuf package of these messages and their service."""


class GuestInfo(NamedTuple):
    """Identity of the app; nothing in it is evidence.

    Attributes:
        version: Release of the guest agent API.
        app_id: App id.
        instance_id: Id of this instance of the app.
        app_cert: Certificate chain of a demo key of the app, in PEM.
        tcb_info: JSON with registers and events; empty if the app hides it.
        device_id: Hash of the processor's identity.
    """

    version: Annotated[str, 1] = ""
    app_id: Annotated[bytes, 2] = b""
    instance_id: Annotated[bytes, 3] = b""
    app_cert: Annotated[str, 4] = ""
    tcb_info: Annotated[str, 5] = ""
    device_id: Annotated[bytes, 6] = b""


class DiskInfo(NamedTuple):
    """A mounted file system.

    Attributes:
        name: Device.
        mount_point: Mount point.
        total_size: Size in bytes.
        free_size: Free bytes.
    """

    name: Annotated[str, 1] = ""
    mount_point: Annotated[str, 2] = ""
    total_size: Annotated[int, 3] = 0
    free_size: Annotated[int, 5] = 0


class SystemInfo(NamedTuple):
    """Current system information; sizes in bytes.

    Attributes:
        os_name: Name of the operating system.
        os_version: Version of the operating system.
        kernel_version: Version of the kernel.
        cpu_model: Text with the frequency of the first processor.
        num_cpus: Number of logical processors.
        total_memory: Main memory.
        available_memory: Memory that is available to new processes.
        used_memory: Memory that is not available.
        free_memory: Unused memory.
        total_swap: Swap.
        used_swap: Used swap.
        free_swap: Free swap.
        uptime: Seconds since the boot.
        loadavg_one: Load average of 1 minute, in hundredths.
        loadavg_five: Load average of 5 minutes, in hundredths.
        loadavg_fifteen: Load average of 15 minutes, in hundredths.
        disks: File systems.
    """

    os_name: Annotated[str, 1] = ""
    os_version: Annotated[str, 2] = ""
    kernel_version: Annotated[str, 3] = ""
    cpu_model: Annotated[str, 4] = ""
    num_cpus: Annotated[int, 5] = 0
    total_memory: Annotated[int, 6] = 0
    available_memory: Annotated[int, 7] = 0
    used_memory: Annotated[int, 8] = 0
    free_memory: Annotated[int, 9] = 0
    total_swap: Annotated[int, 10] = 0
    used_swap: Annotated[int, 11] = 0
    free_swap: Annotated[int, 12] = 0
    uptime: Annotated[int, 13] = 0
    loadavg_one: Annotated[int, 14] = 0
    loadavg_five: Annotated[int, 15] = 0
    loadavg_fifteen: Annotated[int, 16] = 0
    disks: Annotated[tuple[DiskInfo, ...], 17] = ()


class Gpu(NamedTuple):
    """A GPU; values that could not be read are unset.

    Attributes:
        index: Number of the GPU.
        uuid: UUID of the GPU.
        pci_bus_id: Address of the GPU on the PCI bus.
        utilization_gpu: Busy time of the processors in percent.
        utilization_memory: Busy time of the memory in percent.
        memory_total_bytes: Total memory.
        memory_used_bytes: Used memory.
        memory_free_bytes: Free memory.
        temperature_c: Temperature in degrees Celsius.
        power_usage_mw: Power in milliwatts.
        errors: Errors of values that could not be read.
    """

    index: Annotated[int, 1] = 0  # type: ignore[assignment]  # instead of tuple's method
    uuid: Annotated[str, 2] = ""
    pci_bus_id: Annotated[str, 3] = ""
    utilization_gpu: Annotated[int | None, 4] = None
    utilization_memory: Annotated[int | None, 5] = None
    memory_total_bytes: Annotated[int | None, 6] = None
    memory_used_bytes: Annotated[int | None, 7] = None
    memory_free_bytes: Annotated[int | None, 8] = None
    temperature_c: Annotated[int | None, 9] = None
    power_usage_mw: Annotated[int | None, 10] = None
    errors: Annotated[tuple[str, ...], 11] = ()


class GpuInfo(NamedTuple):
    """The machine's GPUs; without one, everything is empty.

    Attributes:
        gpus: The GPUs.
        error: Reason why the GPUs could not be read; empty if they were.
        cc_ready: Whether the GPUs accept work in confidential computing; unset if unknown.
        cc_enabled: Whether confidential computing of the GPUs is enabled; unset if unknown.
        sample_age_ms: Age of the values in milliseconds.
    """

    gpus: Annotated[tuple[Gpu, ...], 1] = ()
    error: Annotated[str, 2] = ""
    cc_ready: Annotated[bool | None, 3] = None
    cc_enabled: Annotated[bool | None, 4] = None
    sample_age_ms: Annotated[int | None, 5] = None


class Gateway(NamedTuple):
    """Router of a default route.

    Attributes:
        address: IP address.
    """

    address: Annotated[str, 1] = ""


class IpAddress(NamedTuple):
    """An IP address of a network interface.

    Attributes:
        address: IP address.
        prefix: Prefix length of the address's network in bits.
    """

    address: Annotated[str, 1] = ""
    prefix: Annotated[int, 2] = 0


class Interface(NamedTuple):
    """A network interface and its counters.

    Attributes:
        name: Name.
        addresses: IP addresses of the interface.
        rx_bytes: Received bytes.
        tx_bytes: Sent bytes.
        rx_errors: Errors of reception.
        tx_errors: Errors of sending.
    """

    name: Annotated[str, 1] = ""
    addresses: Annotated[tuple[IpAddress, ...], 2] = ()
    rx_bytes: Annotated[int, 3] = 0
    tx_bytes: Annotated[int, 4] = 0
    rx_errors: Annotated[int, 5] = 0
    tx_errors: Annotated[int, 6] = 0


class NetworkInfo(NamedTuple):
    """Network configuration of the guest.

    Attributes:
        dns_servers: Name servers in resolv.conf.
        gateways: Routers of the default routes.
        interfaces: Ethernet interfaces, and that of dstack's WireGuard.
        wg_info: State of WireGuard; always empty, because the server runs no program.
    """

    dns_servers: Annotated[tuple[str, ...], 1] = ()
    gateways: Annotated[tuple[Gateway, ...], 2] = ()
    interfaces: Annotated[tuple[Interface, ...], 3] = ()
    wg_info: Annotated[str, 4] = ""


class ContainerInfo(NamedTuple):
    """A container, running or not.

    Attributes:
        id: Id.
        names: Names, each with a leading slash.
        image: Name of the image.
        image_id: Id of the image.
        created: Unix time at which the container was created.
        state: State, such as running or exited.
        status: Human-readable state, such as Up 2 hours.
    """

    id: Annotated[str, 1] = ""
    names: Annotated[tuple[str, ...], 2] = ()
    image: Annotated[str, 3] = ""
    image_id: Annotated[str, 4] = ""
    created: Annotated[int, 6] = 0
    state: Annotated[str, 7] = ""
    status: Annotated[str, 8] = ""


class ContainerList(NamedTuple):
    """Containers of the guest.

    Attributes:
        containers: The containers, the newest first.
    """

    containers: Annotated[tuple[ContainerInfo, ...], 1] = ()
