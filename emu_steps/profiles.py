"""Complete sets of params: profiles/base.yaml, and overlays that hold only their changes.

An overlay names the profile that it changes (`base: emoji`, a file in the same folder); mappings are merged, anything
else is replaced. `emu profile NAME` writes the merged set, with comments, to params.yaml, which DVC reads and people
edit.
"""

import io
import re
from pathlib import Path

import yaml as pyyaml

from emu_steps.params import Params, check_params

BASE = "base"  # every profile builds on it; it is not a profile itself


def list_profiles(folder: Path) -> list[str]:
    """Names of the profiles in `folder`, sorted, without the base that they all share."""
    return sorted(path.stem for path in folder.glob("*.yaml") if path.stem != BASE)


def read_profile(folder: Path, name: str) -> Params:
    """Read a profile in `folder` as Params. Raises ValueError as `profile_text` and `read_params` do."""
    return check_params(pyyaml.load(profile_text(folder, name), pyyaml.CSafeLoader), f"the profile {name}")


def profile_text(folder: Path, name: str) -> str:
    """Return the complete YAML of a profile in `folder`. Raises ValueError, naming the profiles, if this one does not
    exist.
    """
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
        merged.ca.comment = found.ca.comment  # the comment at the top of the file
        return merged

    stream = io.StringIO()
    yaml.dump(load(name), stream)
    return re.sub(" +$", "", stream.getvalue(), flags=re.MULTILINE)


def _laid_over(below, above):
    """Merge `above` into `below`, both ruamel's CommentedMap; a comment in `above` replaces the one in `below`."""
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict) and below[key]:  # an empty one is replaced
            _laid_over(below[key], value)
        elif key in below:
            below[key] = value
        else:  # in a block, before the last key: its comment holds the blank line before the next section
            below.insert(len(below) - (not below.fa.flow_style()), key, value)
        comment = above.ca.items.get(key, [None] * 3)[2]
        if comment and comment.value.strip():
            below.ca.items[key] = above.ca.items[key]
    return below
