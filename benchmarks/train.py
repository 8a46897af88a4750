"""Speed of training and sampling: `make bench NAME=train`. Ratios to a named peer, measured in the same run.

The peer is the loop of diffusers' examples/text_to_image/train_text_to_image.py, rewritten here from what it does at
each step: decode, resize, crop, flip and normalise pictures in the main process (dataloader_num_workers 0, its
default), encode them with the autoencoder and their captions with the text encoder, draw noise and timesteps, compute
the min-SNR weighted squared error of the velocity, clip, AdamW, EMA (its options --use_ema, --snr_gamma 5,
--prediction_type v_prediction). Attention is diffusers' default. For both, captions are padded to 77 word pieces, as in
the example (the model_max_length of CLIP's tokenizer); the demo itself uses 12, which is printed beside it without a
claim. Both train the same networks with the same precision on the same rows, in batches of the same size. The weights
are random, because speed does not depend on them. Ours is `train_denoiser`, the function that the assets run; the time
of a step is computed from the difference between a long and a short run, so that start and end do not count.

- warm: pictures and captions were encoded before. off: every pass over the rows encodes them anew (equal captions
  once), with the functions that fill the caches, into an empty folder.
- bound: the ratio if ours took only the time that no cache can save: the example's step over its part after encoding.
- arithmetic: FLOPs of forward and backward pass, by torch's counter, over their time, against the rate of matrix
  products with the shapes of the same network's layers (convolutions as im2col), in the same process.
- loader: share of the long run's time in which training waited for a batch.
- sampling: the whole pipeline, from text to pictures, against 2 x 25 forward passes of as many latents.

Prints `claim NAME: VALUE (goal GOAL)` for each claim; the exit code is 1 if one is missed.
"""

import os

os.environ["TQDM_DISABLE"] = "1"  # no progress bars between the figures; tqdm reads it when it is imported

import argparse
import io
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import torch
from diffusers.models.attention_processor import (
    AttnAddedKVProcessor,
    AttnAddedKVProcessor2_0,
    AttnProcessor,
    AttnProcessor2_0,
)
from diffusers.training_utils import EMAModel, compute_snr
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms
from transformers.utils import logging as transformers_logging

from emu_data.samples import Sample, make_key
from emu_data.shards import list_shards, read_samples, write_shard
from emu_models.device import autocast, choose_device, half_precision_pays
from emu_models.diffusion.schedule import NUM_TIMESTEPS, build_scheduler
from emu_models.latent import trainings
from emu_models.latent.autoencoder.network import Autoencoder
from emu_models.latent.building import build_denoiser
from emu_models.latent.denoiser import count_parameters, denoise
from emu_models.latent.jobs import DenoiserConfig, DenoiserJob, DenoiserTrainingConfig
from emu_models.latent.pipeline import EmuPipeline
from emu_models.text import TextFeatures, encode_prompts, load_text_encoders
from emu_models.training.cache import encode_captions, encode_moments
from emu_models.training.distributed import World
from emu_models.training.jobs import LoopConfig
from emu_models.training.row_file import open_rows
from emu_models.training.rows import PictureRows
from emu_steps.profiles import read_profile

TOP = Path(__file__).parents[1]
NUM_INFERENCE_STEPS = 25
LEARNING_RATE, EMA_DECAY, SNR_GAMMA, SEED = 1e-4, 0.99, 5.0, 0
EXAMPLE_TEXT_TOKENS = 77  # tokenizer.model_max_length of Stable Diffusion's CLIP
TOP_OPERATIONS = 8  # of the profile that are printed


@dataclass(frozen=True)
class Setup:
    """What is trained at one resolution: networks, rows per batch, word pieces per caption. weight: of its figures in
    the averages.
    """

    name: str
    resolution: int
    batch_size: int
    num_text_tokens: int
    autoencoder: dict
    denoiser: DenoiserConfig
    weight: float = 0.0


