"""What one app is, as data: everything else is the same for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MASK = "mask"  # what an app's ``editor`` is called where parts of a picture are marked
EXAMPLES_DIR = Path(__file__).resolve().parent.parent / "test_imgs"


@dataclass(frozen=True, slots=True)
class Example:
    """A picture in test_imgs/, by file name, and a prompt that goes with it.

    ``preprocessor`` is "none" for a picture that is a map already. Where several controls stand together,
    ``app`` names the app whose detector and ControlNet the picture goes through, and ``others`` are the
    pictures of the further controls.
    """

    image: str
    prompt: str = ""
    preprocessor: Literal["detect", "none"] = "detect"
    app: str = ""
    others: tuple[Example, ...] = ()

    @property
    def path(self) -> Path:
        """Where the picture lies."""
        return EXAMPLES_DIR / self.image

    @property
    def present(self) -> bool:
        """Whether all its pictures are there."""
        return self.path.is_file() and all(other.present for other in self.others)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What the command line and the tabs need to know.

    ``name`` is the endpoint's and the command line's name; ``aliases`` are other names for the latter.
    ``tab`` is the short title; tabs stand by ``order``. Pages with a ``group`` open when that, they
    themselves or everything is asked for; those without one also when nothing is.
    """

    name: str
    title: str
    tab: str
    order: int
    group: str = ""
    aliases: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()

    @property
    def present_examples(self) -> tuple[Example, ...]:
        """The examples whose pictures are there."""
        return tuple(example for example in self.examples if example.present)


@dataclass(frozen=True, slots=True, kw_only=True)
class App(Page):
    """One app: a detector and the ControlNet that was trained on its maps.

    ``title`` ends the heading "Control Stable Diffusion with ...". ``annotator`` is a module in annotators/,
    ``control`` a ControlNet's name in the models' configs. ``editor`` is "canvas" where the picture is drawn
    on the page and not brought, "mask" where somebody marks on it what to draw anew.

    ``denoise`` is given where the drawing starts from the picture: the share of it that is drawn anew at
    first. ``alone`` is whether the app draws without its ControlNet where that is not there.
    """

    annotator: str
    control: str
    editor: Literal["", "canvas", "mask"] = ""
    denoise: float | None = None
    alone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Joint(Page):
    """Several controls of one picture: units, each with an image, a detector and its ControlNet.

    ``apps`` names those whose detector and ControlNet a unit may take. There are as many units as names in
    ``first``, which says what each starts with; ``shown`` of them are open at first.
    """

    apps: tuple[str, ...]
    first: tuple[str, ...]
    shown: int = 2


@dataclass(frozen=True, slots=True)
class Card:
    """One detector on the page of all detectors: its heading and its own defaults there."""

    annotator: str
    title: str
    resolution: int = 512
    defaults: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Workbench(Page):
    """Detectors side by side on one picture; nothing is drawn, and no model is needed."""

    cards: tuple[Card, ...]
