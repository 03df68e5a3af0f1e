"""Reading digits of one's own: from pictures of every kind, and from the pad."""

import os
import random
import re

import pytest
import torch
from matplotlib.backend_bases import KeyEvent, MouseEvent
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

import mnist_cnn

from .conftest import ROOT, call, refusal
from .photographs import KINDS, STROKES, drawn, share_right, share_right_untouched


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_read_like_untouched_digits(kind, model, digits):
    rng = random.Random(1)
    torch.manual_seed(1)
    images, labels = (part[:8] for part in digits)
    pictures = [KINDS[kind](image, rng) for image in images]
    assert share_right(model, pictures, labels) >= share_right_untouched(model, images, labels) - 0.45


def test_drawn_digits(model, digits):
    """From a picture with a thin and a broad pen, in dark ink and yellow, and straight from the pen's way."""
    least, labels = share_right_untouched(model, *digits) - 0.5, torch.tensor(list(STROKES))
    for pen in ({"width": 6}, {"width": 40}, {"ink": "#ffe000", "paper": "white"}):
        assert share_right(model, [drawn(digit, **pen) for digit in STROKES], labels) >= least
    images = torch.stack([mnist_cnn.prepare_strokes(strokes) for strokes in STROKES.values()])
    assert share_right_untouched(model, images[:, 0], labels) >= least
    for image in (*images, *(look for digit in STROKES for look in mnist_cnn.prepare(drawn(digit)))):
        assert (image.shape, image.dtype) == ((1, 28, 28), torch.float32)
        assert image.min() == 0 and 0.9 < image.max() <= 1
        for mass in (image.sum(dim=(0, 1)), image.sum(dim=(0, 2))):  # its centre is in the middle
            assert (mass / mass.sum() @ torch.arange(-13.5, 14)).abs() < 0.6


