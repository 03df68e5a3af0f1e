"""Digits as people hand them in, made from MNIST's test images or drawn; how many are read right.

The tests read a few of some kinds. By hand, after a training:

.venv/bin/python -m tests.photographs --count 100
"""

import argparse
import io
import math
import random
import sys
from functools import partial

import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F
from torchvision.ops import masks_to_boxes
from torchvision.transforms.functional import (
    gaussian_blur,
    perspective,
    pil_to_tensor,
    resize,
    to_pil_image,
)

import mnist_cnn


def share_right(model, pictures, labels):
    """Return the share of a list of pictures whose digit is found and read right."""
    right = 0
    for picture, label in zip(pictures, labels):
        try:
            _, probabilities = mnist_cnn.read_digit(model, mnist_cnn.prepare(picture))
        except ValueError:  # found empty
            continue
        right += probabilities.argmax().item() == label
    return right / len(labels)


def place(image, rng, height, width):
    """Put an image (channels, size, size) anywhere into an empty one, (channels, height, width)."""
    size = image.shape[-1]
    bottom, right = height - size, width - size
    top = rng.randint(0, bottom)
    left = rng.randint(0, right)
    return F.pad(image, (left, right - left, top, bottom - top))


def tint(values):
    """Return levels of red, green and blue, or one for all, to be mixed with a (3, H, W)."""
    return torch.tensor(values).view(-1, 1, 1)


def add_grain(picture, depth):
    return picture + depth * torch.randn(picture.shape)


def save_as_jpeg(picture, rng):
    """Return a picture (3, H, W) as a telephone saves it."""
    file = io.BytesIO()
    quality = rng.randint(50, 90)
    to_pil_image(picture.clamp(0, 1)).save(file, "JPEG", quality=quality)
    return pil_to_tensor(Image.open(file)).float() / 255


def expose(picture, rng, shadow):
    """Photograph what is white or grey in uneven, tinted light: (3, H, W), after JPEG."""
    _, height, width = picture.shape
    angle = rng.uniform(0, 2 * math.pi)
    across = torch.linspace(-1, 1, width) * math.cos(angle)
    down = torch.linspace(-1, 1, height)[:, None] * math.sin(angle)
    position = across + down  # along the light
    slope = rng.uniform(-0.15, 0.15)
    picture = picture * (1 + slope * position)
    if shadow:
        depth = rng.uniform(0.25, 0.5)
        edge = rng.uniform(-0.4, 0.4)
        picture = picture * (1 - depth * torch.sigmoid(60 * (position - edge)))
    picture = picture * tint([rng.uniform(0.85, 1.05) for _ in range(3)])
    picture = gaussian_blur(picture, 7, rng.uniform(0.5, 2))
    picture = add_grain(picture, rng.uniform(0, 0.03))
    return save_as_jpeg(picture, rng)


def photo(digit, rng, table_sides=0, light_table=False, shadow=False, ink=None):
    """Photograph a digit on a sheet as a telephone does: (3, 480, 640), after JPEG.

    The digit has 20 to 45% of the picture's shorter side. Where table shows on all sides, the sheet
    lies askew. The ink takes 60 to 90% of the light, or the shares of its red, green and blue that
    are given.
    """
    height, width = 480, 640
    sides = rng.sample(range(4), table_sides)
    margins = [rng.uniform(0.05, 0.17) if side in sides else 0 for side in range(4)]
    left, top = margins[:2]
    right, bottom = 1 - margins[2], 1 - margins[3]
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    askew = 0.04 if table_sides == 4 else 0
    corners = [
        [(x + rng.uniform(0, askew)) * width, (y + rng.uniform(0, askew)) * height]
        for x, y in corners
    ]
    share = rng.uniform(0.2, 0.45)
    size = int(height * share * 28 / 20 / (right - left))
    shape = place(resize(digit[None], [size, size]), rng, height, width)
    edges = [[0, 0], [width, 0], [width, height], [0, height]]
    shape, sheet = perspective(torch.cat([shape, torch.ones_like(shape)]), edges, corners)
    if light_table:
        paper, table = rng.uniform(0.5, 0.7), 0.95
    else:
        paper, table = 0.9, rng.uniform(0.1, 0.5)
    taken = tint(ink or rng.uniform(0.6, 0.9))
    written = paper * (1 - shape * taken)
    return expose(sheet * written + (1 - sheet) * table, rng, shadow)


def cut_out(digit, rng):
    """Cut a digit out of its paper so tightly that it touches the edges: shape (1, H, W)."""
    left, top, right, bottom = masks_to_boxes(digit[None] > 0.3)[0].int().tolist()
    ink = digit[None, top : bottom + 1, left : right + 1]
    ink = resize(ink, [8 * length for length in ink.shape[1:]])
    paper = rng.uniform(0.7, 1)
    return add_grain(paper - 0.6 * ink, 0.02).clamp(0, 1)


def scan(digit, rng, paper=0.95, ink=0.1, grain=0.0):
    """Scan a digit, 30 to 90% of a sheet with MNIST's margin, anywhere on it: (1, H, W)."""
    height = rng.randint(80, 250)
    width = rng.randint(80, 250)
    size = int(min(height, width) * rng.uniform(0.3, 0.9))
    smaller = size < 28
    written = F.interpolate(digit[None, None], (size, size), mode="bicubic", antialias=smaller)
    shape = place(written[0].clamp(0, 1), rng, height, width)
    picture = paper + (ink - paper) * shape
    return add_grain(picture, grain).clamp(0, 1)


