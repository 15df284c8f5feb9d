"""The policy that an option of the server, or of the command line, names."""

from typing import TYPE_CHECKING

from attestkit.errors import ConfigError

if TYPE_CHECKING:
    from attestkit.verifier.policy import AppraisalPolicy

__all__ = ["read_policy"]


def read_policy(option: str, text: str) -> "AppraisalPolicy":
    """Return the policy that an option names: a preset's name, else a TOML file.

    A preset goes before a file of the same name, which `./strict` means.

    Raises:
        ConfigError: The file cannot be read, or is no policy; the text names `option` and file.
    """
    from attestkit.verifier.policy import PRESETS, AppraisalPolicy  # late: others have none

    if (preset := PRESETS.get(text)) is not None:
        return preset()
    try:
        return AppraisalPolicy.load(text)
    except ConfigError as error:
        also = ""
        if isinstance(error.__cause__, FileNotFoundError):
            also = f"; nor is that a preset, which are {', '.join(PRESETS)}"
        raise ConfigError(f"{option} {error}{also}") from error
