"""Whether two pictures are the same one again, by their looks (signals/looks.py): keys that find candidates, and an
alignment that confirms them. Arrays alone; near_twins.py does this for a corpus.

Keys. Of the lowest 8 x 8 frequencies of a look (a DCT, as in pHash: Zauner, "Implementation and Benchmarking of
Perceptual Image Hash Functions", 2010), weighted by frequency since pictures fall off as 1/f, each of the 63 gives a
bit: whether it is above a fifth of their mean magnitude. Not above 0: in a symmetric picture half of them are next to
nothing, and their signs are noise. The lowest 24 bits are the key. One picture is looked up by the keys that come of
flipping its least certain bits (Lv et al., "Multi-probe LSH", 2007), also mirrored; the other is stored under the keys
of itself and of crops of itself, so that a crop finds it. Halves have keys of their own: a logo changes one of the two.

Confirmation. One look is laid onto the other by the box of it that fits best (Gauss-Newton on both sides' edges; Lucas
and Kanade, 1981). Their similarity is the correlation of their lines and edges (what a blur takes away: in the blurred
looks all cards of a deck are one), of all cells or without one corner, where a logo may be. Colours must point the same
way, unless one is grey.

Close up. What is alike at 32 cells is compared at 128, block by block, since what tells two cards or two road signs
apart is in one place: the structure term of SSIM (Wang et al., "Image Quality Assessment", 2004) of the worst block
counts. A block's own brightness does not, which other colours change, but the pictures' contrasts must be similar. On
one plain ground, where other colours are no excuse, they must be nearly equal, since of drawings of thin lines little
else is seen: two stars of lines differ in how dark their rings are. There the contrasts of means of cells are compared,
which hardly change when a picture is made smaller.

The keys are computed in whole numbers, exactly, so that no machine and no order of additions gives another one.
"""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from emu_data.signals.looks import ASPECT_UNITS, COLOUR_SIDE, NUM_BYTES, SIDE

NUM_FREQUENCIES = 8  # a side
NUM_BITS = 24  # of a key; 20 find 2 % more copies and 16 times as many candidates; chosen here
# left, right, upper, lower as shares of a look. A copy was cut by up to 8 % a side; chosen here.
VIEWS = (
    (0.0, 1.0, 0.0, 1.0),
    *((0.03, 0.97, 0.03, 0.97), (0.08, 0.92, 0.08, 0.92)),
    *((0.0, 0.92, 0.0, 0.92), (0.08, 1.0, 0.08, 1.0), (0.0, 0.92, 0.08, 1.0), (0.08, 1.0, 0.0, 0.92)),
    *((0.04, 0.88, 0.04, 0.88), (0.12, 0.96, 0.12, 0.96), (0.04, 0.88, 0.12, 0.96), (0.12, 0.96, 0.04, 0.88)),
)
HALVES = ((0.0, 0.5, 0.0, 1.0), (0.5, 1.0, 0.0, 1.0), (0.0, 1.0, 0.0, 0.5), (0.0, 1.0, 0.5, 1.0))
NUM_VIEWS = len(VIEWS) + len(HALVES)
NUM_FLIPPED, NUM_FLIPPED_HALF = 4, 2  # least certain bits that are tried both ways; chosen here
# Grey levels times frequency, the mean over all: below it a view is flat and its bits are noise; chosen here.
MIN_CONTRAST = 0.5

NUM_ROUNDS = 8  # of Gauss-Newton; chosen here
MAX_STEP = 0.06  # of a look's side, by which an edge moves in one round; chosen here
MIN_START = 0.5  # correlation before the alignment: what is less alike does not become the same; chosen here
MIN_COARSE = 0.9  # correlation of the blurred looks; chosen here
CORNER = 8  # cells a side of a corner, without which looks may be compared: a logo is there; chosen here
MAX_STRETCH = 0.2  # of log2(width / height) between a look and the part of the other that it shows; chosen here
GREY = 8.0  # levels of Cb and Cr, on average, below which a picture counts as grey; chosen here
MIN_SAME_COLOUR = 0.8  # cosine of two pictures' Cb and Cr; chosen here

