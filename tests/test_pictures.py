"""Reading digits of one's own: from pictures of every kind, and from the pad."""

import random
import re
import shutil

import pytest
import torch
from matplotlib.backend_bases import KeyEvent, MouseEvent
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

import mnist_cnn

from .conftest import ROOT, call
from .photographs import KINDS, STROKES, drawn, share_right, share_right_untouched

CHOSEN = "photograph, a darker table", "photograph, a lighter table", "cut out tightly", "chalk, grainy"
PENS = {"width": 6}, {"width": 40}, {"ink": "#ffffa8", "paper": "white"}
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)

def likeness(images, others):
    """Return the cosine similarities of images, (N, ...), and others, (M, ...): shape (N, M)."""
    return F.normalize(images.flatten(1)) @ F.normalize(others.flatten(1)).T

@pytest.fixture(scope="session")
def looks(digits):
    """The looks of pictures of 16 digits, for each kind; no network has part in them."""
    rng = random.Random(1)
    torch.manual_seed(1)
    return {kind: [mnist_cnn.prepare(KINDS[kind](image, rng)) for image in digits[0][:16]] for kind in CHOSEN}

@pytest.mark.parametrize("kind", CHOSEN)
def test_digits_are_found_in_pictures(kind, looks, digits):
    likest = [likeness(pair, image[None]).max() for pair, image in zip(looks[kind], digits[0])]
    assert torch.stack(likest).mean() > 0.75  # it is 0.81 or more, and 0.4 between different digits

def test_drawn_digits_get_one_form(mnist):
    """From the pen's way, and from pictures with a thin and a broad pen, in dark ink and yellow."""
    strokes = torch.stack([mnist_cnn.prepare_strokes(strokes) for strokes in STROKES.values()])
    means = torch.stack([mnist[0].data[mnist[0].targets == digit].float().mean(dim=0) for digit in range(10)])
    assert likeness(strokes, means).argmax(dim=1).tolist() == list(STROKES)
    for pen in PENS:
        looks = torch.stack([mnist_cnn.prepare(drawn(digit, **pen)) for digit in STROKES])
        assert max(likeness(looks[:, way], strokes).diagonal().min() for way in (0, 1)) > 0.7, pen
        for image in (*strokes, *looks.flatten(0, 1)):
            assert image.shape == (1, 28, 28) and image.min() == 0 and 0.9 < image.max() <= 1
            for mass in (image.sum(dim=(0, 1)), image.sum(dim=(0, 2))):  # its centre is in the middle
                assert (mass / mass.sum() @ torch.arange(-13.5, 14)).abs() < 0.6

def test_own_digits_are_read_like_untouched_ones(looks, trained, digits):
    model = trained[2]
    readings = [mnist_cnn.read_digit(model, pair)[1].argmax() for kind in CHOSEN for pair in looks[kind]]
    right = (torch.stack(readings) == digits[1][:16].repeat(len(CHOSEN))).float().mean()
    assert right >= share_right_untouched(model, digits[0][:16], digits[1][:16]) - 0.2
    pictures = [drawn(digit, **pen) for pen in PENS for digit in STROKES]
    right = share_right(model, pictures, torch.tensor([*STROKES] * len(PENS)))
    assert right >= share_right_untouched(model, *digits) - 0.2

def test_what_shows_no_digit_is_refused(tmp_path, monkeypatch):
    torch.manual_seed(0)
    point, light = torch.zeros(1, 100, 100), 0.9 - 0.4 * torch.linspace(0, 1, 400).expand(3, 300, 400)
    point[0, 50, 50] = 1
    Image.new("RGBA", (50, 50)).save(tmp_path / "whole.png")
    empty = [mnist_cnn.read_picture(tmp_path / "whole.png"), torch.ones(3, 50, 60), torch.zeros(1, 1, 1)]
    for picture in (*empty, point, point[:, 41:69, 38:66], light, 0.8 + 4 / 255 * torch.randn(3, 300, 400)):
        with pytest.raises(ValueError, match="empty"):
            mnist_cnn.prepare(picture)
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    (tmp_path / "text.png").write_bytes(b"no picture")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # the size that a small file claims may be huge
    for name in ("half.png", "text.png", ".", "no.png", "whole.png"):
        with pytest.raises(ValueError, match="limit" if name == "whole.png" else "JPEG or PNG"):
            mnist_cnn.read_picture(tmp_path / name)

def test_kinds_of_files(tmp_path):
    grey, exif = to_pil_image(drawn(3, "black", "white")).convert("L"), Image.Exif()
    expected, deep = mnist_cnn.prepare(pil_to_tensor(grey) / 255)[0], pil_to_tensor(grey)[0].float().numpy()
    kinds = {"L": "grey.jpg", "LA": "opaque.png", "RGB": "a.bmp", "P": "a.gif", "1": "bits.png", "CMYK": "cmyk.jpg"}
    files = {name: grey.convert(mode) for mode, name in kinds.items()} | {"large.bmp": grey.resize((2400, 1800))}
    files["white.png"] = Image.new("RGB", grey.size, "white")  # ink of any colour on transparent paper
    files["white.png"].putalpha(Image.eval(grey, lambda level: 255 - level))
    files |= {"float.tiff": Image.fromarray(deep / 255), "16.png": Image.fromarray((deep * 257).astype("uint16"))}
    for name, file in (files | {"turned.jpg": grey.transpose(Image.Transpose.ROTATE_90)}).items():
        exif[0x0112] = 6 if name == "turned.jpg" else 1  # a turned camera writes: show it a quarter turn clockwise
        file.save(tmp_path / name, exif=exif)
        picture = mnist_cnn.read_picture(tmp_path / name)
        assert picture.dtype == torch.float32 and 0 <= picture.min() and picture.max() <= 1, name
        assert likeness(mnist_cnn.prepare(picture), expected).max() > 0.9, name

