"""Fake scribbles: a rough drawing made from a photo, for the scribble ControlNet to fill in."""

from apps.spec import App, Example

APP = App(
    name="fake_scribble",
    title="Fake Scribble Maps",
    tab="Fake Scribble",
    order=60,
    annotator="fake_scribble",
    control="scribble",
    aliases=("fake_scribble2image", "gradio_fake_scribble2image"),
    examples=(
        Example("toy_car.png", "a blue car on green grass under a blue sky"),
        Example("toy_tiger.png", "a cute tiger on green grass under a blue sky"),
        Example("toy_bicycles.png", "two red bicycles on a road under a blue sky"),
        Example("photo_cat.jpg", "a cat on green grass"),
        Example("photo_astronaut.jpg", "an astronaut with a rocket behind"),
    ),
)
