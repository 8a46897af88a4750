"""Trainings: the asset's side, the child process, its progress, and how a Ray cluster runs it."""
