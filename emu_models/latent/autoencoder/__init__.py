"""The picture autoencoder (Emu paper, sec. 3.1): pixels to latents with sides 8 times smaller, and back."""
