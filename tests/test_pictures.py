"""Reading a digit of one's own: pictures of every kind, made from MNIST's test images and drawn by hand."""

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
from torchvision.transforms.functional import pil_to_tensor, resize, to_pil_image

import mnist_cnn

from .conftest import flags, run_program
from .photographs import PAPERS, PHOTOGRAPHS, on_paper, share_right

COUNT = 20  # test images for each kind of photograph; a quarter as many for each kind of paper


@pytest.fixture(scope="module")
def model(trained):
    return mnist_cnn.load_model(trained[1] / "mnist_cnn.pt")


@pytest.fixture(scope="module")
def digits(mnist):
    test_set = mnist[1]
    return test_set.data[:COUNT].float() / 255, test_set.targets[:COUNT]


@pytest.mark.parametrize("kind", PHOTOGRAPHS | PAPERS)
def test_pictures_are_read_as_well_as_untouched(kind, model, digits):
    rng = random.Random(1)
    torch.manual_seed(1)
    count, size = (COUNT, {"height": 240}) if kind in PHOTOGRAPHS else (COUNT // 4, {})
    images, labels = (part[:count] for part in digits)
    pictures = [(PHOTOGRAPHS | PAPERS)[kind](image, rng, **size) for image in images]
    assert share_right(model, pictures, labels) >= share_right(model, images, labels) - 0.25


def test_the_whole_digit_is_found(mnist):
    """One so thick that no paper is in reach of the middle of its strokes, a small one, one with a gap."""
    thick, gap = mnist[1].data[[5938, 0]].float() / 255
    picture = PHOTOGRAPHS["cut out tightly"](thick, random.Random(1))
    assert sum(mnist_cnn.find_digit(picture)[0].shape) > 0.95 * sum(picture.shape[1:])
    assert len(mnist_cnn.find_digit(F.pad(gap[None], [400] * 4))[0]) > 40
    gap[12:14] = 0
    assert len(mnist_cnn.find_digit(gap[None])[0]) > 100


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


@pytest.mark.parametrize("width", [3, 20])
@pytest.mark.parametrize("ink, paper", [("#2040a0", "#f4e8b0"), ("#ffe000", "white")])
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
        for mass in (prepared[0].sum(dim=0), prepared[0].sum(dim=1)):
            assert abs((mass * (torch.arange(28) + 0.5)).sum() / mass.sum() - 14) <= 0.51


def modes(picture):
    """Return the same brightness picture, black on white, as different kinds of files hold it."""
    ink = Image.eval(picture, lambda level: 255 - level)
    black, white = (Image.merge("LA", (Image.new("L", picture.size, level), ink)) for level in (0, 255))
    names = {"RGB": "a.bmp", "L": "a.jpg", "P": "a.gif", "1": "bits.png", "CMYK": "cmyk.jpg"}
    sixteen = Image.fromarray(pil_to_tensor(picture)[0].to(torch.uint16).numpy() * 257)
    others = {"black on transparent.png": black, "white.png": white.convert("RGBA"), "sixteen.png": sixteen}
    return {name: picture.convert(mode) for mode, name in names.items()} | others


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
    rng = random.Random(1)
    for _ in range(15):
        damaged = bytearray(exif.tobytes())
        for _ in range(3):
            damaged[rng.randrange(6, len(damaged))] = rng.randrange(256)
        picture.save(tmp_path / "damaged.jpg", exif=bytes(damaged))
        assert mnist_cnn.prepare(mnist_cnn.read_picture(tmp_path / "damaged.jpg"))[0].shape == (1, 28, 28)


@pytest.fixture
def odd_pictures(tmp_path, digits):
    """Files that cannot be read as a digit, and what the program says of each."""
    Image.new("RGB", (60, 60), "white").save(tmp_path / "cut.jpg")
    os.truncate(tmp_path / "cut.jpg", 400)
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
    pictures = modes(to_pil_image(on_paper(images[0], random.Random(3), 0.95, 0.05)))
    pictures["large.bmp"] = pictures["a.bmp"].resize((2400, 1800))
    for name, picture in pictures.items():
        picture.save(tmp_path / name)
    names, odd = [str(tmp_path / name) for name in pictures], list(odd_pictures)
    run = run_program("--output-dir", outputs, "--predict", *odd[:3], *names, *odd[3:])
    assert run.returncode == 1
    lines = run.stdout.splitlines()
    for line, name in zip(lines, names, strict=True):
        assert re.match(re.escape(name) + r": \d \(\d+\.\d%\)", line)
    assert sum(f": {labels[0]} (" in line for line in lines) >= len(names) - 2
    for line, name in zip(run.stderr.splitlines(), odd, strict=True):
        assert line.startswith(f"{name} ") and odd_pictures[name] in line
    with Image.open(outputs / "predictions.png") as picture:
        assert picture.width > 800 and len(picture.convert("RGB").getcolors(2**24)) > 50


LINES = {
    "6 (70.0%), or 2 (30.0%)": {6: 0.7, 2: 0.3},
    "6 (99.1%)": {6: 0.991, 2: 0.009},
    "6 (99.2%) - more than one digit?": {6: 0.992, 2: 0.008},
    "6 (40.0%), or 0 (30.0%) - unsure: see predictions.png": {6: 0.4, 0: 0.3, 2: 0.2, 7: 0.1},
}


@pytest.mark.parametrize("said", LINES)
def test_printed_line(said, monkeypatch, tmp_path, capsys):
    logits = torch.tensor([LINES[said].get(digit, 0) for digit in range(10)]).log()
    Image.new("L", (60, 60), 255).save(tmp_path / "a.png")
    monkeypatch.setattr(mnist_cnn, "prepare", lambda picture: (torch.zeros(1, 28, 28), "more than one" in said))
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
    assert not any(mnist_cnn.prepare(1 - image[None])[1] for image in images[:10])


class Trap:
    """What runs code where it is unpickled."""

    def __reduce__(self):
        return (print, ("the weights ran code",))


def test_weights_that_cannot_be_used(tmp_path, capsys):
    picture = tmp_path / "picture.png"
    Image.new("L", (30, 30)).save(picture)
    weights = tmp_path / "mnist_cnn.pt"

    def said():
        assert mnist_cnn.main(flags("--output-dir", tmp_path, "--predict", picture)) == 1
        out, err = capsys.readouterr()
        assert err.count("\n") == 1 and str(weights) in err and out == ""
        return err

    assert "train first" in said()
    good = mnist_cnn.CNN().state_dict()
    torch.save(good, weights)
    whole = weights.read_bytes()
    for damaged in (b"", b"something else", whole[: len(whole) // 2], bytes(len(whole))):
        weights.write_bytes(damaged)
        assert "damaged" in said()
    for other in (torch.nn.Linear(3, 2).state_dict(), [1, 2], 7, dict.fromkeys(good, "text"), mnist_cnn.CNN(), Trap()):
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
