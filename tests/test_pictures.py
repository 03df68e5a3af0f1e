"""Reading a digit of one's own: pictures of every kind, made from MNIST's test images and drawn by hand."""

import io
import math
import os
import random
import re
import struct

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur, perspective, pil_to_tensor, resize, to_pil_image

import mnist_cnn

from .conftest import flags, run_program

COUNT = 20  # test images for each kind of picture


@pytest.fixture(scope="module")
def model(trained):
    return mnist_cnn.load_model(trained[1] / "mnist_cnn.pt")


@pytest.fixture(scope="module")
def digits(mnist):
    test_set = mnist[1]
    return test_set.data[:COUNT].float() / 255, test_set.targets[:COUNT]


@torch.no_grad()
def share_right(model, images, labels):
    """Return the share of images, (N, 28, 28) as they are or a list of pictures to be prepared, that are read right."""
    if isinstance(images, list):
        images = torch.cat([mnist_cnn.prepare(picture)[0] for picture in images])
    return (model(images[:, None]).argmax(dim=1) == labels).float().mean().item()


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


@pytest.mark.parametrize("paper", PAPERS)
def test_digits_on_paper_are_read_as_well_as_untouched(paper, model, digits):
    rng = random.Random(1)
    torch.manual_seed(1)
    images, labels = digits
    pictures = [PAPERS[paper](image, rng) for image in images]
    assert share_right(model, pictures, labels) >= share_right(model, images, labels) - 0.1


SIDES_OF_TABLE = {"shadow": 0, "strip": 1, "two sides": 2, "dark table": 4, "light table": 4}


def photo(kind, digit, rng, height=480, width=640):
    """Photograph a digit on a sheet as a telephone does: shape (3, H, W), after JPEG.

    Where the table shows, the sheet lies askew; the digit has 20 to 45% of the picture's shorter side.
    """
    sides = rng.sample(range(4), SIDES_OF_TABLE[kind])
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
    paper, table = (rng.uniform(0.5, 0.7), 0.95) if kind == "light table" else (0.9, rng.uniform(0.1, 0.5))
    picture = sheet * paper * (1 - ink * rng.uniform(0.6, 0.9)) + (1 - sheet) * table
    across, down = torch.linspace(-1, 1, width), torch.linspace(-1, 1, height)[:, None]
    angle = rng.uniform(0, 2 * math.pi)
    position = across * math.cos(angle) + down * math.sin(angle)
    picture = picture * (1 + rng.uniform(-0.15, 0.15) * position)
    if kind == "shadow":
        picture = picture * (1 - rng.uniform(0.25, 0.5) * torch.sigmoid(60 * (position - rng.uniform(-0.4, 0.4))))
    picture = picture * torch.tensor([rng.uniform(0.85, 1.05) for _ in range(3)]).view(3, 1, 1)
    picture = gaussian_blur(picture, 7, rng.uniform(0.5, 2)) + rng.uniform(0, 0.03) * torch.randn(3, height, width)
    file = io.BytesIO()
    to_pil_image(picture.clamp(0, 1)).save(file, "JPEG", quality=rng.randint(50, 90))
    return pil_to_tensor(Image.open(file)).float() / 255


@pytest.mark.parametrize("kind", SIDES_OF_TABLE)
def test_photographs(kind, model, digits):
    rng = random.Random(1)
    torch.manual_seed(1)
    images, labels = digits
    pictures = [photo(kind, image, rng) for image in images]
    assert share_right(model, pictures, labels) >= share_right(model, images, labels) - 0.15


def test_cut_out_so_tightly_that_it_touches_the_edge(model, digits):
    images, labels = digits
    pictures = []
    for image in images:
        rows, columns = ((image > 0.3).any(dim=dim).nonzero() for dim in (1, 0))
        cut = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        cut = resize(cut[None], [8 * length for length in cut.shape])
        pictures.append(0.9 - 0.7 * cut + 0.02 * torch.randn(cut.shape))
    assert share_right(model, pictures, labels) >= share_right(model, images, labels) - 0.15


STROKES = {  # corners of a pen's way in a square of 100 x 100
    0: [[(50, 0), (25, 15), (18, 50), (28, 85), (52, 100), (76, 84), (84, 48), (74, 14), (50, 0)]],
    1: [[(35, 22), (56, 0), (54, 100)]],
    2: [[(20, 25), (32, 5), (58, 0), (78, 16), (74, 40), (20, 100)], [(20, 100), (82, 98)]],
    3: [[(22, 8), (52, 0), (74, 14), (70, 36), (42, 46), (72, 56), (80, 80), (56, 99), (20, 92)]],
    4: [[(52, 0), (14, 64), (88, 64)], [(66, 32), (64, 100)]],
    5: [[(80, 2), (30, 0), (24, 44), (56, 38), (80, 58), (74, 86), (46, 100), (20, 90)]],
    6: [[(66, 0), (34, 30), (22, 70), (38, 98), (66, 96), (78, 72), (60, 52), (26, 66)]],
    7: [[(16, 4), (84, 2), (44, 100)]],
    8: [[(50, 46), (26, 24), (50, 0), (74, 22), (50, 46), (22, 74), (50, 100), (80, 74), (50, 46)]],
    9: [[(76, 26), (54, 2), (26, 14), (28, 40), (56, 48), (76, 26), (72, 66), (60, 100)]],
}


