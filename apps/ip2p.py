"""Instruct Pix2Pix of ControlNet 1.1: the prompt says what to change in the picture."""

from apps.spec import App, Example

APP = App(
    name="ip2p",
    title="Instruct Pix2Pix",
    tab="Instruct",
    order=140,
    group="1.1",
    annotator="picture",
    control="ip2p",
    aliases=("instruct_pix2pix", "pix2pix", "instruct", "gradio_ip2p"),
    examples=(
        Example("photo_rocket.jpg", "make it on fire"),
        Example("photo_cat.jpg", "make it winter"),
        Example("photo_coffee.jpg", "make the cup golden"),
        Example("toy_tent.png", "make it night"),
    ),
)
