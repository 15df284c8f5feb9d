"""Access control of the external listener from options."""

from attestkit.errors import UsageError
from attestkit.serve.config.option_values import prefix_errors
from attestkit.serve.config.options import Options
from attestkit.serve.external_auth.access_control import ExternalAuth, check_scopes
from attestkit.serve.external_auth.public_keys import read_public_keys


def load_external_auth(options: Options, *, listening: bool) -> ExternalAuth | None:
    """Return the access control that options name; None if it is off.

    Args:
        options: Options of the command line and the configuration file.
        listening: Whether the external listener is on.

    Raises:
        UsageError: If a scope is unknown, or the options have no effect.
        ConfigError: If a key is not valid, or an option from a configuration file is wrong.
    """
    if options.auth_key is None:
        if options.anonymous_scopes is not None:
            raise options.error("anonymous_scopes", "requires a key (--auth-key)")
        return None
    if not listening:
        raise options.error("auth_key", "for the external listener, which is off")
    with prefix_errors(options.prefix("auth_key")):
        keys = read_public_keys(options.auth_key)
    names = [] if options.anonymous_scopes is None else options.anonymous_scopes.split(",")
    try:
        scopes = check_scopes(name.strip() for name in names)
    except UsageError as error:
        raise options.error("anonymous_scopes", str(error), "wrong_value") from error
    return ExternalAuth(keys, scopes)
