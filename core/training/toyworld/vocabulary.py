"""The words a tokenizer for the toy world must know.

`python -m core.training.toyworld vocabulary` writes vocabulary.txt anew from the captions, the names of all
pictures in the sprite package and common_words.txt (words that people type into a prompt).
"""

import random
import re
import string
import tarfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from .captions import ADDED_PROMPT, HELD_OUT_OPENERS, NEGATIVE_PROMPT, NUMBERS, OPENERS, RELATIONS
from .objects import PEOPLE, SOLIDS, all_objects, plural
from .palette import PAINTS
from .places import PAINTERS
from .poses import POSES

FOLDER = Path(__file__).parent
PUNCTUATION = ",.:;!?'\"()[]-+/&"
JOINERS = {0x200D, 0xFE0F, 0x20E3}
# Names that Unicode gave after the oldest Python we run on was made.
NEWER_NAMES = {
    0x1F6DC: "wireless", 0x1FA75: "light blue heart", 0x1FA76: "gray heart", 0x1FA77: "pink heart",
    0x1FA87: "maracas", 0x1FA88: "flute", 0x1FAAD: "folding hand fan", 0x1FAAE: "hair pick",
    0x1FAAF: "khanda", 0x1FABB: "hyacinth", 0x1FABC: "jellyfish", 0x1FABD: "wing", 0x1FABF: "goose",
    0x1FACE: "moose", 0x1FACF: "donkey", 0x1FADA: "ginger root", 0x1FADB: "pea pod", 0x1FAE8: "shaking face",
    0x1FAF7: "leftwards pushing hand", 0x1FAF8: "rightwards pushing hand",
}  # fmt: skip


def split_words(text: str) -> list[str]:
    """Split text into lower-case words and single punctuation marks: "Photo-like 3D" is photo - like 3d."""
    return re.findall(r"[a-z0-9]+|[^\sa-z0-9]", text.lower())


def vocabulary() -> list[str]:
    """Read the committed list: sorted words of split_words, one a line."""
    return (FOLDER / "vocabulary.txt").read_text(encoding="utf-8").split("\n")[:-1]


def sprite_name(code: str) -> str:
    """Return plain words for a picture's file name, such as "front facing baby chick" for "1f425"."""
    words: list[str] = []
    for point in (int(part, 16) for part in code.replace("_", "-").split("-")):
        if point in JOINERS or 0x1F3FB <= point <= 0x1F3FF or 0xE0000 <= point <= 0xE007F:
            continue
        words += split_words(NEWER_NAMES.get(point, "") or unicodedata.name(chr(point), ""))
    return " ".join(word for word in words if word.isalpha())  # no punctuation, no "ideograph-7121"


def package_names(tarball: Path) -> list[str]:
    """Return the plain names of all pictures in the sprite package and the plurals of their last words."""
    with tarfile.open(tarball) as archive:
        codes = [Path(name).stem for name in archive.getnames() if name.endswith(".webp")]
    names = sorted({sprite_name(code) for code in codes} - {""})
    return [*names, *(plural(name.split()[-1]) for name in names if name[-1] != "s")]


def caption_texts() -> Iterable[str]:
    """Return texts that hold every word which a caption can contain."""
    for spec in (*all_objects(), *PEOPLE, *SOLIDS):
        yield f"{spec.name} {spec.plural} {spec.category}"
    yield " ".join((*PAINTS, *NUMBERS.values(), *RELATIONS, "a an and big cute next to each other flying"))
    yield " ".join(word for pose in POSES for word in pose.words)
    yield "shirt trousers shorts skirt dress in wearing a portrait of people together seen from behind"
    yield " ".join((*OPENERS, *HELD_OUT_OPENERS, NEGATIVE_PROMPT, ADDED_PROMPT)).replace("{}", "")
    for painter in PAINTERS.values():
        for seed in range(300):  # every choice of words many times over; the smallest picture will do
            place = painter(random.Random(seed), 32)
            yield " ".join(place.phrases + place.air_phrases)


def write_vocabulary(tarball: Path, path: Path = FOLDER / "vocabulary.txt") -> int:
    """Write the list and return its length."""
    common = (FOLDER / "common_words.txt").read_text(encoding="utf-8")
    words = {
        word for text in (common, *package_names(tarball), *caption_texts()) for word in split_words(text)
    }
    words |= set(string.ascii_lowercase) | set(string.digits) | set(PUNCTUATION)
    path.write_text("".join(f"{word}\n" for word in sorted(words)), encoding="utf-8")
    return len(words)
