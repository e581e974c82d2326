"""Prompts to token ids: open_clip's tokenizer, read as Stable Diffusion reads prompts."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import ftfy
import regex

START_TOKEN, END_TOKEN = 49406, 49407


def _tokenizers() -> ModuleType:
    """Import the module of open_clip that has the tokenizer, without the package around it.

    The package brings all its networks and torchvision with it, which take as long to import as torch.
    """
    package = find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'open_clip': pip install -r requirements.txt brings it.")
    path = Path(package.submodule_search_locations[0], "tokenizer.py")
    spec = spec_from_file_location("core.models.open_clip_tokenizer", path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if TYPE_CHECKING:
    from open_clip.tokenizer import SimpleTokenizer
else:
    SimpleTokenizer = _tokenizers().SimpleTokenizer


class PublishedTokenizer(SimpleTokenizer):
    """The tokenizer as published with ViT-L/14: its special tokens are written ``<|endoftext|>``."""

    pat: regex.Pattern[str]

    def __init__(self) -> None:
        """Read open_clip's merges, with the published spelling of the special tokens."""
        super().__init__()
        special = {"<|startoftext|>": START_TOKEN, "<|endoftext|>": END_TOKEN}
        _, _, words = self.pat.pattern.split("|", 2)
        self.pat = regex.compile("|".join([*map(regex.escape, special), words]), regex.IGNORECASE)
        self.encoder.update(special)
        self.cache = {token: token for token in special}
        self.clean_fn = lambda text: " ".join(ftfy.fix_text(text).split()).lower()


@cache
def tokenizer(layout: str) -> SimpleTokenizer:
    """Return the tokenizer that text encoders published in ``layout`` ("hf" or "open_clip") are used with."""
    return PublishedTokenizer() if layout == "hf" else SimpleTokenizer()
