"""Digits as people hand them in, made from MNIST's test images or drawn; how many are read right.

The tests read a few of some kinds. By hand, after a training:

.venv/bin/python -m tests.photographs --count 100
"""

import argparse
import io
import math
import random
import sys
from pathlib import Path

import torch
from matplotlib.backend_bases import MouseEvent
from PIL import Image, ImageDraw
from torch.nn import functional as F
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


@torch.inference_mode()
def share_right_untouched(model, images, labels):
    """Return the share of MNIST's own images, shape (N, 28, 28), that are read right."""
    return (model(images[:, None]).argmax(dim=1) == labels).float().mean().item()


def place(digit, rng, height, width):
    """Put a digit (size, size) anywhere into an empty picture, (1, height, width)."""
    size = len(digit)
    top = rng.randint(0, height - size)
    left = rng.randint(0, width - size)
    margins = (left, width - size - left, top, height - size - top)
    return F.pad(digit[None], margins)


def save_as_jpeg(picture, rng):
    """Return a picture (3, H, W) as a telephone saves it."""
    file = io.BytesIO()
    to_pil_image(picture.clamp(0, 1)).save(file, "JPEG", quality=rng.randint(50, 90))
    return pil_to_tensor(Image.open(file)).float() / 255


def photo(digit, rng, table_sides=0, light_table=False, shadow=False, ink=None, height=480):
    """Photograph a digit on a sheet as a telephone does: (3, height, 4 / 3 height), after JPEG.

    The digit has 20 to 45% of the picture's shorter side. Where table shows on all sides, the sheet
    lies askew. The ink takes 60 to 90% of the light, or the shares of its red, green and blue that
    are given.
    """
    width = height * 4 // 3
    sides = rng.sample(range(4), table_sides)
    margins = [rng.uniform(0.05, 0.17) if side in sides else 0 for side in range(4)]
    left, top, right, bottom = margins
    corners = [(left, top), (1 - right, top), (1 - right, 1 - bottom), (left, 1 - bottom)]
    askew = 0.04 if len(sides) == 4 else 0
    corners = [
        [(x + rng.uniform(0, askew)) * width, (y + rng.uniform(0, askew)) * height]
        for x, y in corners
    ]
    size = int(min(height, width) * rng.uniform(0.2, 0.45) * 28 / 20 / (1 - left - right))
    shape = place(resize(digit[None], [size, size])[0], rng, height, width)
    edges = [[0, 0], [width, 0], [width, height], [0, height]]
    shape, sheet = perspective(torch.cat([shape, torch.ones_like(shape)]), edges, corners)
    if light_table:
        paper, table = rng.uniform(0.5, 0.7), 0.95
    else:
        paper, table = 0.9, rng.uniform(0.1, 0.5)
    taken = torch.tensor(ink or [rng.uniform(0.6, 0.9)]).view(-1, 1, 1)
    picture = sheet * paper * (1 - shape * taken) + (1 - sheet) * table
    across = torch.linspace(-1, 1, width)
    down = torch.linspace(-1, 1, height)[:, None]
    angle = rng.uniform(0, 2 * math.pi)
    position = across * math.cos(angle) + down * math.sin(angle)
    picture = picture * (1 + rng.uniform(-0.15, 0.15) * position)
    if shadow:
        depth = rng.uniform(0.25, 0.5)
        edge = position - rng.uniform(-0.4, 0.4)
        picture = picture * (1 - depth * torch.sigmoid(60 * edge))
    tint = [rng.uniform(0.85, 1.05) for _ in range(3)]
    picture = picture * torch.tensor(tint).view(3, 1, 1)
    picture = gaussian_blur(picture, 7, rng.uniform(0.5, 2))
    grain = rng.uniform(0, 0.03)
    picture = picture + grain * torch.randn(3, height, width)
    return save_as_jpeg(picture, rng)


def cut_out(digit, rng):
    """Cut a digit out of its paper so tightly that it touches the edges: shape (1, H, W)."""
    rows, columns = ((digit > 0.3).any(dim=dim).nonzero() for dim in (1, 0))
    ink = digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1][None]
    ink = resize(ink, [8 * length for length in ink.shape[1:]])
    return (rng.uniform(0.7, 1) - 0.6 * ink + 0.02 * torch.randn(ink.shape)).clamp(0, 1)


