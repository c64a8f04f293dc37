"""LeRobot data sets, read (v2.0, v2.1, v3) and written (v3): `reader.read_dataset` and `writer.write_dataset`."""

SIDECAR = "meta/deas_vla.json"  # what this project writes beside a data set: contract, source, label rules, metadata
FORMAT = 1
# What it writes of each row: whether its images are its own, and whether it is an observation after the last step.
FRAME_MARKS = {"frame.is_fresh", "frame.is_final"}
IMAGES = "observation.images."
# Cameras that a policy was pretrained with and a robot may lack: LeRobot fills them in, masked.
EMPTY_CAMERA = f"{IMAGES}empty_camera_"


def camera_name(key: str) -> str:
    """The contract's name of the camera behind a key of LeRobot: ``observation.images.top`` is ``top``."""
    return key.removeprefix(IMAGES).removeprefix("observation.")
