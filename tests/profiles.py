"""The whole profiles, as `emu profile NAME` writes them."""

from functools import cache
from pathlib import Path

from emu_steps.params import Params
from emu_steps.profiles import list_profiles, profile_text, read_profile

PROFILES = Path(__file__).parents[1] / "profiles"
NAMES = list_profiles(PROFILES)


@cache
def text_of(name: str) -> str:
    return profile_text(PROFILES, name)


@cache
def params_of(name: str) -> Params:
    return read_profile(PROFILES, name)
