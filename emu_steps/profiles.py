"""Whole sets of params: profiles/base.yaml, and overlays that say only what is other in them.

An overlay names what it lies over (`base: emoji`, a file beside it); mappings are merged, anything else is replaced.
`emu profile NAME` writes the merged set, comments and all, to params.yaml, which DVC reads and people edit.
"""

import io
import re
from pathlib import Path

import yaml as pyyaml

from emu_steps.params import Params, check_params

BASE = "base"  # of every profile, and none itself


def list_profiles(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml") if path.stem != BASE)


def read_profile(folder: Path, name: str) -> Params:
    """The params of a profile of `folder`. ValueError as of `profile_text` and of `read_params`."""
    return check_params(pyyaml.load(profile_text(folder, name), pyyaml.CSafeLoader), f"the profile {name}")


def profile_text(folder: Path, name: str) -> str:
    """The whole YAML of a profile of `folder`. ValueError names the profiles where there is no such one."""
    from ruamel.yaml import YAML

    yaml = YAML()  # keeps comments and the order of keys
    yaml.preserve_quotes = True
    yaml.width = 160
    yaml.representer.add_representer(
        type(None), lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    yaml.indent(mapping=2, sequence=4, offset=2)

    def load(one: str):
        path = folder / f"{one}.yaml"
        if not path.is_file() or name == BASE:
            raise ValueError(f"there is no profile {one!r}; there are: {', '.join(list_profiles(folder))}")
        found = yaml.load(path)
        below = found.pop("base", None)
        if not below:
            return found
        merged = _laid_over(load(below), found)
        merged.ca.comment = found.ca.comment  # what stands at the top
        return merged

    stream = io.StringIO()
    yaml.dump(load(name), stream)
    return re.sub(" +$", "", stream.getvalue(), flags=re.MULTILINE)


def _laid_over(below, above):
    """`above` merged into `below`, both ruamel's CommentedMap; a comment of `above` takes the place of the other's."""
    for key, value in above.items():
        if key in below and isinstance(below[key], dict) and isinstance(value, dict):
            _laid_over(below[key], value)
        elif key in below:
            below[key] = value
        else:  # in a block before the last key, whose comment holds the blank line in front of the next section
            below.insert(len(below) - (not below.fa.flow_style()), key, value)
        comment = above.ca.items.get(key, [None] * 3)[2]
        if comment and comment.value.strip():
            below.ca.items[key] = above.ca.items[key]
    return below
