"""Keys of an app from a dstack KMS, which releases them to evidence that it accepts.

A `KmsRoot` pins a KMS. Names are loaded when they are used.
"""

from typing import TYPE_CHECKING

from attestkit._package import lazy_names

if TYPE_CHECKING:
    from attestkit.kms.root import KmsRoot
    from attestkit.kms.url import kms_base_url
else:
    # Lazy: most programs have no KMS.
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "root": ["KmsRoot"],
            "url": ["kms_base_url"],
        },
    )

__all__ = ["KmsRoot", "kms_base_url"]