def demo_setups() -> list[Setup]:
    """Return the three pretrainings of profiles/emoji.yaml, weighted by their steps, with the example's word pieces."""
    params = read_profile(TOP / "profiles", "emoji")
    study, first = params.autoencoder_study, params.pretrained_low
    autoencoder = {
        **study.variants[params.autoencoder.variant].model_dump(),
        **study.model_dump(include={"fold", "widths", "encoder_blocks", "decoder_blocks", "linear_shortcut"}),
    }
    sections = (first, params.pretrained_mid, params.pretrained_full)
    return [
        Setup(
            f"demo, {section.resolution} px",
            section.resolution,
            section.batch_size,
            EXAMPLE_TEXT_TOKENS,
            autoencoder,
            DenoiserConfig(**first.denoiser.model_dump()),
            section.num_steps,
        )
        for section in sections
    ]


def other_setups(demo: list[Setup]) -> list[Setup]:
    """Return two setups for comparison, without a claim: the demo's with its own 12 word pieces; and one with
    proportions nearer to a large model's, chosen here: no fold, three levels, two of them with attention.
    """
    autoencoder = {"latent_channels": 16, "fold": 1, "widths": [32, 64, 128, 128], "linear_shortcut": False}
    denoiser = DenoiserConfig((128, 256, 384), (False, True, True), 2)
    return [
        replace(demo[-1], name="demo, 64 px, 12 word pieces", num_text_tokens=12),
        Setup("larger, 64 px", 64, 16, EXAMPLE_TEXT_TOKENS, autoencoder, denoiser),
    ]


def write_corpus(folder: Path, num_rows: int) -> tuple[Path, Path]:
    """Write a shard of 128 px PNGs (the demo's size) of smooth random drawings, three per caption as in the demo;
    return its folder and the file of its rows.
    """
    rng = np.random.default_rng(SEED)
    samples, rows = [], []
    for i in range(num_rows):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((128, 128), Image.Resampling.BICUBIC).save(buffer, "PNG")
        key, caption = make_key(0, i), f"a drawing of thing number {i // 3}"
        samples.append(Sample(key, buffer.getvalue(), caption))
        rows.append({"key": key, "caption": caption, "status": "success", "width": 128, "height": 128})
    shards = folder / "shards"
    shards.mkdir()
    table = pd.DataFrame(rows)
    write_shard(shards, 0, samples, table)
    table[["key", "caption"]].to_parquet(folder / "rows.parquet")
    return shards, folder / "rows.parquet"


