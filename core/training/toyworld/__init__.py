"""The toy world: scenes composed by seed, with captions and truths, to train the demo model on."""

from .poses import KEYPOINTS
from .scene import EVAL_SEED_BASE, Person, Scene, SceneObject, make_scene
from .sprites import SpriteLibrary, SpritesMissing, default_cache_dir, fetch_sprites
from .truth import Truth
from .vocabulary import split_words, vocabulary

__all__ = [
    "EVAL_SEED_BASE",
    "KEYPOINTS",
    "Person",
    "Scene",
    "SceneObject",
    "SpriteLibrary",
    "SpritesMissing",
    "Truth",
    "default_cache_dir",
    "fetch_sprites",
    "make_scene",
    "split_words",
    "vocabulary",
]
