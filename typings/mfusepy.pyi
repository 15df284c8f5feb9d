# mfusepy 3, as far as it is used here: it ships no types.

import ctypes

_libfuse: ctypes.CDLL

def fuse_get_context() -> tuple[int, int, int]: ...

class FUSE:
    def __init__(
        self,
        operations: object,
        mountpoint: str,
        raw_fi: bool = False,
        encoding: str = "utf-8",
        **kwargs: object,
    ) -> None: ...
