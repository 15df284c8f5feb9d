"""Options that several commands share, and what becomes of their values.

A group of options is gathered into one value, which the command takes.
"""
