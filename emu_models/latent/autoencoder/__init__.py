"""The picture autoencoder (Emu paper, sec. 3.1): pixels to latents and back, 8 times smaller a side."""
