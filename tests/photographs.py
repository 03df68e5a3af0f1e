"""Pictures of digits as people take them, made from MNIST's test images; and how many of them are read right.

The tests read a few of each kind. By hand, after a training:

.venv/bin/python -m tests.photographs --count 200
"""

import argparse
import io
import math
import random
from pathlib import Path

import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur, perspective, pil_to_tensor, resize, to_pil_image

import mnist_cnn


@torch.no_grad()
def share_right(model, images, labels):
    """Return the share of images, (N, 28, 28) as they are or a list of pictures to be prepared, that are read right."""
    found = torch.ones(len(images), dtype=torch.bool)
    if isinstance(images, list):
        prepared = torch.zeros(len(images), 28, 28)
        for index, picture in enumerate(images):
            try:
                prepared[index] = mnist_cnn.prepare(picture)[0]
            except mnist_cnn.UserError:
                found[index] = False
        images = prepared
    return ((model(images[:, None]).argmax(dim=1) == labels) & found).float().mean().item()


def on_paper(digit, rng, paper, ink, grain=0.0, light=0.0, ruled=0.0, dust=0, share=(0.3, 0.9), height=(60, 250)):
    """Draw a digit of shape (28, 28) with ink on paper, somewhere in a picture of any size: shape (1, H, W)."""
    height, width = rng.randint(*height), rng.randint(*height)
    size = max(8, int(min(height, width) * rng.uniform(*share)))
    drawn = F.interpolate(digit[None, None], (size, size), mode="bicubic", antialias=size < 28)[0, 0].clamp(0, 1)
    top, left = rng.randint(0, height - size), rng.randint(0, width - size)
    shape = F.pad(drawn, (left, width - size - left, top, height - size - top))
    across, down = torch.linspace(-1, 1, width), torch.linspace(-1, 1, height)[:, None]
    sheet = paper + light * (rng.uniform(-1, 1) * across + rng.uniform(-1, 1) * down - 0.3 * across**2)
    for line in range(0, height - 3, max(6, height // 8)):
        sheet[line : line + 3] += ruled * (ink - paper)
    for _ in range(dust):
        top, left = rng.randrange(height), rng.randrange(width)
        sheet[top : top + 3, left : left + 3] = ink
    uneven_grain = torch.randn(height, width) * grain * (1 + across / 2)
    return (sheet * (1 - shape) + ink * shape + uneven_grain).clamp(0, 1)[None]


PAPERS = {
    "as it is": lambda digit, rng: digit[None],
    "black on white": lambda digit, rng: 1 - digit[None],
    "enlarged": lambda digit, rng: F.interpolate(digit[None, None], (280, 280), mode="bicubic")[0].clamp(0, 1),
    "clean": lambda digit, rng: on_paper(digit, rng, 0.95, 0.1),
    "small": lambda digit, rng: on_paper(digit, rng, 0.9, 0.1, 0.03, 0.1, share=(0.06, 0.15), height=(300, 600)),
    "grainy": lambda digit, rng: on_paper(digit, rng, 0.8, 0.2, grain=0.08),
    "uneven light": lambda digit, rng: on_paper(digit, rng, 0.7, 0.1, grain=0.03, light=0.2),
    "chalk": lambda digit, rng: on_paper(digit, rng, 0.2, 0.9, grain=0.03, light=0.1),
    "pencil": lambda digit, rng: on_paper(digit, rng, 0.8, 0.55, grain=0.02),
    "ruled": lambda digit, rng: on_paper(digit, rng, 0.9, 0.1, grain=0.02, ruled=0.3, height=(150, 250)),
    "dusty": lambda digit, rng: on_paper(digit, rng, 0.9, 0.1, dust=6, height=(150, 250)),
    "coloured": lambda digit, rng: torch.cat(
        [on_paper(digit, random.Random(7), *ends) for ends in ((1, 0.98), (1, 0.9), (0.7, 0.1))]
    ),
}


def photo(digit, rng, table_sides, light_table=False, shadow=False, height=480):
    """Photograph a digit on a sheet as a telephone does: shape (3, height, 4 / 3 height), after JPEG.

    The digit has 20 to 45% of the picture's shorter side. Where table shows on all sides, the sheet lies askew.
    """
    width = height * 4 // 3
    sides = rng.sample(range(4), table_sides)
    left, top, right, bottom = (rng.uniform(0.05, 0.17) if side in sides else 0 for side in range(4))
    corners = [(left, top), (1 - right, top), (1 - right, 1 - bottom), (left, 1 - bottom)]
    askew = 0.04 if len(sides) == 4 else 0
    corners = [[(x + rng.uniform(0, askew)) * width, (y + rng.uniform(0, askew)) * height] for x, y in corners]
    size = int(min(height, width) * rng.uniform(0.2, 0.45) * 28 / 20 / (1 - left - right))
    drawn = resize(digit[None], [size, size])
    y, x = rng.randint(0, height - size), rng.randint(0, width - size)
    ink = F.pad(drawn, (x, width - size - x, y, height - size - y))
    edges = [[0, 0], [width, 0], [width, height], [0, height]]
    ink, sheet = perspective(torch.cat([ink, torch.ones_like(ink)]), edges, corners)
    paper, table = (rng.uniform(0.5, 0.7), 0.95) if light_table else (0.9, rng.uniform(0.1, 0.5))
    picture = sheet * paper * (1 - ink * rng.uniform(0.6, 0.9)) + (1 - sheet) * table
    across, down = torch.linspace(-1, 1, width), torch.linspace(-1, 1, height)[:, None]
    angle = rng.uniform(0, 2 * math.pi)
    position = across * math.cos(angle) + down * math.sin(angle)
    picture = picture * (1 + rng.uniform(-0.15, 0.15) * position)
    if shadow:
        picture = picture * (1 - rng.uniform(0.25, 0.5) * torch.sigmoid(60 * (position - rng.uniform(-0.4, 0.4))))
    picture = picture * torch.tensor([rng.uniform(0.85, 1.05) for _ in range(3)]).view(3, 1, 1)
    picture = gaussian_blur(picture, 7, rng.uniform(0.5, 2)) + rng.uniform(0, 0.03) * torch.randn(3, height, width)
    file = io.BytesIO()
    to_pil_image(picture.clamp(0, 1)).save(file, "JPEG", quality=rng.randint(50, 90))
    return pil_to_tensor(Image.open(file)).float() / 255


def cut_out(digit, rng):
    """Cut a digit out of its paper so tightly that it touches the edges: shape (1, H, W)."""
    rows, columns = ((digit > 0.3).any(dim=dim).nonzero() for dim in (1, 0))
    ink = digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1][None]
    ink = resize(ink, [8 * length for length in ink.shape[1:]])
    return (rng.uniform(0.7, 1) - 0.6 * ink + 0.02 * torch.randn(ink.shape)).clamp(0, 1)


PHOTOGRAPHS = {
    "even light": lambda digit, rng, **size: photo(digit, rng, table_sides=0, **size),
    "a shadow's edge": lambda digit, rng, **size: photo(digit, rng, table_sides=0, shadow=True, **size),
    "a strip of table": lambda digit, rng, **size: photo(digit, rng, table_sides=1, **size),
    "table on two sides": lambda digit, rng, **size: photo(digit, rng, table_sides=2, **size),
    "a darker table": lambda digit, rng, **size: photo(digit, rng, table_sides=4, **size),
    "a lighter table": lambda digit, rng, **size: photo(digit, rng, table_sides=4, light_table=True, **size),
    "cut out tightly": lambda digit, rng, **size: cut_out(digit, rng),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="pictures of each kind")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    defaults = mnist_cnn.parse_args([])
    test_set = mnist_cnn.load_mnist(defaults.data_dir)[1]
    model = mnist_cnn.load_model(Path(defaults.output_dir, "mnist_cnn.pt"))
    print("| kind | read right | the same digits untouched |\n| --- | --- | --- |")
    for kind, make in (PHOTOGRAPHS | PAPERS).items():
        rng = random.Random(f"{kind} {args.seed}")
        torch.manual_seed(args.seed)
        chosen = torch.tensor(rng.sample(range(len(test_set)), args.count))
        images, labels = test_set.data[chosen].float() / 255, test_set.targets[chosen]
        right = share_right(model, [make(image, rng) for image in images], labels)
        print(f"| {kind} | {right:.1%} | {share_right(model, images, labels):.1%} |", flush=True)


if __name__ == "__main__":
    main()
