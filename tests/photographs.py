"""Digits as people hand them in, made from MNIST's test images or drawn; how many are read right.

The tests read a few of some kinds. By hand, after a training:

.venv/bin/python -m tests.photographs --count 100
"""

import argparse
import io
import math
import random
import sys
from contextlib import suppress
from functools import partial

import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F
from torchvision.transforms.functional import (
    gaussian_blur,
    pil_to_tensor,
    resize,
    rotate,
    to_pil_image,
)

import mnist_cnn


def find_ink(picture, kind="JPEG"):
    """Return the ink that the program finds in a picture (channels, H, W), handed in as a file."""
    file = io.BytesIO()
    to_pil_image(picture.clamp(0, 1)).save(file, kind, quality=80)
    return mnist_cnn.find_ink(mnist_cnn.read_picture(file))


def share_right(model, pictures, labels):
    """Return the share of pictures whose digits are found and read right; labels are (digits,)."""
    right = 0
    for picture, label in zip(pictures, labels):
        find = mnist_cnn.find_candidates if len(label) == 1 else mnist_cnn.find_rows
        with suppress(ValueError):  # nothing is found
            _, probabilities = mnist_cnn.read_digits(model, find(find_ink(picture)))
            right += probabilities.argmax(dim=1).equal(label)
    return right / len(labels)


STROKES = {  # corners of a pen's way in a square of 100 x 100
    1: [[(35, 22), (56, 0), (54, 100)]],
    4: [[(52, 0), (14, 64), (88, 64)], [(66, 32), (64, 100)]],
    7: [[(16, 4), (84, 2), (44, 100)]],
}


def drawn(digit, ink="#2040a0", paper="#f4e8b0", width=20):
    """Draw a digit with ink on paper, off the middle: (3, 130, 170)."""
    picture = Image.new("RGB", (340, 260), paper)
    draw = ImageDraw.Draw(picture)
    for stroke in STROKES[digit]:
        points = [(80 + 1.6 * x, 40 + 1.6 * y) for x, y in stroke]
        draw.line(points, ink, width, joint="curve")
    return pil_to_tensor(picture.resize((170, 130))) / 255


# What follows makes pictures of a digit, (1, 28, 28) or larger, with MNIST's margin.
def tint(levels):
    """Return levels of red, green and blue, or one for all, to be mixed with a (3, H, W)."""
    return torch.tensor(levels).view(-1, 1, 1)


def place(image, rng, height, width):
    """Put an image (1, size, size) anywhere into an empty one, (1, height, width)."""
    bottom, right = height - image.shape[1], width - image.shape[2]
    top, left = rng.randint(0, bottom), rng.randint(0, right)
    return F.pad(image, (left, right - left, top, bottom - top))


def expose(picture, rng, shadow=False):
    """Photograph what is white or grey in uneven, tinted light: (3, H, W)."""
    down, across = (torch.linspace(-1, 1, length) for length in picture.shape[1:])
    angle = rng.uniform(0, 2 * math.pi)
    position = across * math.cos(angle) + down[:, None] * math.sin(angle)  # along the light
    light = 1 + rng.uniform(-0.15, 0.15) * position
    if shadow:
        beyond = torch.sigmoid(60 * (position - rng.uniform(-0.4, 0.4)))  # its edge
        light *= 1 - rng.uniform(0.25, 0.5) * beyond
    colour = tint([rng.uniform(0.85, 1.05) for _ in range(3)])
    picture = gaussian_blur(picture * light * colour, 7, rng.uniform(0.5, 2))
    return picture + rng.uniform(0, 0.03) * torch.randn(picture.shape)


def photo(digit, rng, table_sides=0, papers=([0.9],), tables=([0.1], [0.5]), inks=None, **light):
    """Photograph a digit on a sheet as a telephone does: (3, 480, 640).

    The digit has 20 to 45% of the picture's height. Where table shows on all sides, the sheet lies
    askew. Papers and tables have levels of light; inks take 60 to 90% of it, or the given shares.
    """
    size = int(480 * rng.uniform(0.28, 0.63))
    sides = rng.sample(range(4), table_sides)
    margins = [int(rng.uniform(30, 80)) if side in sides else 0 for side in range(4)]
    left, right, top, bottom = margins
    shape = place(resize(digit, [size, size]), rng, 480 - top - bottom, 640 - left - right)
    page = F.pad(torch.cat([shape, torch.ones_like(shape)]), margins)
    shape, sheet = rotate(page, rng.uniform(-3, 3)) if table_sides == 4 else page
    taken = rng.choice(inks or [[rng.uniform(0.6, 0.9)]])
    written = tint(rng.choice(papers)) * (1 - shape * tint(taken))
    return expose(
        torch.lerp(tint(rng.choice(tables)), written, sheet).expand(3, -1, -1), rng, **light
    )


def lined(digit, rng):
    """Photograph a digit on squared paper, lines up to as dark as its ink: (3, 480, 640)."""
    picture, gap = photo(digit, rng), rng.randint(15, 45)
    for lines in (picture[:, ::gap], picture[:, :, ::gap]):
        lines *= rng.choice([0.3, 0.6, 1])
    return picture


