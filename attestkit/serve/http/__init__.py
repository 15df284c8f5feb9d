"""HTTP: from bytes to requests, with bounds on all of it, and how a server ends.

Nothing here knows which methods or pages there are.
"""
