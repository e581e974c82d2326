"""Several controls at once: each unit has its own image, detector, strength and window."""

from apps.spec import Example, Joint

APP = Joint(
    name="multi",
    title="Several Controls at Once",
    tab="Multi",
    order=190,
    aliases=("multi_control", "multicontrol", "multicontrolnet", "several"),
    apps=(
        *("canny", "mlsd", "hed", "scribble", "fake_scribble"),
        *("pose", "segmentation", "depth", "normal"),
        *("softedge", "lineart", "shuffle"),
    ),
    first=("canny", "hed", "mlsd", "scribble"),
    examples=(
        Example(
            "pose_jumping.png",
            "a man in a green shirt jumping on white snow",
            "none",
            app="pose",
            others=(Example("toy_jumping.png", app="hed"),),
        ),
        Example(
            "depth_pickup_truck.png",
            "a red pickup truck on a desert road under a blue sky",
            "none",
            app="depth",
            others=(Example("toy_ambulance.png", app="canny"),),
        ),
        Example(
            "toy_bicycles.png",
            "two red bicycles on a road under a blue sky",
            app="canny",
            others=(Example("toy_bicycles.png", app="mlsd"),),
        ),
    ),
)
