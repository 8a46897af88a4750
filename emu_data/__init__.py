"""Raw pictures to the few that are worth it (Emu paper, section 3.3): corpora, signals, gates, selection,
votes.

Imports nothing of ours. No module here imports torch when it is imported: whatever needs it imports it in the
function that uses it, so that Dagster's code server loads in a second or two.
"""