def framed(digit, rng):
    """Photograph a digit in a box or a ring of its ink: (3, 480, 640)."""
    image = to_pil_image(F.pad(resize(digit, [224, 224]), [40] * 4))
    draw, corner = ImageDraw.Draw(image), rng.uniform(4, 32)
    frame = rng.choice([draw.rectangle, draw.ellipse])
    frame([corner, corner, 304 - corner, 304 - corner], outline=255, width=rng.randint(3, 8))
    return photo(pil_to_tensor(image) / 255, rng)


def scan(digit, rng, paper=0.95, ink=0.1, grain=0.0):
    """Scan a digit, 30 to 90% of a sheet with MNIST's margin, anywhere on it: (1, H, W)."""
    height, width = rng.randint(80, 250), rng.randint(80, 250)
    size = int(min(height, width) * rng.uniform(0.3, 0.9))
    shape = place(resize(digit, [size, size]), rng, height, width)
    return paper + (ink - paper) * shape + grain * torch.randn(shape.shape)


def enlarge(image, scale):
    return resize(image, [round(scale * length) for length in image.shape[1:]])


def crop(digit):
    """Return a digit without its margin."""
    low, high = (digit[0] > 0.3).nonzero().aminmax(dim=0)
    return digit[:, low[0] : high[0] + 1, low[1] : high[1] + 1]


def cut_out(digit, rng):
    """Cut a digit out of its paper so tightly that it touches the edges: shape (1, H, W)."""
    ink = enlarge(crop(digit), 8)
    return rng.uniform(0.7, 1) - 0.6 * ink + 0.02 * torch.randn(ink.shape)


def row(digits, rng):
    """Photograph digits (N, 28, 28) side by side, 320 to 600 wide in a picture (3, 480, 640).

    Their sizes are 0.8 to 1.2, and the gaps between them 0.1 to 0.6, of one height.
    """
    inks = [enlarge(crop(digit), rng.uniform(2.4, 3.6)) for digit in digits.split(1)]
    parts = [F.pad(ink, (rng.randint(6, 36), 0, 75 - ink.shape[1], 0)) for ink in inks]
    line = torch.cat(parts, dim=2)
    line = enlarge(line, min(rng.uniform(320, 600) / line.shape[2], 6))
    return expose((0.9 - 0.7 * place(line, rng, 480, 640)).expand(3, -1, -1), rng)


# Of red, green and blue: what inks take of the light, and what papers and tables have of it.
PALE_INKS = [[0.02, 0.3, 0.6], [0.3], [0.25, 0.4, 0.1], [0.02, 0.08, 0.6]]
NOTES = [[0.98, 0.93, 0.45], [0.98, 0.6, 0.72], [0.55, 0.8, 0.95], [0.65, 0.92, 0.55]]
DESKS = [[0.93, 0.93, 0.92], [0.6, 0.43, 0.28], [0.12, 0.12, 0.13], [0.55, 0.56, 0.58]]
KINDS = {
    "photograph, even light": photo,
    "photograph, a shadow's edge": partial(photo, shadow=True),
    "photograph, a strip of table": partial(photo, table_sides=1),
    "photograph, table on two sides": partial(photo, table_sides=2),
    "photograph, a darker table": partial(photo, table_sides=4),
    "photograph, a lighter table": partial(photo, table_sides=4, papers=[[0.6]], tables=[[0.95]]),
    "photograph, a note on a desk": partial(photo, table_sides=4, papers=NOTES, tables=DESKS),
    "photograph, ruled or squared paper": lined,
    "cut out tightly": cut_out,
    "clean scan": scan,
    "photograph, pale or coloured ink": partial(photo, inks=PALE_INKS),
    "photograph, faint pencil": partial(photo, inks=[[0.08], [0.11], [0.15]]),
    "photograph, in a box or a ring": framed,
    "chalk, grainy": partial(scan, paper=0.2, ink=0.9, grain=0.05),
    "photograph, a row of two to six": row,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--count", type=int, default=200, help="pictures of each kind")
    add("--least", type=float, default=0, help="the per cent that must be read right of each kind")
    args = parser.parse_args()
    defaults = mnist_cnn.parse_args([])
    _, test_set = mnist_cnn.load_mnist(defaults.data_dir)
    model = mnist_cnn.load_model(defaults.output_dir / "mnist_cnn.pt")
    shares = []
    print("| kind | read right |\n| --- | --- |")
    for kind, make in KINDS.items():
        rng = random.Random(kind)
        torch.manual_seed(0)
        chosen = [[index] for index in rng.sample(range(len(test_set)), args.count)]
        if make is row:
            chosen = [rng.sample(range(len(test_set)), rng.randint(2, 6)) for _ in chosen]
        pictures = [make(test_set.data[indices] / 255, rng) for indices in chosen]
        shares.append(share_right(model, pictures, [test_set.targets[i] for i in chosen]))
        print(f"| {kind} | {shares[-1]:.1%} |", flush=True)
    if 100 * min(shares) < args.least:
        sys.exit(f"Of one kind, less than {args.least:g}% are read right.")


if __name__ == "__main__":
    main()
