"""Rubric panels, which vote where no person did; every vote of theirs is labelled "rubric"."""
