"""Loads open_clip models by folder, name or file, in one way for the signals, the judge and the perceptual loss.

A file of weights does not say which activation its network uses, nor how pictures are prepared for it, and open_clip
takes both from the name alone: OpenAI's ViT-B-32 would run with GELU although it was trained with QuickGELU. So a file
is given together with the tag that it was published under, or of the model it was fine-tuned from: NAME@TAG@FILE.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from PIL import Image

FILES = ("open_clip_config.json", "open_clip_model.safetensors")
# The other files of such a folder that affect embeddings: its tokenizer, as transformers saves it.
TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model")
# Settings of how open_clip prepares pictures: name in its table of tags -> argument of create_model_from_pretrained.
PREPARATION = {
    "mean": "image_mean",
    "std": "image_std",
    "interpolation": "image_interpolation",
    "resize_mode": "image_resize_mode",
}


@dataclass(frozen=True)
class ClipModel:
    """A loaded model. network: in eval mode, on the CPU. transform: an RGB picture -> float (3, H, W), the network's
    input. tokenize: N texts -> int64 (N, L)."""

    network: Any
    transform: "Callable[[Image.Image], torch.Tensor]"
    tokenize: "Callable[[list[str]], torch.Tensor]"


@dataclass(frozen=True)
class ClipSource:
    """Where a model comes from: `path` alone, a folder in open_clip's layout; or `name`, a model that open_clip knows,
    with `tag`, or `path` (a file of weights), or both; or `name` alone, a model on a hub ("hf-hub:…")."""

    name: str = ""
    tag: str = ""
    path: Path | None = None

    def __str__(self) -> str:
        """The source as text that load_clip accepts."""
        return "@".join(filter(None, (self.name, self.tag, str(self.path or ""))))

    @property
    def label(self) -> str:
        """A name for people: without the path's folders."""
        return "@".join(filter(None, (self.name, self.tag, self.path.name if self.path else "")))

    def files(self) -> list[Path]:
        """The files whose bytes determine its embeddings, sorted; none if open_clip downloads them."""
        if self.path is None or self.path.is_file():
            return [self.path] if self.path else []
        return sorted({*self.path.glob("open_clip_*"), *(f for name in TOKENIZER_FILES for f in self.path.glob(name))})


def find_clip(source: str | Path, root: Path = Path()) -> ClipSource:
    """Parse a folder, NAME@TAG, NAME@FILE, NAME@TAG@FILE or "hf-hub:…"; paths are relative to `root`. Raises nothing:
    load_clip reports what does not exist."""
    if (root / source).is_dir():
        return ClipSource(path=root / source)
    name, _, rest = str(source).partition("@")
    if rest and (root / rest).is_file():
        return ClipSource(name, path=root / rest)
    tag, _, file = rest.partition("@")
    return ClipSource(name, tag, root / file if file else None)


def load_clip(source: str | Path) -> ClipModel:
    """Load a model from a source that `find_clip` can parse. Raises ValueError, which says what to do, if it is missing
    or incomplete, if a file is given without the tag that it needs, or if open_clip cannot load it.
    """
    import open_clip

    found, options = find_clip(source), dict[str, Any]()
    name, pretrained = found.name, str(found.path or found.tag or "") or None
    if found.path is not None and found.path.is_dir():
        if missing := [file for file in FILES if not (found.path / file).is_file()]:
            raise ValueError(f"{source} is not an open_clip model folder: it lacks {' and '.join(missing)}")
        name, pretrained = f"local-dir:{found.path}", None
    elif not pretrained and ":" not in name:
        raise ValueError(
            f"{source} is not an open_clip model folder; give one, or a name with its tag as NAME@TAG, or with a file "
            "of its weights as NAME@TAG@FILE"
        )
    elif pretrained:
        options = _options_of(found)
    try:
        made: Any = open_clip.create_model_from_pretrained(name, pretrained=pretrained, **options)
    except (RuntimeError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"open_clip cannot load {source}: {error}") from error
    network, transform = made
    return ClipModel(network.eval(), transform, open_clip.get_tokenizer(name))


def _options_of(source: ClipSource) -> dict[str, Any]:
    """Return the arguments that give the network with which the weights were trained. Raises ValueError if the name,
    the tag or the file is unknown, or if a file has no tag and the name's tags differ.
    """
    import open_clip

    config = open_clip.get_model_config(source.name)
    if config is None:
        near = get_close_matches(source.name, open_clip.list_models())
        hint = f"; similar names: {', '.join(near)}" if near else "; `open_clip.list_models()` lists those it knows"
        raise ValueError(f"{source}: open_clip has no model {source.name!r}{hint}")
    tags = open_clip.list_pretrained_tags_by_model(source.name)
    ways = {tag: _way(config, open_clip.get_pretrained_cfg(source.name, tag)) for tag in tags}
    if source.tag:
        given = open_clip.get_pretrained_cfg(source.name, source.tag)
        if not given:
            is_no_file = ", and not a file" if source.path is None else ""
            raise ValueError(
                f"{source}: {source.tag!r} is not a tag of {source.name}{is_no_file}; its tags: {', '.join(tags)}"
            )
        if source.path is not None and not source.path.is_file():
            raise ValueError(f"{source}: there is no file {source.path}")
        way = _way(config, given)
    elif len(set(ways.values())) > 1:
        examples = {way: f"{tag} ({'QuickGELU' if way[0] else 'GELU'})" for tag, way in reversed(ways.items())}
        raise ValueError(
            f"{source}: {source.name} was published with different activations or preparations of pictures, and a file "
            f"does not say which it has; give the tag that it was published under, or of the model it was fine-tuned "
            f"from, as {source.name}@TAG@FILE, such as {' or '.join(reversed(examples.values()))}"
        )
    else:
        way = next(iter(ways.values()), _way(config, {}))
    is_quick, *prepared = way
    known = zip(PREPARATION.values(), prepared, strict=True)
    return {"force_quick_gelu": is_quick, **{option: value for option, value in known if value is not None}}


def _way(config: Mapping[str, Any], tag: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return whether the activation is QuickGELU, and how pictures are prepared. Both config and tag are consulted:
    open_clip only warns if a name's config lacks what the tag says, and roberta-ViT-B-32's tag lacks what its config
    says."""
    return bool(config.get("quick_gelu") or tag.get("quick_gelu")), *(tag.get(name) for name in PREPARATION)
