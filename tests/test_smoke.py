"""The smoke test: started as a user starts it, the program trains, says so, and reads digits."""

import random
import re

import pytest
import torch
from PIL import Image

from .photographs import KINDS, row, share_right


def test_training_learns_and_says_so(trained):
    _, out, model = trained
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert re.match(f"device: cpu\n.*50,000 .*10,000 .*\n.* {parameters:,}\n", out)
    assert len(re.findall(r"epoch 1/1 .*batch +\d+/500 .*loss \d+\.\d+", out)) == 500 / 20
    assert "batch 500/500" in out
    assert float(re.search(r"training loss \S+ accuracy (\S+)%", out)[1]) > 50
    last = re.search(r"Validation: average loss \S+, accuracy (\S+)% \((\d+)/10000\)", out)
    assert float(last[1]) == int(last[2]) / 100 > 50  # ten would be chance


def test_training_leaves_plots_and_weights(trained):
    """Plots are PNG, whatever matplotlibrc says."""
    outputs, out, model = trained
    assert out.endswith(f" in {outputs.relative_to(outputs.parents[1])}\n")
    for name in ("loss_curves.png", "mistakes.png"):
        with Image.open(outputs / name) as image:
            assert image.format == "PNG"
    assert not model.training  # what it is loaded for


CHOSEN = [
    "photograph, a darker table",
    "photograph, a lighter table",
    "cut out tightly",
    "chalk, grainy",
    "photograph, in a box or a ring",
    "photograph, a row of two to six",
]


@pytest.mark.parametrize("kind", CHOSEN)
def test_pictures_are_read(kind, trained, digits):
    images, labels = digits
    rng = random.Random(1)
    torch.manual_seed(1)
    length = 2 if KINDS[kind] is row else 1
    pictures = [KINDS[kind](part, rng) for part in images[:6, 0].split(length)]
    assert share_right(trained[2], pictures, labels[:6].split(length)) > 0.6
