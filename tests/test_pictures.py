"""Reading a digit of one's own: pictures of every kind, made from MNIST's test images and drawn by hand."""

import random

import pytest
import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

import mnist_cnn

from .conftest import run_program

COUNT = 25  # test images for each kind of picture


@pytest.fixture(scope="module")
def model(trained):
    return mnist_cnn.load_model(trained[1] / "mnist_cnn.pt")


@pytest.fixture(scope="module")
def digits(mnist):
    test_set = mnist[1]
    return test_set.data[:COUNT].float() / 255, test_set.targets[:COUNT]


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
    prepared = torch.stack([mnist_cnn.prepare(PAPERS[paper](image, rng)) for image in images])
    assert (prepared.amin(dim=(1, 2, 3)) == 0).all() and (prepared.amax(dim=(1, 2, 3)) == 1).all()
    with torch.no_grad():
        right, untouched = ((model(batch).argmax(dim=1) == labels).sum() for batch in (prepared, images[:, None]))
    assert untouched >= COUNT - 1
    assert right >= untouched - 1


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
@pytest.mark.parametrize("ink, paper", [(20, 250), ("#2040a0", "#f4e8b0"), ("#ffe000", "#ffffff"), (240, 30)])
def test_drawn_digits(width, ink, paper, model):
    right = 0
    for digit, strokes in STROKES.items():
        picture = Image.new("RGB", (340, 260), paper if isinstance(paper, str) else (paper,) * 3)
        for stroke in strokes:
            way = [(80 + 1.6 * x, 40 + 1.6 * y) for x, y in stroke]
            ImageDraw.Draw(picture).line(way, ink if isinstance(ink, str) else (ink,) * 3, 2 * width, joint="curve")
        with torch.no_grad():
            image = mnist_cnn.prepare(pil_to_tensor(picture.resize((170, 130))).float() / 255)
            right += model(image[None]).argmax().item() == digit
    assert right >= 9


def test_mnist_form(digits):
    for image in PAPERS["clean"](digits[0][0], random.Random(2)), 1 - digits[0][1][None]:
        prepared = mnist_cnn.prepare(image)
        assert prepared.shape == (1, 28, 28)
        inked = prepared[0] > 0
        rows, columns = inked.any(dim=1).nonzero(), inked.any(dim=0).nonzero()
        assert max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1 == 20
        middle = torch.arange(28) + 0.5
        for axis in (1, 2):
            mass = prepared[0].sum(dim=2 - axis)
            assert abs((mass * middle).sum() / mass.sum() - 14) <= 0.51


def modes(picture):
    """Return the same brightness picture, black on white, as different kinds of files hold it."""
    transparent = Image.new("LA", picture.size, 0)
    transparent.putalpha(Image.eval(picture, lambda level: 255 - level))
    white_on_nothing = Image.new("RGBA", picture.size, (255, 255, 255, 0))
    white_on_nothing.putalpha(transparent.getchannel("A"))
    sixteen = Image.fromarray(pil_to_tensor(picture)[0].to(torch.uint16).numpy() * 257)
    return {
        "grey.png": picture,
        "rgb.bmp": picture.convert("RGB"),
        "photo.jpg": picture.convert("RGB"),
        "palette.gif": picture.convert("P"),
        "palette.png": picture.convert("P"),
        "rgba.png": picture.convert("RGBA"),
        "transparent paper.png": transparent.convert("RGBA"),
        "grey with transparency.png": transparent,
        "white on transparent.png": white_on_nothing,
        "bits.png": picture.convert("1"),
        "sixteen.png": sixteen,
        "cmyk.jpg": picture.convert("CMYK"),
    }


def test_turned_camera(digits, tmp_path):
    upright = to_pil_image(digits[0][0])
    exif = Image.Exif()
    exif[0x0112] = 6  # show it a quarter turn clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    upright.save(tmp_path / "upright.png")
    assert torch.equal(*(mnist_cnn.read_picture(tmp_path / name) for name in ("turned.png", "upright.png")))


