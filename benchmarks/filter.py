"""Claims about the filter, each measured beside a named peer in the same run: `make bench NAME=filter`.

speed    the cascade, with one worker per core, against the plain loop that people write, with torch's threads on all
         cores: EasyOCR's `readtext` and open_clip, picture by picture, with the same weights (a ViT-B/32 with random
         weights, on which speed does not depend)
decode   the gates for geometry, caption and hash alone, against reading and decoding the same files on all cores
memory   of the whole filter over 100 000 pictures against 10 000; of an OCR worker after 5 000 pictures against 500

Pictures: benchmarks/_images.py. Ends with one line per claim, and exit code 1 if one is missed. `--scale small` tries
everything in a minute or two; its figures mean nothing.
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _corpora import write_corpus, write_one, write_weights
from _images import Labelled, labelled_images, to_samples
from PIL import Image

from emu_data.cascade import BATCH, StopRule, Task, load_signals, measure_group, read_values
from emu_data.cascade_order import NUM_PILOT, find_order, measured_costs
from emu_data.engine import Engine, Guard
from emu_data.engine.local import num_cores
from emu_data.samples import Sample, make_key
from emu_data.shards import list_shards, read_samples
from emu_data.signals import Signal
from emu_data.signals.alignment import AlignmentSignal
from emu_data.signals.caption import CaptionSignal
from emu_data.signals.geometry import GeometrySignal
from emu_data.signals.looks import LooksSignal
from emu_data.signals.text_area import TextAreaSignal

TOP = Path(__file__).resolve().parent.parent
PACKAGES = Path(os.environ.get("EMU_PACKAGE_CACHE", TOP / "data" / "cache" / "packages"))
CHEAP = (GeometrySignal(), CaptionSignal(), LooksSignal())
MAX_TEXT_AREA = 0.09  # for photographs: docs/log.md
POLICY = {"max_aspect": 3.0, "min_words": 3, "min_characters": 3, "max_text_area": MAX_TEXT_AREA}


@dataclass(frozen=True)
class Scale:
    """Numbers of pictures, and the text gate's canvas in px."""

    num_pilot: int  # with which the order of the signals is found
    num_compared: int  # for the cascade and the plain loop
    num_decoded: int
    num_memory: tuple[int, int]
    num_ocr: tuple[int, int]
    canvas: int


