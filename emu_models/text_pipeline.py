"""What every pipeline of ours has, whatever draws: prompts become features, seeds become noise, and its own code is
saved beside its weights.

A saved folder contains the code of its classes (`save_config`), so that
`DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` can load it if emu is not installed. If it is,
`EmuPipeline.from_pretrained(folder)` and the like run the installed code and none from the folder.
"""

import inspect
import json
import re
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from emu_models.text import TextEncoders, TextFeatures, encode_prompts

Generators = torch.Generator | list[torch.Generator]


@dataclass
class EmuOutput(BaseOutput):
    """The drawn pictures. images: PIL pictures, an array (B, H, W, 3) in [0, 1], or a tensor (B, 3, H, W), according to
    `output_type`."""

    images: list[Image.Image] | np.ndarray | Tensor


class TextPipeline(DiffusionPipeline):
    """A pipeline that is called with prompts, or with their features, and numbers of steps and of guidance.

    Its config has resolution, in px per side, and num_text_tokens. OWN_PARTS: component -> the module of its class, of
    those whose code is ours and is saved with them.
    """

    OWN_PARTS: ClassVar[dict[str, str]] = {}
    _optional_components = ["text_encoder_2", "tokenizer_2"]

    def register_text(
        self,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder_2: PreTrainedModel | None,
        tokenizer_2: PreTrainedTokenizerBase | None,
        resolution: int,
        num_text_tokens: int,
    ) -> None:
        """Keep the text encoders and the two settings; for `__init__`."""
        self.register_modules(text_encoder=text_encoder, tokenizer=tokenizer)
        self.register_modules(text_encoder_2=text_encoder_2, tokenizer_2=tokenizer_2)
        self.register_to_config(resolution=resolution, num_text_tokens=num_text_tokens)

    @property
    def text_encoders(self) -> TextEncoders:
        """The one or two text encoders with their tokenizers, as in training."""
        if self.text_encoder_2 is None:
            return TextEncoders((self.tokenizer,), (self.text_encoder,))
        return TextEncoders((self.tokenizer, self.tokenizer_2), (self.text_encoder, self.text_encoder_2))

    def prepare_text(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str],
        text: TextFeatures | None,
        negative_text: TextFeatures | None,
        num_images_per_prompt: int,
        guided: bool,
        dtype: torch.dtype,
    ) -> TextFeatures:
        """Return the features of B pictures, those of a prompt after each other, on the device; if guided, (2 B) rows,
        the second half of them for the negative prompts.

        Raises ValueError if there is neither prompt nor text, or not one negative prompt or as many as prompts.
        """
        text = self._features_of(text, prompt)
        num_negative = len(as_list(negative_prompt) if negative_text is None else negative_text)
        if num_negative not in (1, len(text)):
            raise ValueError(f"{num_negative} negative prompts for {len(text)} prompts; give one, or one per prompt")
        index = torch.arange(len(text)).repeat_interleave(num_images_per_prompt)
        text = text.select(index)
        if guided:
            null = self._features_of(negative_text, negative_prompt)
            text = TextFeatures.cat([text, null.select(index % len(null))])
        device = self._execution_device
        return TextFeatures(
            text.tokens_BLD.to(device, dtype), text.mask_BL.to(device), text.pooled_BD.to(device, dtype)
        )

    def _features_of(self, text: TextFeatures | None, prompt: str | list[str] | None) -> TextFeatures:
        """Return features that are given, or those of prompts. Raises ValueError without either."""
        if text is not None:
            return text
        if prompt is None:
            raise ValueError("there is neither prompt nor text; give one of them")
        config: Any = self.config
        return encode_prompts(as_list(prompt), self.text_encoders, config.num_text_tokens)

    def save_config(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:  # pyrefly: ignore
        """Write model_index.json, in which diffusers finds where the classes' code is, and that code: pipeline.py with
        the modules that it imports, and that of OWN_PARTS in their folders. (diffusers calls this last in
        `save_pretrained`.)
        """
        super().save_config(save_directory, push_to_hub, **kwargs)
        folder = Path(save_directory)
        _save_code(sys.modules[type(self).__module__], folder, "pipeline")
        index = json.loads((folder / self.config_name).read_text())
        index["_class_name"] = ["pipeline", type(self).__name__]
        for name, kind in ((name, type(getattr(self, name))) for name in self.OWN_PARTS if getattr(self, name)):
            index[name] = [_save_code(sys.modules[kind.__module__], folder / name), kind.__name__]
        (folder / self.config_name).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """Return the config of a folder, with this process's classes instead of the copies in the folder."""
        config = super().load_config(*args, **kwargs)
        found = config[0] if isinstance(config, tuple) else config
        if isinstance(found.get("_class_name"), list):
            found["_class_name"] = cls.__name__
            if cls.__module__.startswith("emu_models"):
                for name, module in cls.OWN_PARTS.items():
                    if found[name][1] is not None:
                        import_module(module)  # diffusers imports no module because a folder names it
                        found[name] = [module, found[name][1]]
        return config


def as_list(prompt: str | list[str]) -> list[str]:
    """Return prompts as a list."""
    return [prompt] if isinstance(prompt, str) else list(prompt)


def make_generators(seeds: int | list[int] | None, generator: Generators | None, num: int) -> Generators | None:
    """Return what `num` pictures' noise is drawn with: generators for seeds (a single one stands for itself and its
    successors), or `generator`. Raises ValueError if both are given, or not as many as pictures."""
    if seeds is None:
        if isinstance(generator, list) and len(generator) != num:
            raise ValueError(f"{num} pictures but {len(generator)} generators; give one, or one per picture")
        return generator
    if generator is not None:
        raise ValueError("both seeds and generator are given; give one of them")
    numbers = [seeds + i for i in range(num)] if isinstance(seeds, int) else list(seeds)
    if len(numbers) != num:
        raise ValueError(f"{num} pictures but {len(numbers)} seeds; give one seed per picture")
    return [torch.Generator().manual_seed(number) for number in numbers]  # on the CPU: the same on every device


# Imports of our own modules, in the package ("from emu_models.text import …") and in a saved copy of a module
OWN_IMPORT = re.compile(r"^from (?:emu_models\.|\.emu_)([\w.]+) import \(?\s*(\w+)", re.MULTILINE)


def _save_code(module: ModuleType, folder: Path, name: str | None = None) -> str:
    """Write the source of one of our modules, and of those that it imports, into `folder`; return the module's name.

    diffusers copies the code of all models into one flat package, hence the prefix emu_. It copies only files that the
    first one imports directly, so a saved module must not depend on others indirectly.
    """
    source = inspect.getsource(module)
    own = module.__name__.removeprefix("emu_models.") if module.__name__.startswith("emu_models.") else None
    saved = "emu_" + own.replace(".", "_") if own else module.__name__.rsplit(".", 1)[-1]
    name = name or saved
    folder.mkdir(parents=True, exist_ok=True)
    flat = OWN_IMPORT.sub(lambda m: re.sub(r"from \S+", f"from .emu_{m[1].replace('.', '_')}", m[0]), source)
    (folder / f"{name}.py").write_text(flat)
    for _, imported in OWN_IMPORT.findall(source):
        _save_code(sys.modules[getattr(module, imported).__module__], folder)
    return name
