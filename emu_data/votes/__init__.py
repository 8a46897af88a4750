"""Votes: the log that keeps them, which of them count, how much raters agree, what they prefer and how certain that
is.
"""
