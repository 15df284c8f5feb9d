"""Files and conventions of a dstack guest: app-compose, sys-config, encrypted environments.

The host-shared folder and the boot sequence of events are here too.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attestkit.dstack.app_compose import (
        KEY_PROVIDERS,
        AppCompose,
        PortRule,
        Requirements,
        VerityVolume,
        compose_hash_deterministic,
        gpu_policy_hash,
        launch_token_hash,
    )
    from attestkit.dstack.env_encryption import (
        decrypt_env_vars,
        encrypt_env_vars,
        open_sealed,
        seal,
        verify_env_encrypt_public_key,
        verify_env_encrypt_public_key_legacy,
    )
    from attestkit.dstack.sys_config import CollateralUrls, SysConfig, VmConfig

__all__ = [
    "KEY_PROVIDERS",
    "AppCompose",
    "CollateralUrls",
    "PortRule",
    "Requirements",
    "SysConfig",
    "VerityVolume",
    "VmConfig",
    "compose_hash_deterministic",
    "decrypt_env_vars",
    "encrypt_env_vars",
    "gpu_policy_hash",
    "launch_token_hash",
    "open_sealed",
    "seal",
    "verify_env_encrypt_public_key",
    "verify_env_encrypt_public_key_legacy",
]

# Public name: its module, imported on first use.
_HOME = {
    "KEY_PROVIDERS": "app_compose",
    "AppCompose": "app_compose",
    "CollateralUrls": "sys_config",
    "PortRule": "app_compose",
    "Requirements": "app_compose",
    "SysConfig": "sys_config",
    "VerityVolume": "app_compose",
    "VmConfig": "sys_config",
    "compose_hash_deterministic": "app_compose",
    "decrypt_env_vars": "env_encryption",
    "encrypt_env_vars": "env_encryption",
    "gpu_policy_hash": "app_compose",
    "launch_token_hash": "app_compose",
    "open_sealed": "env_encryption",
    "seal": "env_encryption",
    "verify_env_encrypt_public_key": "env_encryption",
    "verify_env_encrypt_public_key_legacy": "env_encryption",
}


if not TYPE_CHECKING:  # type checkers would accept any name

    def __getattr__(name: str) -> object:
        """Import a public name on first use."""
        home = _HOME.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(import_module(f"{__name__}.{home}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
