"""Log of the server, and access log with one line per request.

Writing never blocks a request: records that do not fit are counted and dropped.
"""
