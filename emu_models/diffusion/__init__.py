"""Noise schedule and training objective. The sampler is diffusers' own scheduler (see schedule.py)."""