SCALES = {
    "full": Scale(NUM_PILOT, 96, 1500, (10_000, 100_000), (500, 5_000), 384),
    "small": Scale(130, 16, 60, (400, 1_200), (40, 120), 384),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--only", choices=("speed", "decode", "memory"), help="one group of claims")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, given = arguments.child
        print(json.dumps({"plain": plain_loop, "filter": filter_memory, "ocr": ocr_memory}[name](**json.loads(given))))
        return 0
    scale = SCALES[arguments.scale]
    claims: list[tuple[str, float, str, bool]] = []
    with tempfile.TemporaryDirectory(prefix="emu-bench-") as folder:
        for name, group in {"speed": speed, "decode": decode, "memory": memory}.items():
            if arguments.only in (None, name):
                claims += group(scale, Path(folder) / name)
    for name, value, goal, is_met in claims:
        print(f"claim {name}: {value:.3g} (goal {goal}){'' if is_met else '  MISSED'}")
    return 0 if all(is_met for *_, is_met in claims) else 1


def speed(scale: Scale, folder: Path) -> list[tuple[str, float, str, bool]]:
    """Compare the cascade, whose order was found on other pictures, and the plain loop on the same pictures."""
    cores = num_cores()
    pilot = to_samples(labelled_images(scale.num_pilot, PACKAGES, 0.4, seed=1))
    write_corpus(folder / "pilot", pilot, per_shard=-(-len(pilot) // (4 * cores)))
    names = [tar.stem for tar in list_shards(folder / "pilot")]
    pictures = list(labelled_images(scale.num_compared, PACKAGES, 0.3, seed=2))
    write_corpus(folder / "raw", to_samples(pictures))
    weights = write_weights(folder / "ViT-B-32")
    captions = tuple(sorted({sample.caption for sample in read_samples(folder / "raw" / "00000.tar")}))
    signals: list[Signal] = [*CHEAP, AlignmentSignal(str(weights), captions), TextAreaSignal(scale.canvas)]
    rule = StopRule((POLICY,))
    engine = Engine(num_workers=cores)
    timings = folder / "pilot-ms.json"
    found = find_order(folder / "pilot", names, signals, rule, folder / "pilot-signals", timings, engine)
    print(f"order: {', '.join(found.order)}")
    for piece, cost in measured_costs(timings, signals).items():
        declared = found.costs.get(piece)
        print(
            f"{piece}: {cost.core:.3g} ms of a core and {cost.network:.3g} ms of a network per picture in the pilot "
            f"({cost.num_pictures} pictures)" + ("" if declared is None else f", declared {declared:.3g} together")
        )

    samples = list(read_samples(folder / "raw" / "00000.tar"))
    signals = found.arrange(signals)
    tasks = [Task(sample, {}, frozenset(), False) for sample in samples]
    with ExitStack() as stack:  # the local engine's workers: one child per core, with one thread each
        load = partial(load_signals, tuple(signals), rule)
        guards = [stack.enter_context(Guard(load, base_timeout=600)) for _ in range(cores)]
        pool = stack.enter_context(ThreadPoolExecutor(cores))
        parts = [tasks[start::cores] for start in range(cores)]
        list(pool.map(lambda guard: guard.map(tasks[:4], BATCH), guards))  # loaded and warm, as the plain loop's are
        before, start = children_seconds(), time.perf_counter()
        done = list(pool.map(lambda guard, part: guard.map(part, BATCH), guards, parts))
        ours, spent = len(tasks) / (time.perf_counter() - start), children_seconds() - before
    found = [done[i % cores][i // cores] for i in range(len(tasks))]
    areas = np.array([one.values.get("text_area") or 0.0 for one in found])
    everything = TextAreaSignal(scale.canvas, sure_area=1.0, probed=False)
    measure_group(folder / "raw", ["00000"], [everything], folder / "signals", progress=False, engine=engine)
    whole = read_values(folder / "raw", ["00000"], [everything], folder / "signals")["text_area"].to_numpy(float)
    given = {"tar": str(folder / "raw" / "00000.tar"), "weights": str(weights)}
    plain: Any = in_child("plain", given)

    truth = np.array([picture.text_area for picture in pictures])
    theirs = np.array(plain["areas"])
    is_labelled = (truth == 0) | (truth > 0.1)  # between, either side of MAX_TEXT_AREA may be right
    differ = ((areas > MAX_TEXT_AREA) != (theirs > MAX_TEXT_AREA)) & is_labelled
    right = ((areas > MAX_TEXT_AREA) == (truth > 0.1))[differ]
    rows = {"cascade": areas, "CRAFT on all, whole canvas": whole, "plain loop": theirs}
    for name, values in rows.items():
        big, clean = truth > 0.1, truth == 0
        print(
            f"{name}: {(values > MAX_TEXT_AREA)[big].mean():.3f} of {big.sum()} with text found, "
            f"{(values > MAX_TEXT_AREA)[clean].mean():.3f} of {clean.sum()} clean ones taken for text"
        )
    print(
        f"the cascade and the plain loop differ on {differ.sum()} of {is_labelled.sum()}; the label agrees with the "
        f"cascade on {right.sum()} of these"
    )
    looks = pd.Series([one.values.get("text_canvas") or 0 for one in found]).value_counts().to_dict()
    print(f"pictures by the last canvas read (0: the probe was enough): {looks}")
    print(f"pictures per second: cascade {ours:.2f}, plain loop {plain['rate']:.3f}")
    print(
        f"CPU ms a picture, on which other programs have less influence: cascade {1000 * spent / len(tasks):.0f}, "
        f"plain loop {1000 * plain['seconds']:.0f}, {plain['seconds'] * len(tasks) / spent:.1f} times as many"
    )
    pieces: dict[str, float] = {}
    for one in found:
        for piece, cost in one.spent.items():
            pieces[piece] = pieces.get(piece, 0.0) + 1000 * (cost.core + cost.network) / len(tasks)
    print("of these: " + ", ".join(f"{piece} {ms:.0f}" for piece, ms in sorted(pieces.items(), key=lambda p: -p[1])))
    return [
        at_least("cascade / plain loop, pictures per second", ours / plain["rate"], 50),
        at_least(
            "text decisions equal to CRAFT on everything",
            ((areas > MAX_TEXT_AREA) == (whole > MAX_TEXT_AREA)).mean(),
            0.98,
        ),
        at_least(
            "text decisions equal to the label",
            ((areas > MAX_TEXT_AREA) == (truth > 0.1))[is_labelled].mean(),
            0.98,
        ),
    ]


def plain_loop(tar: str, weights: str) -> dict[str, Any]:
    """Run EasyOCR and open_clip as their READMEs show them. An area is that of the union of the boxes that were
    read.
    """
    import cv2
    import easyocr
    import open_clip
    import torch

    from emu_data.signals.craft import weights_folder

    reader = easyocr.Reader(
        ["en"], gpu=False, model_storage_directory=str(weights_folder()), download_enabled=False, verbose=False
    )
    made: Any = open_clip.create_model_from_pretrained(f"local-dir:{weights}")
    model, preprocess = made
    tokenizer = open_clip.get_tokenizer(f"local-dir:{weights}")
    areas, start, spent, num = [], 0.0, 0.0, 0
    for number, sample in enumerate([*read_samples(Path(tar))][:1] + [*read_samples(Path(tar))]):
        if number == 1:  # the first picture is for warming up
            start, areas, spent = time.perf_counter(), [], time.process_time()
        image = Image.open(io.BytesIO(sample.image)).convert("RGB")
        mask = np.zeros((image.height, image.width), np.uint8)
        for box, _, _ in reader.readtext(np.asarray(image)):
            cv2.fillPoly(mask, [np.round(np.array(box)).astype(np.int32)], (1,))
        areas.append(float(mask.mean()))
        with torch.no_grad():
            pixels: Any = preprocess(image)
            vector = model.encode_image(pixels[None], normalize=True)
            _ = vector @ model.encode_text(tokenizer([sample.caption]), normalize=True).T
        num = number
    seconds = (time.process_time() - spent) / num
    return {"areas": areas, "rate": num / (time.perf_counter() - start), "seconds": seconds}


def children_seconds() -> float:
    """Return the CPU seconds that this process's children have spent."""
    import psutil

    times = [child.cpu_times() for child in psutil.Process().children()]
    return sum(one.user + one.system for one in times)


def decode(scale: Scale, folder: Path) -> list[tuple[str, float, str, bool]]:
    """Compare the cheap gates with the minimum: reading the tar and decoding, on all cores."""
    cores = num_cores()
    pictures = [labelled.image for labelled in labelled_images(min(scale.num_decoded, 300), PACKAGES, 0.0, seed=3)]
    cycle = to_samples([Labelled(image, 0.0, True) for image in pictures])
    samples = [cycle[i % len(cycle)] for i in range(scale.num_decoded)]
    write_corpus(folder / "raw", samples, per_shard=-(-scale.num_decoded // (4 * cores)))
    tars = list_shards(folder / "raw")
    for tar in tars:
        tar.read_bytes()  # so that both read from the page cache
    start = time.perf_counter()
    with get_context("spawn").Pool(cores) as pool:
        num = sum(pool.map(read_and_decode, tars, chunksize=1))
    bare = time.perf_counter() - start
    start = time.perf_counter()
    engine, names = Engine(num_workers=cores), [tar.stem for tar in tars]
    measure_group(folder / "raw", names, CHEAP, folder / "signals", progress=False, engine=engine)
    ours = time.perf_counter() - start
    print(f"{num} pictures on {cores} cores: bare {num / bare:.0f}, gates {num / ours:.0f} pictures per second")
    return [at_most("cheap gates / bare reading and decoding, time", ours / bare, 2)]


def read_and_decode(tar: Path) -> int:
    """Decode every picture of a tar; return their number."""
    return sum(1 for sample in read_samples(tar) if Image.open(io.BytesIO(sample.image)).convert("RGB"))


def memory(scale: Scale, folder: Path) -> list[tuple[str, float, str, bool]]:
    """Compare memory after many pictures with memory after few."""
    few, many = (in_child("filter", {"num": num, "folder": str(folder / str(num))}) for num in scale.num_memory)
    print(f"peak memory of filter and child: {few / 2**20:.0f} MiB, {many / 2**20:.0f} MiB for {scale.num_memory}")
    first, last = in_child("ocr", {"marks": scale.num_ocr})
    print(f"memory of an OCR worker: {first / 2**20:.0f} MiB, {last / 2**20:.0f} MiB after {scale.num_ocr}")
    return [
        at_most(f"peak memory at {scale.num_memory[1]} pictures / at {scale.num_memory[0]}", many / few, 1.2),
        at_most(f"OCR worker's memory after {scale.num_ocr[1]} pictures / after {scale.num_ocr[0]}", last / first, 1.2),
    ]


def filter_memory(num: int, folder: str, per_shard: int = 1000) -> int:
    """Return the peak bytes of this process and its largest child while `num` small pictures are filtered."""
    import resource

    raw = Path(folder) / "raw"
    rng = np.random.default_rng(0)
    some = []
    for _ in range(50):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(buffer, "PNG")
        some.append(buffer.getvalue())
    for shard in range(-(-num // per_shard)):
        keys = [make_key(shard, i) for i in range(min(per_shard, num - shard * per_shard))]
        samples = [Sample(key, some[i % len(some)], f"a small picture {key}") for i, key in enumerate(keys)]
        write_one(raw, shard, samples)
    measure_group(raw, [tar.stem for tar in list_shards(raw)], CHEAP, Path(folder) / "signals", progress=False)
    shutil.rmtree(folder)
    return 1024 * sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def ocr_memory(marks: Sequence[int]) -> list[int]:
    """Return the bytes that a process holds after each of `marks` pictures of many sizes, reading words if there are
    any.
    """
    import psutil

    from emu_data.signals import LazySample

    pictures = to_samples(labelled_images(60, PACKAGES, 0.3, seed=4))
    measure = TextAreaSignal(96, words_between=(0.01, 1.0)).load()
    found, num = [], 0
    while num < marks[-1]:
        batch = [pictures[(num + i) % len(pictures)] for i in range(20)]
        measure([LazySample(sample) for sample in batch])
        num += len(batch)
        if num in marks:
            found.append(psutil.Process().memory_info().rss)
    return found


def in_child(name: str, given: dict[str, Any]) -> Any:
    """Run one of this file's measurements in its own process, whose memory and speed nothing else affects."""
    command = [sys.executable, __file__, "--child", name, json.dumps(given)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def at_least(name: str, value: float, goal: float) -> tuple[str, float, str, bool]:
    """Return a claim: name, value, goal in words, whether it is met."""
    return name, float(value), f"at least {goal}", bool(value >= goal)


def at_most(name: str, value: float, goal: float) -> tuple[str, float, str, bool]:
    """Return a claim: name, value, goal in words, whether it is met."""
    return name, float(value), f"at most {goal}", bool(value <= goal)


Group = Callable[[Scale, Path], list[tuple[str, float, str, bool]]]

if __name__ == "__main__":
    sys.exit(main())