@pytest.mark.parametrize("width", [2, 6, 20])
@pytest.mark.parametrize("ink, paper", [("#141414", "#fafafa"), ("#2040a0", "#f4e8b0"), ("#ffe000", "white")])
def test_drawn_digits(width, ink, paper, model):
    pictures = []
    for strokes in STROKES.values():
        picture = Image.new("RGB", (340, 260), paper)
        for stroke in strokes:
            way = [(80 + 1.6 * x, 40 + 1.6 * y) for x, y in stroke]
            ImageDraw.Draw(picture).line(way, ink, 2 * width, joint="curve")
        pictures.append(pil_to_tensor(picture.resize((170, 130))).float() / 255)
    assert share_right(model, pictures, torch.tensor(list(STROKES))) >= 0.7


def test_mnist_form(digits):
    for image in PAPERS["clean"](digits[0][0], random.Random(2)), 1 - digits[0][1][None]:
        prepared, several = mnist_cnn.prepare(image)
        assert prepared.shape == (1, 28, 28) and not several
        assert prepared.min() == 0 and prepared.max() == 1
        inked = prepared[0] > 0
        rows, columns = inked.any(dim=1).nonzero(), inked.any(dim=0).nonzero()
        assert max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1 == 20
        middle = torch.arange(28) + 0.5
        for axis in (1, 2):
            mass = prepared[0].sum(dim=2 - axis)
            assert abs((mass * middle).sum() / mass.sum() - 14) <= 0.51


def modes(picture):
    """Return the same brightness picture, black on white, as different kinds of files hold it."""
    ink = Image.eval(picture, lambda level: 255 - level)
    black, white = (Image.merge("LA", (Image.new("L", picture.size, level), ink)) for level in (0, 255))
    converted = {
        "rgb.bmp": "RGB",
        "photo.jpg": "L",
        "a.gif": "P",
        "palette.png": "P",
        "bits.png": "1",
        "cmyk.jpg": "CMYK",
    }
    return {name: picture.convert(mode) for name, mode in converted.items()} | {
        "black on transparent.png": black,
        "white on transparent.png": white.convert("RGBA"),
        "sixteen.png": Image.fromarray(pil_to_tensor(picture)[0].to(torch.uint16).numpy() * 257),
    }


def test_turned_camera(digits, tmp_path):
    upright = to_pil_image(digits[0][0])
    exif = Image.Exif()
    exif[0x0112] = 6  # show it a quarter turn clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    upright.save(tmp_path / "upright.png")
    assert torch.equal(*(mnist_cnn.read_picture(tmp_path / name) for name in ("turned.png", "upright.png")))


def test_damaged_exif(digits, tmp_path):
    """Where only the EXIF is damaged, the picture is read without it."""
    picture = to_pil_image(1 - digits[0][0]).resize((90, 90))
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 72.0
    whole = exif.tobytes()
    rng = random.Random(1)
    for index in range(30):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[rng.randrange(6, len(damaged))] = rng.randrange(256)
        picture.save(tmp_path / "damaged.jpg", exif=bytes(damaged))
        assert mnist_cnn.prepare(mnist_cnn.read_picture(tmp_path / "damaged.jpg"))[0].shape == (1, 28, 28)


@pytest.fixture
def odd_pictures(tmp_path, digits):
    """Files that cannot be read as a digit, and what the program says of each."""
    Image.new("RGB", (60, 60), "white").save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    for name in ("empty.png", "IMG_1.HEIC"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "text.png").write_text("not a picture")
    Image.new("RGB", (50, 50), "white").save(tmp_path / "blank.png")
    Image.new("RGB", (1, 1), "white").save(tmp_path / "dot.png")
    Image.new("RGBA", (50, 50)).save(tmp_path / "nothing.png")
    Image.effect_noise((90, 90), 40).save(tmp_path / "noise.png")
    header = struct.pack("<2sIHHI IiiHHIIiiII", b"BM", 54, 0, 0, 54, 40, 20_000, 20_000, 1, 24, 0, 0, 0, 0, 0, 0)
    (tmp_path / "huge.bmp").write_bytes(header)
    said = {name: "whole picture" for name in ("cut.jpg", "empty.png", "text.png", "missing.png", ".")}
    said |= {name: "is empty" for name in ("blank.png", "dot.png", "nothing.png", "noise.png")}
    said |= {"IMG_1.HEIC": "save it as JPEG", "huge.bmp": "too large"}
    return {str(tmp_path / name): words for name, words in said.items()}


