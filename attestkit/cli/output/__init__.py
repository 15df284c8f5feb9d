"""Output of the commands: for terminals, for pipes, and into files.

Control characters in untrusted text are escaped.
"""