def enlarge(digit):
    """Return a digit of ones and zeros, ten times as large, with room for a broader pen."""
    large = resize(digit[None], [280, 280])[0]
    return F.pad(large > 0.5, [20] * 4).float()


def bold(digit, rng):
    """Scan a digit written with a broad pen, up to twice as broad as MNIST's: (1, H, W)."""
    broad = mnist_cnn.dilate(enlarge(digit), rng.randint(4, 12))  # MNIST's has a radius of 13
    small = F.interpolate(broad[None, None], (56, 56), mode="area")
    return scan(small[0, 0], rng)


PALE_INKS = [  # the shares of red, green and blue light that they take
    (0.02, 0.3, 0.6),  # orange
    (0.3, 0.3, 0.3),  # pencil
    (0.25, 0.4, 0.1),  # violet
    (0.02, 0.08, 0.6),  # yellow
]


def pale(digit, rng):
    """Photograph a digit in yellow, orange, violet or pencil, with a thin or a broad pen."""
    large = enlarge(digit)
    if rng.random() < 0.5:
        large = -mnist_cnn.dilate(-large, rng.randint(2, 4))  # thinner would break strokes
    else:
        large = mnist_cnn.dilate(large, rng.randint(3, 7))
    return photo(large, rng, ink=rng.choice(PALE_INKS))


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


NOTES = [(0.98, 0.93, 0.45), (0.98, 0.6, 0.72), (0.55, 0.8, 0.95), (0.65, 0.92, 0.55)]
DESKS = [(0.93, 0.93, 0.92), (0.6, 0.43, 0.28), (0.12, 0.12, 0.13), (0.55, 0.56, 0.58)]


def note(digit, rng):
    """Photograph a digit on a coloured note that lies wholly in the picture: (3, 480, 640)."""
    height, width = 480, 640
    side = int(height * rng.uniform(0.5, 0.8))
    size = int(side * rng.uniform(0.45, 0.7))
    shape = place(resize(digit[None], [size, size]), rng, side, side)
    page = torch.cat([torch.ones_like(shape), shape])
    sheet, shape = place(page, rng, height, width)
    paper = tint(rng.choice(NOTES))
    desk = tint(rng.choice(DESKS))
    ink = tint([0.1, 0.12, 0.3])
    picture = desk + (paper - desk) * sheet
    picture = picture + (ink - paper) * shape
    return expose(picture, rng, shadow=False)


def lined(digit, rng):
    """Photograph a digit on ruled or squared paper, lines up to as dark as its ink: (3, H, W)."""
    picture = photo(digit, rng)
    gap = rng.randint(15, 45)
    light = rng.uniform(0.3, 0.8)
    picture[:, ::gap] *= light
    if rng.random() < 0.5:
        picture[:, :, ::gap] *= light
    return picture


def faint(digit, rng):
    """Photograph a digit in a hard pencil, which takes 8 to 15% of the light: (3, 480, 640)."""
    share = rng.uniform(0.08, 0.15)
    return photo(digit, rng, ink=(share, share, share))


def framed(digit, rng):
    """Photograph a digit in a box or a ring of its ink: (3, 480, 640)."""
    large = F.pad(resize(digit[None], [224, 224]), [40] * 4)
    image = to_pil_image(large)
    draw = ImageDraw.Draw(image)
    draw_frame = rng.choice([draw.rectangle, draw.ellipse])
    corner = rng.uniform(4, 32)
    corners = (corner, corner, 304 - corner, 304 - corner)
    draw_frame(corners, outline=255, width=rng.randint(3, 8))
    return photo(pil_to_tensor(image)[0] / 255, rng)


KINDS = {
    "photograph, even light": photo,
    "photograph, a shadow's edge": partial(photo, shadow=True),
    "photograph, a strip of table": partial(photo, table_sides=1),
    "photograph, table on two sides": partial(photo, table_sides=2),
    "photograph, a darker table": partial(photo, table_sides=4),
    "photograph, a lighter table": partial(photo, table_sides=4, light_table=True),
    "photograph, a note on a desk": note,
    "photograph, ruled or squared paper": lined,
    "cut out tightly": cut_out,
    "clean scan": scan,
    "clean scan, bold": bold,
    "photograph, pale or coloured ink": pale,
    "photograph, faint pencil": faint,
    "photograph, in a box or a ring": framed,
    "chalk, grainy": partial(scan, paper=0.2, ink=0.9, grain=0.05),
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
    worst = 1
    print("| kind | read right |\n| --- | --- |")
    for kind, make in KINDS.items():
        rng = random.Random(f"{kind} 0")
        torch.manual_seed(0)
        chosen = rng.sample(range(len(test_set)), args.count)
        pictures = [make(image, rng) for image in test_set.data[chosen] / 255]
        right = share_right(model, pictures, test_set.targets[chosen])
        worst = min(worst, right)
        print(f"| {kind} | {right:.1%} |", flush=True)
    if 100 * worst < args.least:
        sys.exit(f"Of one kind, less than {args.least:g}% are read right.")


if __name__ == "__main__":
    main()
