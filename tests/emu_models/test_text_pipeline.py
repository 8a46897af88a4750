"""What the pipelines of all families share."""

import json
import sys
from pathlib import Path

import pytest

from emu_models.checkpoints import CLASSES
from emu_models.text_pipeline import TextPipeline

OURS = [found for found in CLASSES.values() if issubclass(found, TextPipeline)]


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_a_process_that_has_imported_nothing_else_finds_the_classes_of_our_parts(
    kind: type[TextPipeline], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers looks for them among the modules that were imported, and imports none itself."""
    index = {"_class_name": ["pipeline", kind.__name__], "_diffusers_version": "0.42.1"}
    index |= {name: ["saved_code", "AnyClass"] for name in kind.OWN_PARTS}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for module in kind.OWN_PARTS.values():
        monkeypatch.delitem(sys.modules, module, raising=False)
    config = kind.load_config(tmp_path)
    assert config["_class_name"] == kind.__name__
    for name, module in kind.OWN_PARTS.items():
        assert config[name][0] == module and module in sys.modules
