"""Votes: the log that keeps them, what counts, how they agree, what they prefer and how sure that is."""
