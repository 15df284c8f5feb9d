"""Options that several commands share, and the conversion of their values.

Each group of options is passed to the command as one value.
"""
