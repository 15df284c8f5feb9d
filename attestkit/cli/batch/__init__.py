"""Evidence of a fleet, many thousand at a time: what comes in, where it runs, what comes out.

`verify-many` is the command.
"""
