"""attestkit's critical sections: their threads, the conditions at the end, and their guards."""

from tests.concurrency.subjects import caches, evidence, locks
from tests.concurrency.subjects.registry import SUBJECTS

__all__ = ["SUBJECTS", "caches", "evidence", "locks"]
