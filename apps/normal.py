"""Normals: the picture keeps which way every surface faces."""

from apps.spec import App, Example

APP = App(
    name="normal",
    title="Normal Maps",
    tab="Normal",
    order=100,
    annotator="normal",
    control="normal",
    aliases=("normal2image", "gradio_normal2image"),
    examples=(
        Example("normal_car.png", "a blue car on green grass under a blue sky", "none"),
        Example("normal_chick.png", "a yellow chick on a road under a blue sky", "none"),
        Example("normal_turtle.png", "a green turtle on a plain yellow background", "none"),
        Example("toy_elephant.png", "a cute gray elephant on green grass under a blue sky"),
        Example("photo_astronaut.jpg", "an astronaut in front of a red wall"),
        Example("photo_coffee.jpg", "a cup of coffee on a wooden table"),
    ),
)
