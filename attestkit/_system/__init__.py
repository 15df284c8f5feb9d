"""The operating system below everything else: files of strangers, locks, and the process itself.

Nothing here knows what is kept in a file, or why something is locked.
"""
