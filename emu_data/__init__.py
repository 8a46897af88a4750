"""From raw pictures to the few that are worth keeping (Emu paper, section 3.3): corpora, signals, gates, selection,
votes.

This package imports none of our other packages. No module imports torch at import time: functions that need torch
import it themselves, so that Dagster's code server loads in a second or two.
"""
