"""The configuration of a server: its command line, the agent's files, and limits.

What is wrong is said before anything listens.
"""
