"""Service GuestApi, which the host uses over vsock: methods without keys."""

import logging
from functools import partial
from typing import TYPE_CHECKING, Final

from attestkit._system.process_hardening import power_off
from attestkit.errors import UsageError
from attestkit.serve.docker.responses import Container
from attestkit.serve.http.asgi import Scope, is_unix_peer
from attestkit.serve.lazy_import import load
from attestkit.serve.machine_info import Figures, read_figures
from attestkit.serve.network_info import read_network
from attestkit.serve.rpc import messages_guest_api as m
from attestkit.serve.rpc.error_responses import MethodRefusedError
from attestkit.serve.rpc.service import Method, Service
from attestkit.serve.services.context import Guest

if TYPE_CHECKING:
    from attestkit.gpu.driver.nvml import GpuTelemetry

_HOST_CID: Final = "2"  # VMADDR_CID_HOST (vsock(7))
_logger = logging.getLogger("attestkit.serve")


def _info(guest: Guest, _: None) -> m.GuestInfo:
    """Return the app's identity, without its measurements if the app hides them."""
    app = guest.info(hidden=not guest.app_compose.public_tcbinfo).message
    return m.GuestInfo(
        guest.release.version,
        app.app_id,
        app.instance_id,
        app.app_cert,
        app.tcb_info,
        app.device_id,
    )


async def _sys_info(guest: Guest, _: None) -> m.SystemInfo:
    """Return current system information."""
    await load("psutil")
    return _system_info(read_figures(guest.data_disks))


def _system_info(found: Figures) -> m.SystemInfo:
    main, swap = found.memory, found.swap
    memory = (main.total, main.available, main.used, main.free, swap.total, swap.used, swap.free)
    system = (found.os_name, found.os_version, found.kernel, found.cpu, found.cpus)
    disks = [m.DiskInfo(one.name, one.mount_point, one.total, one.free) for one in found.disks]
    return m.SystemInfo(*system, *memory, found.uptime, *found.load, tuple(disks))


async def _gpu_info(guest: Guest, _: None) -> m.GpuInfo:
    """Return the GPUs, as the driver or the simulator reports them; empty without GPUs."""
    found = await guest.gpus.sample()
    if found is None or not (found.gpus or found.error):
        return m.GpuInfo()
    return m.GpuInfo(
        tuple([_gpu(gpu) for gpu in found.gpus]),
        found.error,
        found.ready,
        found.enabled,
        int(found.age * 1000),
    )


def _gpu(found: "GpuTelemetry") -> m.Gpu:
    busy: tuple[int | None, int | None] = found.utilization or (None, None)
    memory: tuple[int | None, int | None, int | None] = found.memory or (None, None, None)
    known = m.Gpu(found.position, found.uuid, found.pci_bus_id, *busy, *memory)
    return known._replace(
        temperature_c=found.temperature, power_usage_mw=found.power_usage, errors=found.errors
    )


def _network_info(_: Guest, __: None) -> m.NetworkInfo:
    """Return the network configuration, without the state of WireGuard."""
    found = read_network()
    interfaces = [
        m.Interface(name, tuple([m.IpAddress(*one) for one in addresses]), *counters)
        for name, addresses, *counters in found.interfaces
    ]
    gateways = tuple(map(m.Gateway, found.gateways))
    return m.NetworkInfo(found.dns_servers, gateways, tuple(interfaces))


async def _list_containers(guest: Guest, _: None) -> m.ContainerList:
    """Return all containers of the engine."""
    return m.ContainerList(tuple(map(_container, await guest.containers.list_containers())))


def _container(found: Container) -> m.ContainerInfo:
    image, names, created = (found.image, found.image_id), found.names or (), max(0, found.created)
    return m.ContainerInfo(found.id, names, *image, created, found.state, found.status)


def _shutdown(guest: Guest, _: None, *, enabled: bool) -> None:
    """Power off the machine, if the server allows it.

    A simulator accepts the call and stops nothing: the machine that runs it is not the guest.
    """
    if guest.attester.simulated:
        _logger.warning("GuestApi.Shutdown: simulated, nothing is powered off")
        return
    if not enabled:
        text = "Shutdown is disabled; start the server with --guest-api-shutdown"
        raise UsageError(text, reason="not_applicable")
    _logger.warning("GuestApi.Shutdown: the machine is powered off")
    power_off()


class HostAccess:
    """Access to the host's listener: over vsock, only the host may power the guest off.

    The kernel may connect processes of the guest to it as well (vsock loopback).
    """

    async def check(self, request: Scope, route: str | None) -> None:
        """Refuse a request if `route` (a method) is Shutdown, and its peer is not the host.

        Raises:
            MethodRefusedError: If the request is for Shutdown, and its peer is not the host.
        """
        client = request.get("client")
        is_host = is_unix_peer(request) if client is None else client[0] == _HOST_CID
        if route == "Shutdown" and not is_host:
            raise MethodRefusedError("Shutdown: not allowed, because the caller is not the host")


def make_service(*, shutdown: bool) -> Service:
    """Return the service GuestApi: `/api/<Method>`.

    Args:
        shutdown: Whether Shutdown powers off a machine that is not simulated.
    """
    return Service(
        {
            "Info": Method(_info, device=True),
            "SysInfo": Method(_sys_info, waits=True),
            "GpuInfo": Method(_gpu_info, waits=True),
            "NetworkInfo": Method(_network_info),
            "ListContainers": Method(_list_containers, waits=True),
            "Shutdown": Method(partial(_shutdown, enabled=shutdown), post_only=True),
        },
        mount="/api/",
        name="GuestApi",
        package=m.PACKAGE,
    )