NUM_BLOCKS = 8  # a side, of a close look; chosen here
CORNER_BLOCKS = 2  # a side, of a corner that may differ
CLOSE_EDGE = 4  # px of a close look's 128 that are not compared: a crop leaves other ones there; chosen here
NUM_CLOSE_ROUNDS = 4  # of Gauss-Newton, which begins where the small looks ended; chosen here
FLAT = 0.1  # of a picture's variance: what counts as drawn in a block that is plain; chosen here
MAX_CONTRAST = 0.6  # doublings of contrast; 98 % of re-posts made by script differ by less than 0.4; chosen here
# Of two close looks on one plain ground; chosen on half of the pictures of benchmarks/twins.py (docs/log.md).
GROUND, SAME_GROUND = 24, 3  # grey levels around the median that are ground; by which one ground may differ
MIN_GROUND = 0.6  # of a picture that must be ground
NUM_CELLS = 20  # a side, in whose means thin lines drown
CORNER_CELLS = 5  # a side, of a corner that may differ
MAX_DARKER = 0.06  # doublings of contrast of the cells' means

_SCALE = 1024  # of the rounded cosines


class Looks(NamedTuple):
    """grey: uint8 (N, 32, 32). colours: Cb and Cr, uint8 (N, 2, 8, 8). aspects: log2 of width / height (N,)."""

    grey: np.ndarray
    colours: np.ndarray
    aspects: np.ndarray

    def take(self, rows: np.ndarray) -> "Looks":
        """Return the looks of some rows."""
        return Looks(*(array[rows] for array in self))

    def mirrored_where(self, is_mirrored: np.ndarray) -> "Looks":
        """Return the looks, those of some rows (bool, N) mirrored."""
        grey = np.where(is_mirrored[:, None, None], self.grey[..., ::-1], self.grey)
        colours = np.where(is_mirrored[:, None, None, None], self.colours[..., ::-1], self.colours)
        return Looks(grey, colours, self.aspects)


def unpack(blobs: list[bytes]) -> tuple[Looks, np.ndarray]:
    """Return the looks in some pictures' blobs, and which blob each is of, int64 (N,)."""
    owners = np.repeat(np.arange(len(blobs)), [blob[0] for blob in blobs])
    values = np.frombuffer(b"".join(blob[1 : 1 + blob[0] * NUM_BYTES] for blob in blobs), np.uint8)
    values = values.reshape(-1, NUM_BYTES)
    grey = values[:, : SIDE**2].reshape(-1, SIDE, SIDE)
    colours = values[:, SIDE**2 : -1].reshape(-1, 2, COLOUR_SIDE, COLOUR_SIDE)
    return Looks(grey, colours, (values[:, -1] - 128.0) / ASPECT_UNITS), owners


def unpack_close(blob: bytes) -> np.ndarray:
    """Return the close looks in a picture's blob: uint8 (L, 128, 128)."""
    strip = np.asarray(Image.open(io.BytesIO(blob[1 + blob[0] * NUM_BYTES :])).convert("L"))
    return np.stack(np.split(strip, blob[0], axis=1))


