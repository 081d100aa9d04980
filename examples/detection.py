"""Why does a detector find this box? A model file for `pellucid explain`, and the same in Python.

    pellucid explain photo.jpg --model examples/detection.py:box --methods gradient,smoothgrad -o explained

The box, in pixels of the image, and its label are the first things to change; `box("DEFAULT")` downloads weights.
"""

import warnings

import torch
from torchvision.models import detection

import pellucid as pl
from pellucid.models.preprocess import Preprocess

BOX, LABEL = (4, 4, 60, 60), None  # a label of the detector, such as 17 for torchvision's cats; None: any
classes = ["what is in the box"]
preprocess = Preprocess(
    resize=None, crop=None, mean=None, std=None
)  # torchvision's detectors normalize themselves


def box(weights=None):
    """The detector as a classifier of one box."""
    network = detection.ssdlite320_mobilenet_v3_large(weights=weights, weights_backbone=None, score_thresh=0.0)
    return pl.Detection(network.eval(), [BOX], None if LABEL is None else [LABEL])


def main():
    """Explain the box on an image of noise, and say how far the score is the box's."""
    torch.manual_seed(0)
    detector, images = box(), torch.rand(1, 3, 64, 64)
    attributions = pl.method("gradient")(detector, images, 0, ["input", "backbone.features.0.13"])
    print(attributions)
    print(f"score of the box: {float(pl.Scorer(detector).scores(images)):.4f}")


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that were not given
        main()
