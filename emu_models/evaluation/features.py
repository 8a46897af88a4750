"""Features for Fréchet distances, each with the name that is printed beside the number.

"FID" is the distance on one network only: Inception v3 as TensorFlow published it on 2015-12-05. It is read from a file
(the TorchScript export that NVIDIA's StyleGAN and clean-fid use, inception-2015-12-05.pt) and never downloaded. Any
other extractor is named as what it is: its distances compare the models of one table, but are not FIDs.
"""

from pathlib import Path
from typing import Any

import numpy as np

from emu_models.evaluation.judge import load_judge
from emu_models.evaluation.reconstruction import Features

BATCH_SIZE = 32  # pictures per forward pass; chosen here


def inception_features(weights: Path) -> Features:
    """Return the 2 048 pooled features of the FID. Raises ValueError if there is no such file."""
    import torch

    if not weights.is_file():
        raise ValueError(f"inception {weights} is not a file; give inception-2015-12-05.pt, or null for other features")
    network: Any = torch.jit.load(str(weights), map_location="cpu").eval()

    def extract(images: np.ndarray) -> np.ndarray:
        parts = []
        with torch.inference_mode():
            for start in range(0, len(images), BATCH_SIZE):
                x = torch.from_numpy(images[start : start + BATCH_SIZE].copy()).permute(0, 3, 1, 2)
                parts.append(network(x, return_features=True))
        return torch.cat(parts).float().numpy()

    return Features("Inception v3 of 2015-12-05 (FID)", extract)


def encoder_features(folder: Path) -> Features:
    """Return the image embedding of an open_clip folder, which no loss of the measured models uses."""
    return Features("the image embedding of a model trained on the corpus (not FID)", load_judge(folder).embed_images)
