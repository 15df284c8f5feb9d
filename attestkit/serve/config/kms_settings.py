"""Settings of the KMS from which the app gets its keys."""

from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from attestkit.errors import AttestKitError

if TYPE_CHECKING:
    from attestkit.kms.root import KmsRoot
    from attestkit.serve.config.options import Options

FIRST_USE: Final = "first-use"
"""Value of --kms-root that trusts any KMS."""


class KmsSettings(NamedTuple):
    """URLs of a KMS, and its pins: files, "first-use", or None if the app pins the KMS."""

    urls: tuple[str, ...]
    root_files: tuple[Path, ...] | Literal["first-use"] | None

    def load_roots(self) -> "tuple[KmsRoot, ...] | Literal['first-use'] | None":
        """Read the files of the pins.

        Raises:
            ConfigError: If a file cannot be read or is invalid.
        """
        from attestkit.kms.root import KmsRoot  # lazy: only with a KMS

        if self.root_files is None or self.root_files == FIRST_USE:
            return FIRST_USE if self.root_files else None
        return tuple([KmsRoot.load(path) for path in self.root_files])


def decide_kms(options: "Options", *, simulated: bool) -> KmsSettings | None:
    """Return the settings; None without a KMS.

    Raises:
        UsageError: If options conflict, or a URL is invalid.
        ConfigError: If an option from a configuration file conflicts or is invalid.
    """
    if options.kms_url is None:
        if options.kms_root is not None:
            raise options.error("kms_root", f"requires {options.named('kms_url')}")
        return None
    if simulated and options.app_keys is not None:
        raise options.error("app_keys", f"excludes {options.named('kms_url')}; give one of them")
    from attestkit.kms.url import kms_base_url  # lazy: only with a KMS

    for url in options.kms_url:
        try:
            kms_base_url(url)
        except AttestKitError as error:
            raise options.error("kms_url", str(error), "wrong_value") from error
    files = options.kms_root
    if files is not None and FIRST_USE in files:
        if len(files) > 1:
            raise options.error("kms_root", f"{FIRST_USE} excludes other values")
        return KmsSettings(options.kms_url, FIRST_USE)
    paths = None if files is None else tuple([Path(text).absolute() for text in files])
    return KmsSettings(options.kms_url, paths)