def scan(digit, rng, paper=0.95, ink=0.1, grain=0.0):
    """Scan a digit, 30 to 90% of a sheet with MNIST's margin, anywhere on it: (1, H, W)."""
    height, width = rng.randint(80, 250), rng.randint(80, 250)
    size = int(min(height, width) * rng.uniform(0.3, 0.9))
    smaller = size < 28
    drawn = F.interpolate(digit[None, None], (size, size), mode="bicubic", antialias=smaller)
    shape = place(drawn[0, 0].clamp(0, 1), rng, height, width)
    picture = paper + (ink - paper) * shape
    return (picture + grain * torch.randn(1, height, width)).clamp(0, 1)


def bold(digit, rng):
    """Scan a digit written with a broad pen, of up to a third of the digit's size: (1, H, W)."""
    large = F.pad(resize(digit[None], [280, 280])[0] > 0.5, [20] * 4).float()
    # The mean half width of MNIST's strokes, 13 of these pixels: their area, by what a dilation by
    # one adds.
    thin = large.sum() / (mnist_cnn.dilate(large, 1) - large).sum()
    most = (280 * 20 / 28 / 3 - 2 * thin.item()) / 2 * 0.6
    broad = mnist_cnn.dilate(large, max(1, int(rng.uniform(0.3, 1) * most)))
    return scan(F.interpolate(broad[None, None], (56, 56), mode="area")[0, 0], rng)


PALE_INKS = {  # the shares of red, green and blue light that they take
    "yellow": (0.02, 0.08, 0.6),
    "orange": (0.02, 0.3, 0.6),
    "violet": (0.25, 0.4, 0.1),
    "pencil": (0.3, 0.3, 0.3),
}


def pale(digit, rng):
    """Photograph a digit in yellow, orange, violet or pencil, with a thin or a broad pen."""
    large = F.pad(resize(digit[None], [280, 280])[0] > 0.5, [20] * 4).float()
    if rng.random() < 0.5:
        large = -mnist_cnn.dilate(-large, rng.randint(2, 4))  # thinner would break strokes
    else:
        large = mnist_cnn.dilate(large, rng.randint(3, 7))
    return photo(large, rng, ink=PALE_INKS[rng.choice(sorted(PALE_INKS))])


STROKES = {  # corners of a pen's way in a square of 100 x 100
    1: [[(35, 22), (56, 0), (54, 100)]],
    2: [[(20, 25), (32, 5), (58, 0), (78, 16), (74, 40), (20, 100)], [(20, 100), (82, 98)]],
    3: [[(22, 8), (52, 0), (74, 14), (70, 36), (42, 46), (72, 56), (80, 80), (56, 99), (20, 92)]],
    4: [[(52, 0), (14, 64), (88, 64)], [(66, 32), (64, 100)]],
    7: [[(16, 4), (84, 2), (44, 100)]],
}


def drawn(digit, ink="#2040a0", paper="#f4e8b0", width=20):
    """Draw a digit with ink on paper, off the middle: (3, 130, 170)."""
    picture = Image.new("RGB", (340, 260), paper)
    for stroke in STROKES[digit]:
        ImageDraw.Draw(picture).line(
            [(80 + 1.6 * x, 40 + 1.6 * y) for x, y in stroke], ink, width, joint="curve"
        )
    return pil_to_tensor(picture.resize((170, 130))).float() / 255


