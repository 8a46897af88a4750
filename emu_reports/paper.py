"""The paper's own figures, shown next to ours (Dai et al. 2023, arXiv 2309.15807)."""

# Per cent of prompts, Emu against the model that it started from; from the paper's text (sec. 4).
PREFERENCE = {
    "appeal": [
        {"name": "paper, PartiPrompts", "win": 82.9, "lose": 15.4},
        {"name": "paper, Open User Input", "win": 91.2, "lose": 7.9},
    ],
    "faithfulness": [
        {"name": "paper, PartiPrompts", "win": 36.7, "lose": 21.0},
        {"name": "paper, Open User Input", "win": 47.9, "lose": 18.5},
    ],
}

# Not checked against the paper, whose table was not in the copy used here. Key: (latent channels, Fourier transform).
RECONSTRUCTION = {
    (4, False): {"ssim": 0.80, "psnr": 28.64, "fid": 0.35},
    (8, False): {"ssim": 0.86, "psnr": 30.95, "fid": 0.19},
    (16, False): {"ssim": 0.92, "psnr": 34.00, "fid": 0.06},
    (16, True): {"ssim": 0.93, "psnr": 34.19, "fid": 0.04},
}
RECONSTRUCTION_NOTE = "figures not checked against the paper, whose table was not in the copy used here"

# Sizes of the funnel (sec. 3.3); the first is "billions" in the text.
FUNNEL = {
    "raw": "billions",
    "filtered": "200 000",
    "generalists": "20 000",
    "curated": "2 000",
}
