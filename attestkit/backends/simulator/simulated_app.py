"""The app of a simulated guest: its keys, the values that boot events measure, and its key file."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.backends.simulator.gpu.gpu_host import GpuHost
from attestkit.dstack.app_compose import AppCompose
from attestkit.dstack.boot_sequence import Launch
from attestkit.errors import ConfigError, FormatError, UnsupportedError, UsageError
from attestkit.keys import AppKeys

if TYPE_CHECKING:
    from attestkit.backends.simulator.soft_td import StateFolder

KEY_FILE: Final = ".appkeys.json"
"""Name of the key file in a state folder."""


class SimulatedApp(GpuHost):
    """A `BootHost`: the app of a simulated guest, with its keys; the same on all platforms."""

    app_compose: AppCompose
    """The app's compose file."""
    vm_config: str
    """The configuration of the VM as JSON."""

    _folder: "StateFolder | None"
    _app_id: bytes
    _instance_id: bytes
    _app_keys: AppKeys | None = None
    _keys_are_ours = False  # `close` wipes them

    @property
    def app_keys(self) -> AppKeys:
        """The app's keys.

        Raises:
            UnsupportedError: If the guest has not got its keys from a KMS yet.
        """
        if self._app_keys is None:
            message = "simulator: no keys before boot with a KMS; call attestkit.kms.boot_with_kms"
            raise UnsupportedError(message, reason="no_keys")
        return self._app_keys

    def launch(self, app_id: bytes | None = None) -> Launch:
        """Return the values that the boot events measure, without keys.

        Args:
            app_id: 20 bytes, to check that it is the id of this app; None: it is not checked.

        Raises:
            UsageError: If `app_id` is not that of the simulated guest, or `vm_config` is malformed.
        """
        if app_id is not None and app_id != self._app_id:
            message = f"app_id: must be {self._app_id.hex()}, that of the simulated guest"
            raise UsageError(message, reason="conflict")
        return Launch(
            app_compose=self.app_compose,
            app_id=self._app_id,
            instance_id=self._instance_id,
            os_image_hash=_os_image_hash(self.vm_config),
            app_keys=None,
            gpu_attestation=self._gpu_attestation,
        )

    @property
    def _key_file(self) -> Path | None:
        return None if self._folder is None else self._folder.path / KEY_FILE

    def kept_keys(self) -> AppKeys | None:
        """Return the keys in the state folder, which the caller closes; None if there are none.

        Raises:
            ConfigError: If the key file cannot be read or is invalid.
        """
        if (path := self._key_file) is None:
            return None
        try:
            return AppKeys.load(path, follow=False)
        except ConfigError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def keep_keys(self, keys: AppKeys) -> None:
        """Write the key file with `keys`, if there is a state folder; otherwise do nothing.

        Raises:
            ConfigError: If the file cannot be written.
        """
        if self._key_file is not None:
            keys.save(self._key_file)

    def use_keys(self, keys: AppKeys) -> None:
        """Replace the app's keys by `keys`, which `close` wipes.

        The previous keys are wiped now, unless the caller passed them to the constructor.
        """
        previous, are_ours = self._app_keys, self._keys_are_ours
        self._app_keys, self._keys_are_ours = keys, True
        if previous is not None and previous is not keys and are_ours:
            previous.close()

    def _drop_keys(self) -> None:
        """Wipe the keys, unless the caller passed them."""
        if self._keys_are_ours and self._app_keys is not None:
            self._app_keys.close()


def _os_image_hash(vm_config: str) -> bytes:
    """Return the OS image hash, 32 bytes, in the VM configuration (JSON); empty without one."""
    try:
        return VmConfig.parse(vm_config).os_image_hash
    except FormatError as error:
        text = str(error).removeprefix("vm_config: ")
        raise UsageError(f"vm_config: {text}", reason="wrong_value") from error
