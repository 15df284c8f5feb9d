"""Network namespace that has only the loopback interface, with one more address.

For a metadata service at a link-local address, which belongs to the machine's own network
otherwise. The interface is configured by ioctls (netdevice(7)).
"""

import fcntl
import os
import socket
import struct
from errno import EINVAL, ENOSPC
from typing import Final

from attestkit.emulator.linux_calls import NEW_NETWORK, unshare
from attestkit.errors import BackendUnavailableError

_GET_FLAGS, _SET_FLAGS = 0x8913, 0x8914  # SIOCGIFFLAGS, SIOCSIFFLAGS
_SET_ADDRESS, _SET_MASK = 0x8916, 0x891C  # SIOCSIFADDR, SIOCSIFNETMASK
_UP: Final = 1
_LOOPBACK: Final = b"lo"
_ALIAS: Final = b"lo:0"  # the interface with a second address


def enter_own_network(address: str) -> None:
    """Move this process into a new network namespace, in which loopback has `address`, too.

    Raises:
        BackendUnavailableError: If the namespace cannot be created or configured.
    """
    try:
        unshare(NEW_NETWORK)
    except OSError as error:
        raise _refused("cannot be created", error) from error
    try:
        _configure(address)
    except OSError as error:
        raise _refused("loopback cannot be configured", error) from error


def _configure(address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16s24x", _LOOPBACK)
        flags = struct.unpack_from("16xH", fcntl.ioctl(any_socket, _GET_FLAGS, request))[0]
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sH22x", _LOOPBACK, flags | _UP))
        fcntl.ioctl(any_socket, _SET_ADDRESS, _address_request(address))
        fcntl.ioctl(any_socket, _SET_MASK, _address_request("255.255.255.255"))


def _address_request(address: str) -> bytes:
    """Return `struct ifreq` with a `struct sockaddr_in`, 40 bytes."""
    return struct.pack("16sH2x4s16x", _ALIAS, socket.AF_INET, socket.inet_aton(address))


def _refused(what: str, error: OSError) -> BackendUnavailableError:
    text = f"network namespace: {what}: {os.strerror(error.errno or 0)}"
    if error.errno == ENOSPC:
        remedy = "raise the limit, sysctl -w user.max_net_namespaces=15000"
    elif error.errno == EINVAL:
        remedy = "the kernel needs CONFIG_NET_NS"
    else:
        remedy = "in a container add docker run --cap-add SYS_ADMIN --cap-add NET_ADMIN"
    text = f"{text}; Azure's metadata service needs it: {remedy}"
    return BackendUnavailableError(text, reason="permission_denied")