def test_what_shows_no_digit_is_refused(tmp_path, monkeypatch):
    torch.manual_seed(0)
    Image.new("RGBA", (50, 50)).save(tmp_path / "transparent.png")
    transparent = mnist_cnn.read_picture(tmp_path / "transparent.png")
    point, far = torch.zeros(1, 28, 28), torch.zeros(1, 100, 100)
    point[0, 9, 12] = far[0, 50, 50] = 1
    grain, light = 4 / 255 * torch.randn(3, 300, 400), 0.9 - 0.4 * torch.linspace(0, 1, 400).expand(3, 300, 400)
    for picture in (torch.ones(3, 50, 60), torch.zeros(1, 1, 1), transparent, point, far, 0.8 + grain, light):
        with pytest.raises(ValueError, match="empty"):
            mnist_cnn.prepare(picture)
    Image.new("RGB", (60, 60), "white").save(tmp_path / "whole.jpg")
    contents = {"cut.jpg": (tmp_path / "whole.jpg").read_bytes()[:400], "empty.png": b"", "text.png": b"no picture"}
    for name, content in (contents | {".": None, "missing.png": None, "a.heic": b"\0\0\0\x18ftypheic"}).items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="HEIC"):  # what telephones save: a hint to those who do not know
            mnist_cnn.read_picture(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # a small file may claim to be a huge picture
    with pytest.raises(ValueError, match="limit"):
        mnist_cnn.read_picture(tmp_path / "whole.jpg")


def test_kinds_of_files(tmp_path):
    grey = to_pil_image(drawn(3, "black", "white")).convert("L")
    expected, deep = mnist_cnn.prepare(pil_to_tensor(grey) / 255)[0], pil_to_tensor(grey)[0].float().numpy()
    kinds = {"L": "grey.jpg", "LA": "opaque.png", "RGB": "a.bmp", "P": "a.gif", "1": "bits.png", "CMYK": "cmyk.jpg"}
    files = {name: grey.convert(mode) for mode, name in kinds.items()} | {"large.bmp": grey.resize((2400, 1800))}
    files |= {name: Image.new(mode, grey.size, "white") for mode, name in (("RGB", "white.png"), ("L", "two.png"))}
    for name in ("white.png", "two.png"):  # ink of any colour on transparent paper
        files[name].putalpha(Image.eval(grey, lambda level: 255 - level))
    files |= {f"{scale}.tiff": Image.fromarray(deep * scale) for scale in (1 / 255, 100)}
    for name, file in (files | {"sixteen.png": Image.fromarray((deep * 257).astype("uint16"))}).items():
        file.save(tmp_path / name)
        picture = mnist_cnn.read_picture(tmp_path / name)
        assert picture.dtype == torch.float32 and 0 <= picture.min() and picture.max() <= 1, name
        assert F.cosine_similarity(mnist_cnn.prepare(picture).flatten(1), expected.flatten(1)).max() > 0.9, name


def test_turned_camera_and_damaged_exif(tmp_path):
    upright, exif, rng = to_pil_image(drawn(2)), Image.Exif(), random.Random(1)
    exif[0x0112], exif[0x011A] = 6, 72.0  # show it a quarter turn clockwise; the resolution
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", exif=exif)
    assert (mnist_cnn.read_picture(tmp_path / "turned.jpg") - pil_to_tensor(upright) / 255).abs().mean() < 0.03
    for _ in range(15):  # where only the EXIF is damaged, the picture is read without it
        damaged = bytearray(exif.tobytes())
        damaged[rng.randrange(6, len(damaged))] = rng.randrange(256)
        upright.save(tmp_path / "damaged.jpg", exif=bytes(damaged))
        assert max(mnist_cnn.read_picture(tmp_path / "damaged.jpg").shape) == 170


def test_predict(model, trained, tmp_path, capsys):
    """Each good picture has its line on stdout, in their order, and each of the others its line on stderr."""
    names = ("7.png", "3.png"), ("bad.jpg", "blank.gif", "x" * 300)
    good, bad = ([tmp_path / name for name in part] for part in names)
    for path in good:
        to_pil_image(drawn(int(path.stem))).save(path)
    bad[0].write_text("not a picture")
    Image.new("L", (50, 50)).save(bad[1])
    (tmp_path / "mnist_cnn.pt").write_bytes((trained[0] / "mnist_cnn.pt").read_bytes())
    result, out = call("--output-dir", tmp_path, "--predict", *good)
    for line, path in zip(out.splitlines(), good, strict=True):
        _, probabilities = mnist_cnn.read_digit(model, mnist_cnn.prepare(mnist_cnn.read_picture(path)))
        assert line.startswith(f"{path}: {probabilities.argmax()} ({probabilities.max():.1%})")
    assert result is None and (tmp_path / "predictions.png").exists()
    os.remove(tmp_path / "predictions.png")
    lines = refusal(capsys, "--output-dir", tmp_path, "--predict", bad[0], *good, *bad[1:])
    assert all(line.startswith(f"{path}: ") for line, path in zip(lines, bad, strict=True))
    assert len(Image.open(tmp_path / "predictions.png").convert("RGB").getcolors(2**24)) > 50


def test_program_of_the_readme(trained, capsys):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    exec(code.replace("outputs/", trained[0].as_posix() + "/").replace(".readme", (ROOT / ".readme").as_posix()), {})
    assert capsys.readouterr().out.strip() in list("0123456789")


@pytest.mark.parametrize("surer, said, shares", [
    (0, "6 (70.0%), or 2 (30.0%)", {6: 0.7, 2: 0.3}),
    (1, "6 (99.1%)", {6: 0.991, 2: 0.009}),
    (1, "6 (40.0%), or 0 (30.0%) - unsure: see predictions.png", {6: 0.4, 0: 0.3, 2: 0.2, 7: 0.1}),
])  # fmt: skip
def test_printed_line(surer, said, shares, monkeypatch, tmp_path, capsys):
    """It tells how the network reads the look of which it is surer."""
    logits, looks = torch.full((2, 10), -9.0), torch.rand(2, 1, 28, 28)
    logits[surer] = torch.tensor([shares.get(digit, 0) for digit in range(10)]).log()
    image, probabilities = mnist_cnn.read_digit(lambda images: logits, looks)
    assert torch.equal(image, looks[surer]) and torch.allclose(probabilities, logits[surer].softmax(dim=0))
    monkeypatch.setattr(mnist_cnn, "prepare", lambda picture: looks)
    names = [str(tmp_path / name) for name in ("a.png", "b1.png", "b[1].png")]
    for name in names:
        Image.new("L", (60, 60), 255).save(name)
    for patterns in (names, [str(tmp_path / "*.png")]):  # Windows leaves it to the program to find the names
        mnist_cnn.predict(lambda images: logits, patterns, tmp_path / "..")
        assert capsys.readouterr().out == "".join(f"{name}: {said}\n" for name in names)


def write(pad, stroke, size=0.6, corner=(0.2, 0.2), button=1):
    """Write on the pad as a mouse does."""
    places = [(corner[0] + size * x / 100, corner[1] + size * y / 100) for x, y in stroke]
    pixels = pad.axes[0].transData.transform(places).tolist()
    MouseEvent("button_press_event", pad.canvas, *pixels[0], button)._process()
    for place in pixels[1:]:
        MouseEvent("motion_notify_event", pad.canvas, *place)._process()
    MouseEvent("button_release_event", pad.canvas, *pixels[-1], button)._process()


def shown(pad):
    """Return what the network sees on the pad, and what is said of it."""
    (image,) = (image for axes in pad.axes for image in axes.images)
    return torch.tensor(image.get_array()), pad.axes[-1].get_title()


def test_pad():
    """The image and its reading are the same wherever the digit is written, and however large, until cleared."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))  # any network will do
    pad = FigureCanvasAgg(Figure(figsize=(11, 5.5), layout="constrained")).figure
    mnist_cnn.draw_pad(pad, model)
    for digit, size, button in ((4, 0.2, None), (3, 0.4, 3), (7, 0.8, None)):
        expected = mnist_cnn.prepare_strokes(STROKES[digit])
        _, probabilities = mnist_cnn.read_digit(model, expected[None])
        for corner in ((0.05, 0.05), (0.95 - size, 0.05), (0.05, 0.95 - size), (0.95 - size, 0.95 - size)):
            for stroke in STROKES[digit]:
                write(pad, stroke, size, corner)
            image, title = shown(pad)
            assert (image - expected).abs().max() < 0.05 and title[0] == str(probabilities.argmax().item())
            write(pad, [(50, 50)], button=3) if button else KeyEvent("key_press_event", pad.canvas, "c")._process()
            assert not shown(pad)[0].any() and not shown(pad)[1]
    for stroke in ([(50, 50)], [(20, 50), (90, 50), (160, 50), (160, 80), (90, 90)]):  # a click; off the pad and back
        write(pad, stroke)
        assert shown(pad)[0].any() and shown(pad)[1]
        write(pad, [(50, 50)], button=3)