@pytest.mark.filterwarnings("error")  # fonts may lack the letters of a name
def test_predict(trained, tmp_path, capsys):
    """Each good picture has its line on stdout, in their order, and each of the others its line on stderr."""
    pictures = {"七.png": drawn(7), "$^$.png": drawn(3), "73.png": torch.cat([drawn(7), drawn(3)], dim=2)}
    good, bad = ([tmp_path / name for name in part] for part in (pictures, ("bad.jpg", "blank.gif", "x" * 300)))
    for path, picture in zip([*good, bad[1]], [*pictures.values(), torch.ones(1, 50, 50)]):
        to_pil_image(picture).save(path)
    bad[0].write_text("not a picture")
    shutil.copy(trained[0] / "mnist_cnn.pt", tmp_path)
    result, out, lines = call(capsys, "--output-dir", tmp_path, "--predict", bad[0], *good, *bad[1:])
    for line, path in zip(out.splitlines(), good, strict=True):
        _, probabilities = mnist_cnn.read_digit(trained[2], mnist_cnn.prepare(mnist_cnn.read_picture(path)))
        assert line.startswith(f"{path}: {probabilities.argmax()} ({probabilities.max():.1%})")
        assert ("more than one digit" in line) == (path.name == "73.png")
    assert result == 1 and all(line.startswith(f"{path}: ") for line, path in zip(lines, bad, strict=True))
    with Image.open(tmp_path / "predictions.png") as image:
        assert len(image.convert("RGB").getcolors(2**24)) > 50

@pytest.mark.parametrize("snippet", SNIPPETS)
def test_programs_of_the_readme(snippet, trained, mnist, tmp_path, monkeypatch, capsys):
    if "layers[" in snippet and not isinstance(getattr(mnist_cnn.CNN(), "layers", [None])[0], nn.Conv2d):
        pytest.skip("it is about a network that starts with a convolution")
    shutil.copytree(trained[0], tmp_path / "outputs")
    shutil.copytree(ROOT / ".readme", tmp_path / ".readme")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mnist_cnn, "load_mnist", lambda data_dir: mnist)
    exec(snippet, {})
    assert "print(" not in snippet or capsys.readouterr().out.strip() in list("0123456789")

def test_printed_line(tmp_path, capsys):
    """It tells how the network reads the look of which it is surer, and of a choice that has more than 1%."""
    to_pil_image(drawn(7)).save(tmp_path / "b[1].png")
    shares = torch.tensor([0.3, 0, 0.2, 0, 0, 0.1, 0.395, 0.005, 0, 0])
    said = "6 (39.5%), or 0 (30.0%) - unsure: see predictions.png", "6 (99.6%)"
    for name, power, line in zip(("b[1].png", "*.png"), (1, 20), said):  # Windows leaves it to us to find names
        logits = torch.stack([torch.full((10,), -99.0), power * shares.log()]).roll(power, 0)
        mnist_cnn.predict(lambda images: logits, [str(tmp_path / name)], tmp_path / "..")
        assert capsys.readouterr().out == f"{tmp_path / 'b[1].png'}: {line}\n"

def write(pad, stroke, size=0.6, corner=(0.2, 0.2), button=1):
    """Write on the pad as a mouse does; return what the network then sees, and what is said of it."""
    places = [(corner[0] + size * x / 100, corner[1] + size * y / 100) for x, y in stroke]
    first, *others = pad.axes[0].transData.transform(places).tolist()
    events = [MouseEvent("button_press_event", pad.canvas, *first, button)]
    events += [MouseEvent("motion_notify_event", pad.canvas, *place) for place in others]
    for event in (*events, MouseEvent("button_release_event", pad.canvas, *[first, *others][-1], button)):
        pad.canvas.callbacks.process(event.name, event)
    return torch.tensor(pad.axes[1].images[0].get_array()), pad.axes[2].get_title()

def test_pad():
    """The image and its reading are the same wherever the digit is written, and however large, until cleared."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))  # any network will do
    pad = FigureCanvasAgg(Figure(figsize=(11, 5.5), layout="constrained")).figure
    mnist_cnn.draw_pad(pad, model)
    pad.canvas.draw()  # as a window does before anyone can write in it
    press = KeyEvent("key_press_event", pad.canvas, "c")
    for digit, size in ((4, 0.2), (3, 0.4), (7, 0.8)):
        expected = mnist_cnn.prepare_strokes(STROKES[digit])
        said = mnist_cnn.read_digit(model, expected[None])[1].argmax()
        for corner in ((0.05, 0.95 - size), (0.95 - size, 0.05)):
            *_, (image, title) = [write(pad, stroke, size, corner) for stroke in STROKES[digit]]
            assert likeness(image[None], expected) > 0.99 and title.startswith(f"{said} (")
            pad.canvas.callbacks.process(press.name, press) if digit == 3 else write(pad, [(50, 50)], button=3)
            assert not pad.axes[1].images[0].get_array().any() and not pad.axes[2].get_title()
    for stroke in ([(50, 50)], [(20, 50), (90, 50), (160, 50), (160, 80), (90, 90)]):  # a click; off the pad and back
        image, title = write(pad, stroke)
        assert image.any() and title
        write(pad, [(50, 50)], button=3)
