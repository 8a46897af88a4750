"""`emu studio --demo`: open rounds and invented people, so that a newcomer votes within a minute.

The rounds are on what the demo has made so far. Before it has made anything, they are on crops of two photographs that
scikit-learn brings, and are called practice-…, since the graph does not count votes on those.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from emu_dagster.commands.studio import link
from emu_dagster.commands.studio_rounds import Shown, open_a_round
from emu_data.files import atomic_dir
from emu_steps.layout import Layout
from emu_studio.database import Database
from emu_studio.items import items_of_folder, items_of_folders
from emu_studio.people import invite, list_people, renew
from emu_studio.plan import DEFAULTS, default_plan
from emu_studio.rounds import list_rounds, open_round

PEOPLE = {"generalist": "Gina", "specialist": "Sam", "rater": "Rita", "lead": "Leo"}  # invented
PRACTICE = "practice-"
NUM_CROPS = 12  # of each photograph; chosen here, with the two below: enough for two sheets
CROP_PX = 192
SPOILT = 3  # every so many crops is blurred and dim, so that there is something to leave out


def open_demo(layout: Layout, database: Database) -> list[str]:
    """Open what can be opened and is not open yet, and return what to print: the rounds' pictures, and a new personal
    link for each invented person."""
    opened = [question for question in DEFAULTS if _open_on_graph(layout, database, question)]
    if opened:
        lines = [f"Rounds on the pictures of this project: {', '.join(opened)}."]
    else:
        _open_practice(layout, database)
        lines = [
            f"This project has no pictures yet, so the rounds show {2 * NUM_CROPS} crops of two photographs of",
            "scikit-learn's, and the graph will not count votes on them. `emu demo` makes pictures that it counts.",
        ]
    known = {person.name: person for person in list_people(database)}
    lines.append("Invented people, each with a link that is new at every start:")
    for role, name in PEOPLE.items():
        person = known.get(f"{name} (demo)")
        token = renew(database, person.pseudonym) if person else invite(database, f"{name} (demo)", role)[1]
        lines.append(f"  {name}, {role}: {link(layout, token)}")
    return [*lines, "`emu studio close ROUND` and `emu materialize` make the votes count; Ctrl-C stops the studio.", ""]


def _open_on_graph(layout: Layout, database: Database, question: str) -> bool:
    """Whether a round of this question is open on the project's pictures, opened here or before."""
    if any(one.closed is None and one.plan.recorded_as == question for one in list_rounds(database)):
        return True
    with suppress(ValueError):  # its pictures are not made yet
        open_a_round(layout, database, question, Shown(with_probe=False))  # a probe helps only with more pictures
        return True
    return False


def _open_practice(layout: Layout, database: Database) -> None:
    taken = {one.name for one in list_rounds(database)}
    folder = layout.cache / "studio" / "practice"
    if not folder.is_dir():
        _write_practice(folder)
    for question in DEFAULTS:
        if (name := f"{PRACTICE}{question}") in taken:
            continue
        is_pairs = question in ("appeal", "faithfulness")
        both = (folder / "as taken", folder / "spoilt")
        items = items_of_folders(*both, question == "faithfulness") if is_pairs else items_of_folder(folder / "mixed")
        open_round(database, default_plan(question, name=name, raters_per_item=1), items)


def _write_practice(folder: Path) -> None:
    with atomic_dir(folder) as partial:
        for part in ("as taken", "spoilt", "mixed"):
            (partial / part).mkdir()
        for number, (name, crop) in enumerate(_crops()):
            spoilt = ImageEnhance.Brightness(crop.filter(ImageFilter.GaussianBlur(2))).enhance(0.7)
            file = f"{name}.png"
            crop.save(partial / "as taken" / file)
            spoilt.save(partial / "spoilt" / file)
            (spoilt if number % SPOILT == 0 else crop).save(partial / "mixed" / file)
            (partial / "mixed" / f"{name}.txt").write_text(name.replace("-", " "))


def _crops() -> Iterator[tuple[str, Image.Image]]:
    spec = importlib.util.find_spec("sklearn")  # imported it would take a second
    assert spec is not None and spec.origin is not None
    rng = np.random.default_rng(0)
    for photograph, what in (("china", "a-temple-in-china"), ("flower", "a-red-flower")):
        with Image.open(Path(spec.origin).parent / "datasets" / "images" / f"{photograph}.jpg") as opened:
            image = opened.convert("RGB")
        for number in range(NUM_CROPS):
            side = int(rng.integers(CROP_PX, min(image.size)))
            left, top = (int(rng.integers(0, length - side + 1)) for length in image.size)
            box = (left, top, left + side, top + side)
            yield f"{what}-{number + 1}", image.resize((CROP_PX, CROP_PX), Image.Resampling.LANCZOS, box=box)