def quiet() -> None:
    """Switch off progress bars."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def seconds_of(work: Callable[[], object]) -> float:
    """Return how long `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class Peer:
    """The example's loop with our networks."""

    def __init__(self, setup: Setup, shards: Path, rows: Path) -> None:
        wanted = set(pd.read_parquet(rows)["key"])
        samples = [s for tar in list_shards(shards) for s in read_samples(tar) if s.key in wanted]
        prepare = transforms.Compose(
            [
                transforms.Resize(setup.resolution, interpolation=transforms.InterpolationMode.BILINEAR),
                transforms.CenterCrop(setup.resolution),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize([0.5], [0.5]),
            ]
        )

        def collate(batch: list[Sample]) -> tuple[torch.Tensor, list[str]]:
            pictures = [prepare(Image.open(io.BytesIO(sample.image)).convert("RGB")) for sample in batch]
            return torch.stack(pictures), [sample.caption for sample in batch]

        torch.manual_seed(SEED)
        self.setup, self.device = setup, choose_device()
        self.loader = DataLoader(
            samples,  # type: ignore[arg-type]
            setup.batch_size,
            shuffle=True,
            collate_fn=collate,
            drop_last=True,  # so that every step has as many pictures as ours
        )
        self.vae = Autoencoder(**setup.autoencoder).eval().requires_grad_(False).to(self.device)
        self.encoders = load_text_encoders()
        for model in self.encoders.models:
            cast(torch.nn.Module, model).to(self.device)
        widths = self.encoders.token_width, self.encoders.pooled_width
        channels = setup.autoencoder["latent_channels"]
        self.unet = build_denoiser(setup.denoiser, channels, *widths).train().to(self.device)
        fused: dict[type, type] = {
            AttnProcessor: AttnProcessor2_0,
            AttnAddedKVProcessor: AttnAddedKVProcessor2_0,
        }  # diffusers' default
        self.unet.set_attn_processor(
            {name: fused.get(type(p), type(p))() for name, p in self.unet.attn_processors.items()}
        )
        self.scheduler = build_scheduler()
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), LEARNING_RATE)
        self.ema = EMAModel(self.unet.parameters(), decay=EMA_DECAY)
        self.seconds_of_training = 0.0  # after pictures and captions are encoded

    def step(self, pixels: torch.Tensor, captions: list[str]) -> float:
        """Train one step; return the loss. pixels: (B, 3, H, W) in [-1, 1]."""
        with torch.no_grad(), autocast(self.device):
            latents = self.vae.normalise(self.vae.encode(pixels.to(self.device)).sample())
            text = encode_prompts(captions, self.encoders, self.setup.num_text_tokens)
        began = time.perf_counter()
        latents = latents.float()
        noise = torch.randn_like(latents)
        t_B = torch.randint(NUM_TIMESTEPS, (len(latents),), device=self.device)
        noisy = self.scheduler.add_noise(latents, noise, t_B)  # type: ignore[arg-type]
        target = self.scheduler.get_velocity(latents, noise, t_B)  # type: ignore[arg-type]
        with autocast(self.device):
            predicted = denoise(self.unet, noisy, t_B, text)
        snr_B = compute_snr(self.scheduler, t_B)
        weight_B = snr_B.clamp(max=SNR_GAMMA) / (snr_B + 1)
        loss = (F.mse_loss(predicted.float(), target, reduction="none").mean((1, 2, 3)) * weight_B).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.unet.parameters())
        value = loss.item()
        self.seconds_of_training += time.perf_counter() - began
        return value

    def seconds_per_step(self, num_steps: int) -> tuple[float, float]:
        """Return the seconds of a whole step, and of its part after encoding."""
        done, began = -1, 0.0
        while True:
            for pixels, captions in self.loader:
                self.step(pixels, captions)
                done += 1
                if not done:  # the first step warms up
                    began, self.seconds_of_training = time.perf_counter(), 0.0
                if done == num_steps:
                    return (time.perf_counter() - began) / num_steps, self.seconds_of_training / num_steps


class Ours:
    """`train_denoiser` in its own folder."""

    def __init__(self, setup: Setup, shards: Path, rows: Path, folder: Path) -> None:
        self.setup, self.shards, self.rows, self.folder = setup, shards, rows, folder
        torch.manual_seed(SEED)
        Autoencoder(**setup.autoencoder).save_pretrained(folder / "autoencoder")

    def train(self, num_steps: int) -> tuple[float, float]:
        """Return the seconds in the loop, and the share of them in which it waited for batches."""
        shutil.rmtree(self.folder / "states", ignore_errors=True)
        setup = self.setup
        loop = LoopConfig(num_steps, LEARNING_RATE, 1, EMA_DECAY, num_steps + 1, 0.0, 1e9, SEED)
        result = trainings.train_denoiser(
            DenoiserJob(
                name="bench",
                shards=self.shards,
                rows=self.rows,
                resolution=setup.resolution,
                out=self.folder / "out",
                states=self.folder / "states",
                cache=self.folder / "cache",
                loop=loop,
                autoencoder=self.folder / "autoencoder",
                denoiser=setup.denoiser,
                num_text_tokens=setup.num_text_tokens,
                training=DenoiserTrainingConfig(num_steps, setup.batch_size, LEARNING_RATE, 0.0, 0.1, SEED),
                prompts=(),
                guidance_scale=1.0,
            ),
        )
        return result.timings["seconds"], result.timings["loader_wait_share"]

    def seconds_per_step(self, num_steps: int) -> tuple[float, float]:
        """Return the seconds of a step, and the share of the long run in which it waited for batches."""
        short, _ = self.train(1)
        long, waited = self.train(1 + num_steps)
        return (long - short) / num_steps, waited

    def seconds_to_encode(self) -> float:
        """Return the seconds in which every row's picture and caption is encoded once, into an empty cache."""
        setup, world = self.setup, World()
        autoencoder, encoders = Autoencoder.from_pretrained(self.folder / "autoencoder").eval(), load_text_encoders()
        size = (setup.resolution, setup.resolution)

        def encode() -> None:
            file = open_rows(self.shards, self.rows, self.folder / "off")
            rows = PictureRows(self.shards, file, [size], setup.batch_size)
            encode_captions(rows, encoders, setup.num_text_tokens, self.folder / "off", world)
            encode_moments(autoencoder, rows, self.folder / "off", world)

        seconds = seconds_of(encode)
        shutil.rmtree(self.folder / "off")
        return seconds


@dataclass(frozen=True)
class Speed:
    """Milliseconds per step, medians of the repeats. waited: share of the time, 0..1."""

    peer: float
    training: float  # the part of the peer's step that no cache can save
    warm: float
    off: float
    waited: float


def compare_loops(setup: Setup, num_rows: int, num_steps: int, num_repeats: int) -> Speed:
    """Time both loops, print the figures and return them."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shards, rows = write_corpus(folder, num_rows)
        ours, peer = Ours(setup, shards, rows, folder), Peer(setup, shards, rows)
        ours.train(1)  # fills the caches
        found = []
        for _ in range(num_repeats):  # in turn, so that a slow minute of the machine affects both
            warm, waited = ours.seconds_per_step(num_steps)
            encode = ours.seconds_to_encode() / num_rows * setup.batch_size
            found.append((*peer.seconds_per_step(num_steps), warm, warm + encode, waited))
    peer, training, warm, off, waited = (float(value) for value in np.median(found, axis=0))
    speed = Speed(1e3 * peer, 1e3 * training, 1e3 * warm, 1e3 * off, waited)
    print(
        f"{setup.name}, batch {setup.batch_size}: example's loop {speed.peer:.0f} ms per step, {speed.training:.0f} of "
        f"them after encoding · ours with caches off {speed.off:.0f} ({speed.peer / speed.off:.2f}x), warm "
        f"{speed.warm:.0f} ({speed.peer / speed.warm:.2f}x, bound {speed.peer / speed.training:.2f}x) · "
        f"waiting for batches {100 * waited:.2f} %",
        flush=True,
    )
    return speed


def random_inputs(setup: Setup, width: int, num: int) -> tuple[torch.Tensor, torch.Tensor, TextFeatures]:
    """Return random latents, timesteps and text features for `num` pictures. width: channels per token."""
    factor = setup.autoencoder["fold"] * 2 ** (len(setup.autoencoder["widths"]) - 1)
    side, device = setup.resolution // factor, choose_device()
    z = torch.randn(num, setup.autoencoder["latent_channels"], side, side, device=device)
    tokens = torch.randn(num, setup.num_text_tokens, width, device=device)
    mask = torch.ones(num, setup.num_text_tokens, dtype=torch.bool, device=device)
    text = TextFeatures(tokens, mask, torch.randn(num, width, device=device))
    return z, torch.randint(NUM_TIMESTEPS, (num,), device=device), text


def best_seconds(work: Callable[[], object], num_repeats: int) -> float:
    """Return the shortest time of `work`, after one run to warm up."""
    work()
    return min(seconds_of(work) for _ in range(num_repeats))


def matmul_shapes(network: nn.Module, run: Callable[[], object]) -> dict[tuple[int, int, int], int]:
    """Return (M, K, N) -> how often: the matrix products to which a forward pass reduces its linear layers and
    convolutions.
    """
    shapes: dict[tuple[int, int, int], int] = {}

    def note(module: nn.Module, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            depth = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
            shape = (out.shape[0] * out.shape[2] * out.shape[3], depth, module.out_channels)
        else:
            assert isinstance(module, nn.Linear)
            shape = (out.numel() // module.out_features, module.in_features, module.out_features)
        shapes[shape] = shapes.get(shape, 0) + 1

    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return shapes


def measure_arithmetic(setup: Setup, num_repeats: int) -> float:
    """Return the FLOP/s of a training step's forward and backward pass over those of matrix products with its layers'
    shapes.
    """
    device = choose_device()
    dtype = torch.bfloat16 if half_precision_pays(device) else torch.float32
    torch.manual_seed(SEED)
    width = load_text_encoders().token_width
    network = build_denoiser(setup.denoiser, setup.autoencoder["latent_channels"], width).to(device)
    z, t_B, text = random_inputs(setup, width, setup.batch_size)

    def forward() -> torch.Tensor:
        with autocast(device):
            return denoise(network, z, t_B, text)

    def step() -> None:
        network.zero_grad()
        forward().float().square().mean().backward()

    with FlopCounterMode(display=False) as counter:
        step()
    flops = counter.get_total_flops()
    rate = flops / best_seconds(step, num_repeats)
    product_flops = product_seconds = 0.0
    for (m, k, n), count in matmul_shapes(network, forward).items():
        a, b = torch.randn(m, k, dtype=dtype, device=device), torch.randn(k, n, dtype=dtype, device=device)
        product_flops += count * 2 * m * k * n
        product_seconds += count * best_seconds(lambda a=a, b=b: a @ b, num_repeats)
    share = rate / (product_flops / product_seconds)
    print(
        f"{setup.name}: {count_parameters(network) / 1e6:.1f} M parameters, {flops / 1e9:.1f} GFLOP per step at "
        f"{rate / 1e9:.0f} GFLOP/s; its matrix products in {dtype} {product_flops / product_seconds / 1e9:.0f}: "
        f"{100 * share:.0f} %",
        flush=True,
    )
    if share < 0.4:
        print_profile(step)
    return share


def print_profile(step: Callable[[], None]) -> None:
    """Print where the time of a step goes, the largest shares first."""
    with torch.profiler.profile() as profile:
        step()
    events = sorted(profile.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(e.self_cpu_time_total for e in events)
    for event in events[:TOP_OPERATIONS]:
        print(f"    {100 * event.self_cpu_time_total / total:5.1f} %  {event.key} ({event.count} calls)")


def measure_sampling(setup: Setup, num: int, num_repeats: int) -> float:
    """Return the seconds of the pipeline over those of 2 x NUM_INFERENCE_STEPS forward passes of as many latents."""
    torch.manual_seed(SEED)
    encoders = load_text_encoders()
    unet = build_denoiser(
        setup.denoiser, setup.autoencoder["latent_channels"], encoders.token_width, encoders.pooled_width
    )
    pipeline = EmuPipeline(
        vae=Autoencoder(**setup.autoencoder).eval(),
        unet=unet.eval(),
        scheduler=build_scheduler(),
        **encoders.components(),
        resolution=setup.resolution,
        num_text_tokens=setup.num_text_tokens,
    ).to(choose_device())
    pipeline.set_progress_bar_config(disable=True)
    prompts, seeds = [f"a drawing of thing number {i}" for i in range(num)], list(range(num))
    z, t_B, text = random_inputs(setup, encoders.token_width, num)

    def passes() -> None:
        with torch.no_grad():
            for _ in range(2 * NUM_INFERENCE_STEPS):
                denoise(unet, z, t_B, text)

    whole = best_seconds(lambda: pipeline(prompts, seeds, NUM_INFERENCE_STEPS, 3.0), num_repeats)
    forward = best_seconds(passes, num_repeats)
    print(
        f"{setup.name}: {num} pictures in {NUM_INFERENCE_STEPS} guided steps {whole:.2f} s; "
        f"{2 * NUM_INFERENCE_STEPS} forward passes {forward:.2f} s",
        flush=True,
    )
    return whole / forward


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=192, help="pictures of the corpus; the demo has about 190")
    parser.add_argument("--steps", type=int, default=8, help="timed steps per run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=32, help="pictures drawn at a time")
    given = parser.parse_args()
    quiet()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {choose_device().type}", flush=True)

    demo = demo_setups()
    speeds = [compare_loops(setup, given.rows, given.steps, given.repeats) for setup in demo]
    for setup in other_setups(demo):
        compare_loops(setup, given.rows, given.steps, given.repeats)
    weights = np.array([setup.weight for setup in demo])
    peer, warm, off = (weights @ np.array([getattr(s, name) for s in speeds]) for name in ("peer", "warm", "off"))
    shares = [measure_arithmetic(setup, given.repeats) for setup in (*demo, *other_setups(demo))]
    sampling = measure_sampling(demo[-1], given.pictures, given.repeats)

    met = True
    for name, value, goal, is_met in (
        ("step_over_example_warm", peer / warm, ">= 2.5", peer / warm >= 2.5),
        ("step_over_example_caches_off", peer / off, ">= 1.3", peer / off >= 1.3),
        ("unet_share_of_matmul_rate", min(shares), ">= 0.40", min(shares) >= 0.4),
        ("loader_wait_share", max(s.waited for s in speeds), "< 0.02", max(s.waited for s in speeds) < 0.02),
        ("sampling_over_forward_passes", sampling, "<= 1.10", sampling <= 1.10),
    ):
        met = met and is_met
        print(f"claim {name}: {value:.3f} (goal {goal})", flush=True)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
