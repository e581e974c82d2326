"""Soft edges of ControlNet 1.1: as HED maps, with a safe variant in which no photo hides."""

from apps.spec import App, Example

APP = App(
    name="softedge",
    title="Soft Edges",
    tab="Soft Edge",
    order=110,
    group="1.1",
    annotator="softedge",
    control="softedge",
    aliases=("soft_edge", "gradio_softedge"),
    examples=(
        Example("toy_tiger.png", "a cute tiger on green grass under a blue sky"),
        Example("toy_elephant.png", "a cute gray elephant on green grass under a blue sky"),
        Example("toy_cupcake_and_crown.png", "a cupcake in front of a crown on a wooden table"),
        Example("photo_cat.jpg", "a cat on green grass"),
        Example("photo_coffee.jpg", "a cup of coffee on a wooden table"),
    ),
)