def test_predict(trained, digits, tmp_path):
    _, outputs = trained
    images, labels = digits
    sevens = on_paper(images[0], random.Random(3), 0.95, 0.05)
    names = []
    for name, picture in modes(to_pil_image(sevens)).items():
        picture.save(tmp_path / name)
        names.append(str(tmp_path / name))
    to_pil_image(on_paper(images[1], random.Random(3), 0.95, 0.05)).resize((4000, 3000)).save(tmp_path / "large.bmp")
    to_pil_image(images[1]).resize((8, 8), Image.Resampling.BOX).save(tmp_path / "eight.png")
    names += [str(tmp_path / name) for name in ("large.bmp", "eight.png")]
    expected = [labels[0]] * (len(names) - 2) + [labels[1]] * 2

    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not a picture")
    whole = (tmp_path / "photo.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (50, 50), "white").save(tmp_path / "blank.png")
    Image.new("RGBA", (50, 50)).save(tmp_path / "nothing.png")
    Image.effect_noise((90, 90), 40).save(tmp_path / "noise.png")
    bad = ("empty.png", "text.png", "cut.jpg", "blank.png", "nothing.png", "noise.png", "missing.png", ".")
    unreadable = [str(tmp_path / name) for name in bad]

    run = run_program("--output-dir", outputs, "--predict", *unreadable[:3], *names, *unreadable[3:])
    assert run.returncode == 1
    lines = run.stdout.splitlines()
    assert [line[: len(name) + 4] for line, name in zip(lines, names, strict=True)] == [
        f"{name}: {label} " for name, label in zip(names, expected)
    ]
    for line, name in zip(run.stderr.splitlines(), unreadable, strict=True):
        assert name in line and "Traceback" not in line


@pytest.mark.parametrize("second, said", [(0.3, "6 (70.0%), or 2 (30.0%)"), (0.009, "6 (99.1%)")])
def test_second_choice(second, said, monkeypatch, tmp_path, capsys):
    logits = torch.tensor([0, 0, second, 0, 0, 0, 1 - second, 0, 0, 0]).log()
    picture = Image.new("L", (60, 60), 255)
    ImageDraw.Draw(picture).line((20, 10, 40, 50), fill=0, width=6)
    picture.save(tmp_path / "a.png")
    monkeypatch.setattr(mnist_cnn, "load_model", lambda path: lambda images: logits.expand(len(images), 10))
    assert mnist_cnn.predict([str(tmp_path / "a.png")], None) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'a.png'}: {said}\n"


def test_weights_that_cannot_be_used(tmp_path, capsys):
    picture = tmp_path / "picture.png"
    Image.new("L", (30, 30)).save(picture)
    flags = ["--output-dir", str(tmp_path), "--predict", str(picture)]

    def said():
        assert mnist_cnn.main(flags) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and str(tmp_path / "mnist_cnn.pt") in err
        return err

    assert "train first" in said()
    weights = tmp_path / "mnist_cnn.pt"
    torch.save(mnist_cnn.CNN().state_dict(), weights)
    whole = weights.read_bytes()
    half = len(whole) // 2  # in the middle of the numbers, where one wrong byte still makes a number
    one_byte = whole[:half] + bytes([whole[half] ^ 64]) + whole[half + 1 :]
    for damaged in (b"", b"something else", whole[:half], bytes(len(whole)), one_byte):
        weights.write_bytes(damaged)
        said()
    for other in (torch.nn.Linear(3, 2).state_dict(), [1, 2], 7, {"layers.0.weight": "text"}, mnist_cnn.CNN()):
        torch.save(other, weights)
        said()
    weights.unlink()
    weights.mkdir()
    said()


def test_weights_run_no_code(tmp_path, capsys):
    class Trap:
        def __reduce__(self):
            return (print, ("the weights ran code",))

    torch.save({"layers.0.weight": Trap()}, tmp_path / "mnist_cnn.pt")
    assert mnist_cnn.main(["--output-dir", str(tmp_path), "--predict", "any.png"]) == 1
    assert "ran code" not in capsys.readouterr().out
