"""Configuration of the server: command line, agent configuration file, and limits.

Invalid configuration is reported before any listener accepts.
"""
