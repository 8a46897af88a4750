"""Noise schedule and training objective. The sampler is a scheduler of diffusers (see schedule.py)."""
