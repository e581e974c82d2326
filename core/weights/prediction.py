"""What a base model's UNet predicts, the noise (eps) or v: its shapes do not tell, so that signs must."""

from __future__ import annotations

import re
from pathlib import Path

from core.weights.formats import TensorFile

V_KEY = "v_pred"  # an empty tensor of this name says so in some community files
YAML_LINE = re.compile(r"^\s*parameterization:\s*[\"']?(v|eps)\b", re.MULTILINE)
TOLD = {"v": "v", "v_prediction": "v", "epsilon": "eps", "eps": "eps"}


def predicted(file: TensorFile, family: str | None) -> str | None:
    """Return "eps" or "v" as far as the file, its metadata, a YAML file beside it or its name tell.

    Of Stable Diffusion 2.x, the models for 768 px predict v, and they have that number in their names.
    """
    if V_KEY in file.tensors:
        return "v"
    told = TOLD.get(file.metadata.get("modelspec.prediction_type", "").lower())
    if told is None:
        told = _of_yaml(file.path.with_suffix(".yaml"))
    return "v" if told is None and family == "sd2" and "768" in file.path.name else told


def _of_yaml(path: Path) -> str | None:
    """Read a model's YAML file as the first programs of this kind have it beside the checkpoint."""
    if not path.is_file():
        return None
    found = YAML_LINE.search(path.read_text(encoding="utf-8", errors="replace"))
    return found.group(1) if found else None
