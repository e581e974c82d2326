"""Canny edges: the picture keeps the photo's outlines."""

from apps.spec import App, Example

APP = App(
    name="canny",
    title="Canny Edge Maps",
    annotator="canny",
    control="canny",
    aliases=("canny2image", "gradio_canny2image", "edges"),
    examples=(
        Example("photo_cat.jpg", "a cat on green grass"),
        Example("photo_rocket.jpg", "a rocket under a blue sky"),
        Example("photo_coffee.jpg", "a cup of coffee on a table"),
        Example("photo_astronaut.jpg", "an astronaut"),
    ),
)
