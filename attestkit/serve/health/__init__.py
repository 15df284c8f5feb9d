"""Health of the app: checks of its status file or containers, and the cached result.

A background task repeats the check every five seconds; requests only read the last result.
"""