# One with a head that is none, and one that ends in its first entry.
DAMAGED_EXIF = [b"Exif\0\0XX\0*\0\0\0\x08", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12"]


def save_in_many_formats(digit, folder):
    """Save a drawn digit as files of many kinds; return its levels, uint8 (H, W), and paths."""
    grey, exif = to_pil_image(drawn(digit, "black", "white")).convert("L"), Image.Exif()
    levels = pil_to_tensor(grey)[0]
    ink = Image.new("RGB", grey.size, "white")  # ink of any colour on transparent paper
    ink.putalpha(Image.eval(grey, lambda level: 255 - level))
    files = {
        "grey.jpg": grey,
        "opaque.png": grey.convert("LA"),
        "a.gif": grey.convert("P"),
        "ink.png": ink,
    }
    files |= {
        "bits.png": grey.convert("1"),
        "cmyk.jpg": grey.convert("CMYK"),
        "large.bmp": grey.resize((2400, 1800)),
    }
    files["16.png"] = Image.fromarray(levels.numpy().astype("uint16") * 257)
    files["float.tiff"] = Image.fromarray(levels.numpy().astype("float32") / 255)
    files["turned.jpg"] = grey.transpose(Image.Transpose.ROTATE_90)
    exif[0x0112] = 6  # what a turned camera writes: show it a quarter turn clockwise
    for name, file in files.items():
        file.save(folder / name, **({"exif": exif} if name == "turned.jpg" else {}))
    for number, damaged in enumerate(DAMAGED_EXIF):
        files[f"damaged{number}.jpg"] = grey
        grey.save(folder / f"damaged{number}.jpg", exif=damaged)
    return levels, [folder / name for name in files]


def write(pad, stroke, size=0.6, corner=(0.2, 0.2), button=1, lift=True):
    """Write on the pad as a mouse does; return what the network then sees, and is said of it."""
    points = [(corner[0] + size * x / 100, corner[1] + size * y / 100) for x, y in stroke]
    points = pad.axes[0].transData.transform(points).tolist()

    def send(name, point):
        pad.canvas.callbacks.process(name, MouseEvent(name, pad.canvas, *point, button))

    send("button_press_event", points[0])
    for point in points[1:]:
        send("motion_notify_event", point)
    if lift:
        send("button_release_event", points[-1])
    image = torch.tensor(pad.axes[1].images[0].get_array())
    return image, pad.axes[2].get_title()


NOTES = [(0.98, 0.93, 0.45), (0.98, 0.6, 0.72), (0.55, 0.8, 0.95), (0.65, 0.92, 0.55)]
DESKS = [(0.93, 0.93, 0.92), (0.6, 0.43, 0.28), (0.12, 0.12, 0.13), (0.55, 0.56, 0.58)]


def note(digit, rng, height=480, width=640):
    """Photograph a digit on a coloured note that lies wholly in the picture: (3, height, width)."""
    side = int(height * rng.uniform(0.5, 0.8))
    size = int(side * rng.uniform(0.45, 0.7))
    page = place(resize(digit[None], [size, size])[0], rng, side, side)[0]
    sheet = torch.stack([torch.ones_like(page), page])
    top, left = rng.randint(0, height - side), rng.randint(0, width - side)
    right, bottom = width - side - left, height - side - top
    sheet, shape = F.pad(sheet, (left, right, top, bottom))
    paper, desk, ink = (
        torch.tensor(colour).view(3, 1, 1)
        for colour in (rng.choice(NOTES), rng.choice(DESKS), (0.1, 0.12, 0.3))
    )
    picture = desk + (paper - desk) * sheet
    picture = picture + (ink - paper) * shape
    picture = gaussian_blur(picture, 7, rng.uniform(0.5, 1.5))
    picture = picture * rng.uniform(0.75, 1) + 0.015 * torch.randn(3, height, width)
    return save_as_jpeg(picture, rng)


KINDS = {
    "photograph, even light": photo,
    "photograph, a shadow's edge": lambda digit, rng: photo(digit, rng, shadow=True),
    "photograph, a strip of table": lambda digit, rng: photo(digit, rng, table_sides=1),
    "photograph, table on two sides": lambda digit, rng: photo(digit, rng, table_sides=2),
    "photograph, a darker table": lambda digit, rng: photo(digit, rng, table_sides=4),
    "photograph, a lighter table": lambda digit, rng: photo(
        digit, rng, table_sides=4, light_table=True
    ),
    "photograph, a note on a desk": note,
    "cut out tightly": cut_out,
    "clean scan": scan,
    "clean scan, bold": bold,
    "photograph, pale or coloured ink": pale,
    "chalk, grainy": lambda digit, rng: scan(digit, rng, paper=0.2, ink=0.9, grain=0.05),
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=200, help="pictures of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--least", type=float, default=0, help="the per cent that must be read right of each kind"
    )
    args = parser.parse_args()
    defaults = mnist_cnn.parse_args([])
    test_set = mnist_cnn.load_mnist(defaults.data_dir)[1]
    model = mnist_cnn.load_model(Path(defaults.output_dir, "mnist_cnn.pt"))
    worst = 1
    print("| kind | read right | the same digits untouched |\n| --- | --- | --- |")
    for kind, make in KINDS.items():
        rng = random.Random(f"{kind} {args.seed}")
        torch.manual_seed(args.seed)
        chosen = torch.tensor(rng.sample(range(len(test_set)), args.count))
        images, labels = test_set.data[chosen].float() / 255, test_set.targets[chosen]
        right = share_right(model, [make(image, rng) for image in images], labels)
        worst = min(worst, right)
        print(
            f"| {kind} | {right:.1%} | {share_right_untouched(model, images, labels):.1%} |",
            flush=True,
        )
    if 100 * worst < args.least:
        sys.exit(f"Of one kind, less than {args.least:g}% are read right.")


if __name__ == "__main__":
    main()
