"""The latent diffusion family (Emu paper, sec. 3.1 and 3.2): networks, learners, trainings, pipeline."""
