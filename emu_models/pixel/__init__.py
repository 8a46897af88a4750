"""Diffusion on pixels: a cascade of U-Nets, and what stands in an autoencoder's place for any network on pixels."""
