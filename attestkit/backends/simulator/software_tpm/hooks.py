"""Additions of a platform to a simulated TPM: virtual NV content, vendor commands, faults."""

import time
from collections.abc import Callable, Mapping
from typing import Final

_REFRESH_S: Final = 2.0


class VirtualIndex:
    """Content of an NV index that is computed when it is read at offset 0.

    Args:
        content: Returns the content; it is zero-padded to the size of the index.
        clock: Returns seconds, monotonic.
    """

    def __init__(
        self,
        content: Callable[[], bytes],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._content = content
        self._clock = clock
        self._at: float | None = None

    def refresh(self, target: bytearray) -> None:
        """Overwrite `target` by the content, unless that was computed less than 2 s ago.

        This is the interval of Azure's paravisor.
        """
        now = self._clock()
        if self._at is None or now - self._at >= _REFRESH_S:
            content = self._content()
            target[:] = content[: len(target)].ljust(len(target), b"\0")
            self._at = now


class TpmHooks:
    """Behaviour that a platform adds to a simulated TPM.

    Args:
        virtual_indices: Content of NV indices by index; the indices themselves are defined with
            `provision_index`. Functions may call `execute` of the same TPM.
        vendor_commands: Functions by command code. Each is called with the content of the NV index
            that the command names, and returns its new content. GetCapability lists them.
        fault: Called with the code of each command; returns 0 to run it, or the response code to
            answer instead, such as 0x922 (retry) or 0x101 (failure mode).
    """

    def __init__(
        self,
        *,
        virtual_indices: Mapping[int, VirtualIndex] | None = None,
        vendor_commands: Mapping[int, Callable[[bytes], bytes]] | None = None,
        fault: Callable[[int], int] | None = None,
    ) -> None:
        self.virtual_indices: dict[int, VirtualIndex] = dict(virtual_indices or {})
        self.vendor_commands: dict[int, Callable[[bytes], bytes]] = dict(vendor_commands or {})
        self.fault: Callable[[int], int] | None = fault

    def refresh(self, index: int, offset: int, target: bytearray) -> None:
        """Before a read at `offset` of NV index `index`, overwrite its content, `target`.

        Only virtual indices that are read at offset 0 change.
        """
        if offset == 0 and (virtual := self.virtual_indices.get(index)) is not None:
            virtual.refresh(target)
