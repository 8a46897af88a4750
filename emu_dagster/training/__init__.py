"""Trainings: the asset's part, the child process, its progress, and how a Ray cluster runs it."""