def stored_keys(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the keys under which looks (N, 32, 32) are stored: row of the look and its view (int64), key (uint32), and
    all 63 bits (uint64). A flat view has none.
    """
    rows, views, keys, bits = [], [], [], []
    for view, box in enumerate((*VIEWS, *HALVES)):
        values, seen = _frequencies(grey, box, mirrored=False)
        found = _bits(values[seen] > 0)
        rows.append(np.flatnonzero(seen))
        views.append(np.full(len(found), view))
        keys.append(_keys(found, view))
        bits.append(found)
    return np.concatenate(rows), np.concatenate(views), np.concatenate(keys), np.concatenate(bits)


def sought_keys(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the keys under which copies of looks (N, 32, 32) are sought: row of the look (int64), whether it is
    mirrored, key (uint32), the 63 bits without a flip (uint64), and whether bits of the key were flipped.
    """
    found: list[list[np.ndarray]] = [[], [], [], [], []]
    for mirrored in (False, True):
        for view in (0, *range(len(VIEWS), NUM_VIEWS)):
            left, right, upper, lower = (*VIEWS, *HALVES)[view]
            box = (1 - right, 1 - left, upper, lower) if mirrored else (left, right, upper, lower)
            values, seen = _frequencies(grey, box, mirrored)
            values = values[seen]
            bits = _bits(values > 0)
            key = _keys(bits, view)
            num_flipped = NUM_FLIPPED_HALF if view else NUM_FLIPPED
            unsure = np.argsort(np.abs(values[:, :NUM_BITS]), axis=1, kind="stable")[:, :num_flipped]
            for flips in range(2**num_flipped):
                mask = np.zeros(len(key), np.uint32)
                for place in range(num_flipped):
                    if flips >> place & 1:
                        mask |= np.uint32(1) << unsure[:, place].astype(np.uint32)
                columns = (np.flatnonzero(seen), np.full(len(key), mirrored), key ^ mask, bits)
                for column, more in zip(found, (*columns, np.full(len(key), flips > 0)), strict=True):
                    column.append(more)
    rows, is_mirrored, keys, bits, is_flipped = (np.concatenate(column) for column in found)
    return rows, is_mirrored, keys, bits, is_flipped


def similarity(looks: Looks, others: Looks, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how alike looks are to other looks, -1..1 (N,), -1 where outlines, shapes or colours differ; and where in
    the first look the other was found, float (N, 4).

    boxes: float (N, 4), where in the first look the other is to be found at first: left, right, upper, lower.
    """
    found = np.full(len(boxes), -1.0)
    first, second = looks.grey.astype(np.float64), others.grey.astype(np.float64)
    near = np.flatnonzero((_standard(_sampled(first, boxes)) * _standard(second)).mean(axis=(1, 2)) >= MIN_START)
    places = boxes.astype(np.float64)
    if not len(near):
        return found, places
    first, second = first[near], second[near]
    places[near] = boxes = _aligned(_blurred(first), _blurred(second), places[near])
    laid = _sampled(first, boxes)
    coarse, fine = _correlations(_blurred(laid), _blurred(second)), _correlations(_fine(laid), _fine(second))
    tints = [
        np.stack([_sampled(look[near, channel].astype(np.float64) - 128, box) for channel in (0, 1)], axis=1)
        for look, box in ((looks.colours, boxes), (others.colours, np.tile(VIEWS[0], (len(boxes), 1))))
    ]
    fine = np.where(coarse >= MIN_COARSE, fine, -1.0).max(axis=0)  # both without the same corner
    cut = np.log2((boxes[:, 1] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 2]))
    same_shape = np.abs(looks.aspects[near] + cut - others.aspects[near]) <= MAX_STRETCH
    found[near] = np.where(_same_colour(*tints) & same_shape, np.round(fine, 6), -1.0)
    return found, places


def close_similarity(first: np.ndarray, second: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return how alike close looks (N, 128, 128) are where they are least alike, -1..1 (N,): in the worst of 8 x 8
    blocks, of all or without those of the corner that fits worst; -1 where their contrasts are far apart, or not nearly
    equal on one plain ground.

    boxes: float (N, 4), where in the first close look the second is found (similarity).
    """
    first, second = _blurred(first.astype(np.float64)), _blurred(second.astype(np.float64))
    laid = _sampled(first, _aligned(_halved(first), _halved(second), boxes, NUM_CLOSE_ROUNDS))
    laid, second = (values[:, CLOSE_EDGE:-CLOSE_EDGE, CLOSE_EDGE:-CLOSE_EDGE] for values in (laid, second))
    x, y, xx, yy, xy = _products(laid, second, NUM_BLOCKS)
    best = np.full(len(first), -1.0)
    for seen in _without_corners(NUM_BLOCKS, CORNER_BLOCKS):
        size_x, size_y = (
            np.sqrt(squares[:, seen].mean(axis=1) - values[:, seen].mean(axis=1) ** 2)[:, None, None] + 1e-6
            for values, squares in ((x, xx), (y, yy))
        )
        drawn_x, drawn_y, both = (xx - x**2) / size_x**2, (yy - y**2) / size_y**2, (xy - x * y) / (size_x * size_y)
        worst = ((2 * both + FLAT) / (drawn_x + drawn_y + FLAT))[:, seen].min(axis=1)
        similar = np.abs(np.log2(size_x / size_y))[:, 0, 0] <= MAX_CONTRAST
        best = np.maximum(best, np.where(similar, worst, -1.0))
    return np.where(_share_ground(laid, second) & ~_equally_dark(laid, second), -1.0, np.round(best, 6))


def _frequencies(
    grey: np.ndarray, box: tuple[float, float, float, float], mirrored: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return how far each frequency is above its threshold, float64 of whole numbers (N, 63), the lowest frequency
    first; and whether a view is not flat (N,).
    """
    left, right, upper, lower = box
    number = np.arange(NUM_FREQUENCIES)
    weight = np.round(16 * np.hypot(number[:, None], number))
    values = _waves(upper, lower) @ grey.astype(np.float64) @ _waves(left, right).T * weight
    if mirrored:
        values = values * np.where(number % 2, -1, 1)
    order = np.argsort((number[:, None] ** 2 + number**2).ravel(), kind="stable")[1:]
    values = values.reshape(len(grey), -1)[:, order]
    total = np.abs(values).sum(axis=1, keepdims=True)
    unit = 16.0 * _SCALE**2 * (SIDE / 2) ** 2 * len(order)  # of a wave of one grey level, in the mean
    return 5 * len(order) * values - total, total[:, 0] >= MIN_CONTRAST * unit


def _waves(low: float, high: float) -> np.ndarray:
    """Return the cosines of the 8 lowest frequencies over a part of a look's side, whole numbers (8, 32)."""
    number = np.arange(NUM_FREQUENCIES)[:, None]
    edges = np.linspace(low, high, SIDE + 1) * SIDE
    cells = np.arange(SIDE)
    shares = np.clip(np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells), 0, None)
    shares /= shares.sum(axis=1, keepdims=True)
    return np.round(_SCALE * np.cos(np.pi * number * (cells + 0.5) / SIDE) @ shares)


def _bits(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.uint64) << np.arange(values.shape[1], dtype=np.uint64)).sum(axis=1, dtype=np.uint64)


def _keys(bits: np.ndarray, view: int) -> np.ndarray:
    """The lowest bits, below a number for the kind of view: wholes and their crops are one kind."""
    kind = max(0, view - len(VIEWS) + 1)
    return (bits & np.uint64(2**NUM_BITS - 1)).astype(np.uint32) | np.uint32(kind << NUM_BITS)


def _aligned(first: np.ndarray, second: np.ndarray, boxes: np.ndarray, num_rounds: int = NUM_ROUNDS) -> np.ndarray:
    """Return the boxes (N, 4) of the first looks that fit the second ones best."""
    side = first.shape[1]
    target = _standard(second)
    best, found = np.full(len(first), -np.inf), boxes
    along = (np.arange(side) + 0.5) / side
    for _ in range(num_rounds):
        laid = _standard(_sampled(first, boxes))
        fit = (laid * target).mean(axis=(1, 2))
        found = np.where((fit > best)[:, None], boxes, found)
        best = np.maximum(best, fit)
        down, across = np.gradient(laid, axis=(1, 2))
        across /= np.maximum(0.2, boxes[:, 1] - boxes[:, 0])[:, None, None]
        down /= np.maximum(0.2, boxes[:, 3] - boxes[:, 2])[:, None, None]
        rise = np.stack([across * (1 - along), across * along, down * (1 - along[:, None]), down * along[:, None]], 1)
        rise = rise.reshape(len(first), 4, -1)
        error = (target - laid).reshape(len(first), -1, 1)
        step = np.linalg.solve(rise @ rise.swapaxes(1, 2) + 0.01 * np.eye(4), rise @ error)[..., 0] / side
        boxes = np.clip(boxes + np.clip(step, -MAX_STEP, MAX_STEP), -MAX_STEP, 1 + MAX_STEP)
    return found


def _sampled(looks: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the boxes of looks (N, S, S), brought to S x S again, linear between cells."""
    side = looks.shape[1]
    along = (np.arange(side) + 0.5) / side

    def weights(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        places = (low[:, None] + (high - low)[:, None] * along) * side - 0.5
        return np.maximum(0, 1 - np.abs(np.clip(places, 0, side - 1)[..., None] - np.arange(side)))

    return weights(boxes[:, 2], boxes[:, 3]) @ looks @ weights(boxes[:, 0], boxes[:, 1]).swapaxes(1, 2)


def _blurred(looks: np.ndarray) -> np.ndarray:
    """Weights 1 2 1 both ways: half a cell of misalignment then costs little."""
    for axis in (1, 2):
        padded = np.pad(looks, [(0, 0), *((1, 1) if axis == a else (0, 0) for a in (1, 2))], mode="edge")
        before, here, after = (np.take(padded, np.arange(i, i + looks.shape[axis]), axis) for i in range(3))
        looks = 0.25 * before + 0.5 * here + 0.25 * after
    return looks


def _standard(looks: np.ndarray) -> np.ndarray:
    centred = looks - looks.mean(axis=(1, 2), keepdims=True)
    return centred / (centred.std(axis=(1, 2), keepdims=True) + 1e-6)


def _fine(looks: np.ndarray) -> np.ndarray:
    """What a blur of about 3 cells takes away: lines and edges, by which drawings in one template differ."""
    smooth = looks
    for _ in range(3):
        smooth = _blurred(smooth)
    return looks - smooth


def _halved(looks: np.ndarray) -> np.ndarray:
    half = looks.shape[1] // 2
    return looks.reshape(-1, half, 2, half, 2).mean(axis=(2, 4))


def _share_ground(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether two close looks are mostly of one brightness each, and of the same."""
    medians = [np.median(values, axis=(1, 2)) for values in (first, second)]
    plain = [
        (np.abs(values - median[:, None, None]) <= GROUND).mean(axis=(1, 2)) >= MIN_GROUND
        for values, median in zip((first, second), medians, strict=True)
    ]
    return plain[0] & plain[1] & (np.abs(medians[0] - medians[1]) <= SAME_GROUND)


def _equally_dark(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether the means of two close looks' cells have nearly equal contrasts, of all cells or without the corner that
    fits worst.
    """
    x, y, xx, yy, xy = _products(first, second, NUM_CELLS)
    fits, darker = [], []
    for seen in _without_corners(NUM_CELLS, CORNER_CELLS):
        mean_x, mean_y = x[:, seen].mean(axis=1), y[:, seen].mean(axis=1)
        all_x, all_y = xx[:, seen].mean(axis=1) - mean_x**2, yy[:, seen].mean(axis=1) - mean_y**2
        fits.append((xy[:, seen].mean(axis=1) - mean_x * mean_y) / np.sqrt(all_x * all_y + 1e-6))
        darker.append(np.log2((x[:, seen].std(axis=1) + 1e-6) / (y[:, seen].std(axis=1) + 1e-6)))
    return np.abs(np.stack(darker)[np.argmax(fits, axis=0), np.arange(len(first))]) <= MAX_DARKER


def _products(first: np.ndarray, second: np.ndarray, num: int) -> list[np.ndarray]:
    """Return the means of two close looks, their squares and their product in num x num blocks: (N, num, num)."""
    cells = first.shape[1] // num
    products = (first, second, first**2, second**2, first * second)
    return [values.reshape(-1, num, cells, num, cells).mean(axis=(2, 4)) for values in products]


def _without_corners(side: int, corner: int) -> np.ndarray:
    """Return which cells of a square are seen, bool (5, side, side): all, and all without each of the corners."""
    seen = np.ones((5, side, side), bool)
    last = side - corner
    for place, (low, left) in enumerate(((0, 0), (0, last), (last, 0), (last, last)), start=1):
        seen[place, low : low + corner, left : left + corner] = False
    return seen


def _correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the correlation of each pair of looks, of all cells and without each of the corners: (5, N)."""
    found = []
    for counts in _without_corners(SIDE, CORNER).astype(np.float64):
        counts /= counts.sum()
        dx, dy = (a - (a * counts).sum(axis=(1, 2), keepdims=True) for a in (x, y))
        xx, yy, xy = ((a * b * counts).sum(axis=(1, 2)) for a, b in ((dx, dx), (dy, dy), (dx, dy)))
        found.append(xy / np.sqrt(xx * yy + 1e-6))
    return np.stack(found)


def _same_colour(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether Cb and Cr (N, 2, 8, 8, around 0) of two looks point the same way, or one is grey."""
    size_x, size_y = (np.hypot(tints[:, 0], tints[:, 1]).mean(axis=(1, 2)) for tints in (x, y))
    dot, xx, yy = ((a * b).sum(axis=(1, 2, 3)) for a, b in ((x, y), (x, x), (y, y)))
    return (np.minimum(size_x, size_y) < GREY) | (dot >= MIN_SAME_COLOUR * np.sqrt(xx * yy))
