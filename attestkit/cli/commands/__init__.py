"""The commands, a file each, and in each the function of its name.

A file is loaded once its command is called.
"""
