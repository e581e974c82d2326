"""Canny edges: the picture keeps the photo's outlines."""

from apps.spec import App, Example

APP = App(
    name="canny",
    title="Canny Edge Maps",
    tab="Canny",
    order=10,
    annotator="canny",
    control="canny",
    aliases=("canny2image", "gradio_canny2image", "edges"),
    examples=(
        Example("toy_car.png", "a blue car on green grass under a blue sky"),
        Example("toy_tiger.png", "a cute tiger on green grass under a blue sky"),
        Example("toy_telephone.png", "a red telephone on a wooden table in front of a yellow wall"),
        Example("toy_boat.png", "a motor boat on the blue ocean"),
        Example("photo_cat.jpg", "a cat on green grass"),
        Example("photo_coffee.jpg", "a cup of coffee on a wooden table"),
        Example("photo_rocket.jpg", "a rocket under a blue sky"),
    ),
)
