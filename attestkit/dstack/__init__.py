"""Files and conventions of a dstack guest: app-compose, sys-config, encrypted environments.

The host-shared folder and the boot sequence of events are here too.
"""

from typing import TYPE_CHECKING

from attestkit._package import lazy_names

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

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "app_compose": [
                "KEY_PROVIDERS",
                "AppCompose",
                "PortRule",
                "Requirements",
                "VerityVolume",
                "compose_hash_deterministic",
                "gpu_policy_hash",
                "launch_token_hash",
            ],
            "env_encryption": [
                "decrypt_env_vars",
                "encrypt_env_vars",
                "open_sealed",
                "seal",
                "verify_env_encrypt_public_key",
                "verify_env_encrypt_public_key_legacy",
            ],
            "sys_config": ["CollateralUrls", "SysConfig", "VmConfig"],
        },
    )
