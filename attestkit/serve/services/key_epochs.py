"""Key epochs, which a request can name since dstack 0.6.4; this server's keys have epoch 0.

Their protobuf numbers are not known, so they exist in JSON and queries only. An unknown epoch is
refused: a client that ignores the epoch in the response would use another key than it requested.
"""

from attestkit.keys.key_claims import require_key_epoch_0
from attestkit.serve.rpc import messages, messages_v1


def check_epochs(request: messages.GetKeyArgs | messages_v1.GetKeyRequest) -> int | None:
    """Return the epoch of the key if the request names an epoch, else None.

    Raises:
        UsageError: If the request names an epoch other than 0.
    """
    named = {request.root_epoch, request.app_epoch} - {None}
    for epoch in named:
        require_key_epoch_0(epoch)
    return 0 if named else None
