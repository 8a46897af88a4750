"""Rectified-flow transformers, as checkpoints of others bring them: Stable Diffusion 3, FLUX.1, SANA and Qwen-Image."""