def test_predict(trained, digits, tmp_path, odd_pictures):
    _, outputs = trained
    images, labels = digits
    names = []
    for name, picture in modes(to_pil_image(on_paper(images[0], random.Random(3), 0.95, 0.05))).items():
        picture.save(tmp_path / name)
        names.append(str(tmp_path / name))
    to_pil_image(on_paper(images[1], random.Random(3), 0.95, 0.05)).resize((4000, 3000)).save(tmp_path / "large.bmp")
    names.append(str(tmp_path / "large.bmp"))
    odd = list(odd_pictures)
    run = run_program("--output-dir", outputs, "--predict", *odd[:3], *names, *odd[3:])
    assert run.returncode == 1
    for line, name in zip(run.stdout.splitlines(), names, strict=True):
        assert re.match(re.escape(name) + r": \d \(\d+\.\d%\)", line)
    digits_read = [line.removeprefix(name)[2] for line, name in zip(run.stdout.splitlines(), names)]
    assert sum(digit == str(labels[0].item()) for digit in digits_read[:-1]) >= len(names) - 3
    for line, name in zip(run.stderr.splitlines(), odd, strict=True):
        assert line.startswith(f"{name} ") and odd_pictures[name] in line
    with Image.open(outputs / "predictions.png") as picture:
        assert picture.width > 800 and len(picture.convert("RGB").getcolors(2**24)) > 50


@pytest.mark.parametrize(
    "probabilities, said",
    [
        ([0, 0, 0.3, 0, 0, 0, 0.7, 0, 0, 0], "6 (70.0%), or 2 (30.0%)"),
        ([0, 0, 0.009, 0, 0, 0, 0.991, 0, 0, 0], "6 (99.1%)"),
        ([0.3, 0, 0.2, 0, 0, 0, 0.4, 0.1, 0, 0], "6 (40.0%), or 0 (30.0%) - unsure: see predictions.png"),
    ],
)
def test_printed_line(probabilities, said, monkeypatch, tmp_path, capsys):
    logits = torch.tensor(probabilities).log()
    picture = Image.new("L", (60, 60), 255)
    ImageDraw.Draw(picture).line((20, 10, 40, 50), fill=0, width=6)
    picture.save(tmp_path / "a.png")
    monkeypatch.setattr(mnist_cnn, "load_model", lambda path: lambda images: logits.expand(len(images), 10))
    assert mnist_cnn.predict([str(tmp_path / "a.png")], tmp_path) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'a.png'}: {said}\n"


def test_drawn_reading():
    """The picture, the image that the network saw, its probabilities and the file's name, side by side."""
    figure = Figure()
    for digit in range(4):
        picture, image = torch.rand(3, 400, 500), torch.rand(1, 28, 28)
        mnist_cnn.draw_reading(figure, 2, f"{digit}.png", picture, image, torch.eye(10)[digit])
    left, middle, right = figure.axes[9:12]
    assert middle.get_title() == "3.png"
    assert left.images and torch.equal(torch.tensor(middle.images[0].get_array()), image[0])
    assert [bar.get_height() for bar in right.patches] == torch.eye(10)[3].tolist()


def test_two_digits_are_pointed_out(digits):
    images, _ = digits
    row = torch.cat([images[0], torch.zeros(28, 14), images[2]], dim=1)
    picture = 1 - resize(F.pad(row, (30, 30, 40, 40))[None], [216, 260])
    assert mnist_cnn.prepare(picture)[1]
    assert not any(mnist_cnn.prepare(1 - image[None])[1] for image in images)


def test_weights_that_cannot_be_used(tmp_path, capsys):
    picture = tmp_path / "picture.png"
    Image.new("L", (30, 30)).save(picture)
    weights = tmp_path / "mnist_cnn.pt"

    def said():
        assert mnist_cnn.main(flags("--output-dir", tmp_path, "--predict", picture)) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and str(weights) in err
        return err

    assert "train first" in said()
    good = mnist_cnn.CNN().state_dict()
    torch.save(good, weights)
    whole = weights.read_bytes()
    for damaged in (b"", b"something else", whole[: len(whole) // 2], bytes(len(whole))):
        weights.write_bytes(damaged)
        assert "damaged" in said()
    for other in (torch.nn.Linear(3, 2).state_dict(), [1, 2], 7, dict.fromkeys(good, "text"), mnist_cnn.CNN()):
        torch.save(other, weights)
        assert "damaged" in said()
    torch.save({name: values * math.nan for name, values in good.items()}, weights)
    assert "not finite" in said()
    if os.name != "nt" and os.geteuid() != 0:
        weights.chmod(0)
        assert "Permission denied" in said()
    weights.unlink()
    weights.mkdir()
    assert "Is a directory" in said()


def test_weights_run_no_code(tmp_path, capsys):
    class Trap:
        def __reduce__(self):
            return (print, ("the weights ran code",))

    torch.save({"weight": Trap()}, tmp_path / "mnist_cnn.pt")
    assert mnist_cnn.main(flags("--output-dir", tmp_path, "--predict", "any.png")) == 1
    assert "ran code" not in capsys.readouterr().out
