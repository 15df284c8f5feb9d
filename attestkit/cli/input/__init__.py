"""Input of the commands: files and standard input, and detection of their format.

All input is untrusted and limited in size.
"""
