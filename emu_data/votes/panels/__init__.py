"""Rubric panels, which vote where no person did (`items.Panel`); every vote of theirs is labelled "rubric"."""
