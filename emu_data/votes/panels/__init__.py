"""Rubric panels, which vote where no person did (`items.Panel`); all their votes are labelled "rubric"."""
