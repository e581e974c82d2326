"""What one app is, as data: everything else is the same for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

EXAMPLES_DIR = Path(__file__).resolve().parent.parent / "test_imgs"


@dataclass(frozen=True, slots=True)
class Example:
    """A picture in test_imgs/, by file name, and a prompt that goes with it."""

    image: str
    prompt: str

    @property
    def path(self) -> Path:
        """Where the picture lies."""
        return EXAMPLES_DIR / self.image


@dataclass(frozen=True, slots=True)
class App:
    """One app: a detector and the ControlNet that was trained on its maps.

    ``name`` is the endpoint's and the command line's name; ``aliases`` are other names for the latter.
    ``title`` ends the heading "Control Stable Diffusion with ...". ``annotator`` is a module in annotators/,
    ``control`` a ControlNet's name in the models' configs.
    """

    name: str
    title: str
    annotator: str
    control: str
    examples: tuple[Example, ...] = ()
    aliases: tuple[str, ...] = ()

    @property
    def present_examples(self) -> tuple[Example, ...]:
        """The examples whose picture is there."""
        return tuple(example for example in self.examples if example.path.is_file())
