"""What a server writes: its log, and a line per request.

Writing never blocks an answer; what does not fit is counted and dropped.
"""
