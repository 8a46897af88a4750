"""Side-by-side judgement of the two models by rubric panels, in the votes' format, and the reports on it."""
