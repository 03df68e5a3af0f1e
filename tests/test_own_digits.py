"""Digits of one's own: from pictures of every kind, and from the pad."""

import re
from unittest.mock import Mock

import pytest
import torch
from matplotlib import pyplot, style
from matplotlib.backend_bases import (
    FigureManagerBase,
    KeyEvent,
    MouseEvent,
    NavigationToolbar2,
    TimerBase,
)
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

import mnist_cnn

from .conftest import main
from .photographs import STROKES, drawn, find_ink


def likeness(images, expected):
    """Return the highest cosine similarity of some images, each (1, 1, 28, 28), with another."""
    return max(F.cosine_similarity(image.flatten(), expected.flatten(), 0) for image in images)


# Pictures.
PENS = [
    {"width": 6},
    {"width": 40},
    {"ink": "#ffffa8", "paper": "white"},
    {"ink": "#020409", "paper": "#0e0e0a"},  # few levels, as of a scanner of 12 bits in 16
]


@pytest.mark.parametrize("pen", PENS)
def test_pictures_and_strokes_look_alike_and_have_the_form_of_mnist(pen):
    for digit, strokes in STROKES.items():
        stroke = mnist_cnn.prepare_strokes(strokes)
        candidates = mnist_cnn.find_candidates(find_ink(drawn(digit, **pen), "PNG"))
        assert likeness(candidates, stroke) > 0.7
        for image in (stroke, *candidates):
            assert image.shape == (1, 1, 28, 28)
            assert image.min() == 0
            assert 0.9 < image.max() <= 1
            for mass in (image.sum(dim=(0, 1, 2)), image.sum(dim=(0, 1, 3))):
                center = mass @ torch.arange(-13.5, 14) / mass.sum()
                assert center.abs() < 0.6


SIZES = [(1, 5), (40, 40)]  # a speck, and a note on a desk
LIGHT = torch.linspace(0.9, 0.5, 400).expand(3, 300, 400)  # on paper, from one side
EMPTY = [F.pad(torch.ones(1, *size), [50] * 4) for size in SIZES]
EMPTY += [LIGHT, LIGHT + torch.randn(300, 400, generator=torch.manual_seed(0)) / 10]
EMPTY += [torch.ones(1, 1, length) for length in (1, 300)]  # no more than a line


@pytest.mark.parametrize("picture", EMPTY)
def test_what_shows_no_digit_is_refused(picture):
    with pytest.raises(ValueError, match=r"empty|can't be read"):
        mnist_cnn.find_candidates(find_ink(picture))


# Cut off at the top: in one of the two ways to look for ink, there is none then.
GREY = to_pil_image(drawn(4, "black", "white")[:, 20:]).convert("L")


def transparent():
    """Draw on transparent paper, with ink that is white, too."""
    picture = Image.new("RGB", GREY.size, "white")
    picture.putalpha(ImageOps.invert(GREY))
    return picture


def scan():
    """Scan with 12 bits, of which most levels are above 255."""
    return Image.fromarray(pil_to_tensor(GREY)[0].numpy().astype("uint16") * 12 + 300)


FILES = {
    "transparent.png": transparent(),
    "scan.png": scan(),
    "turned.jpg": GREY.transpose(Image.Transpose.ROTATE_90),
    "no_end.jpg": GREY,
}
EXIF = {"turned.jpg": Image.Exif()}
EXIF["turned.jpg"][0x0112] = 6  # what a turned camera writes: show it a quarter turn clockwise
EXIF["no_end.jpg"] = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12"


@pytest.mark.parametrize("name", FILES)
def test_kinds_of_files(name, tmp_path, recwarn):
    FILES[name].save(tmp_path / name, exif=EXIF.get(name, b""))
    picture = mnist_cnn.read_picture(tmp_path / name)
    assert picture.equal(picture.clamp(0, 1))
    candidates = mnist_cnn.find_candidates(mnist_cnn.find_ink(picture))
    assert likeness(candidates, mnist_cnn.prepare_strokes(STROKES[4])) > 0.7
    assert not recwarn.list


ROW = torch.cat([drawn(7, "black", "white"), drawn(4, "black", "white")], dim=2)
ROW[:, 60:66, 150:170] = 0  # a minus sign


def test_rows():
    """Digits side by side are a row, in their order, if most see them; a sign is none of them."""
    rows = mnist_cnn.find_rows(find_ink(ROW))
    for row in rows:
        for image, digit in zip(row, (7, 4), strict=True):
            assert likeness([image], mnist_cnn.prepare_strokes(STROKES[digit])) > 0.7
    assert rows
    cyan = ROW.clone()
    cyan[1:, :, 170:] = 1  # the 4 is seen in red alone
    assert not mnist_cnn.find_rows(find_ink(cyan, "PNG"))


def test_most_like_digits():
    """Neither the sum of the highest logits decides, nor their mean."""
    candidates = [torch.full((count, 10), logit) for count, logit in ((3, 3.0), (2, 4.0), (1, 5.0))]
    digits, probabilities = mnist_cnn.read_digits(nn.Identity(), candidates)
    assert digits is candidates[1]
    assert probabilities.equal(torch.full((2, 10), 0.1))


@pytest.mark.parametrize("shares", [(0.85, 0.97), (0.95, 0.87), (0.995, 0.97)])
def test_what_is_said_of_a_digit_and_a_row(shares, tmp_path, capsys, monkeypatch):
    """A second choice of a digit is said unless it is rare; each digit of a row is plotted."""
    first, second = shares
    logits = torch.tensor([[1 - first, first, 0], [0, 1 - second, second]]).log()
    plot = Mock(return_value=Figure())
    monkeypatch.setattr(mnist_cnn, "plot_readings", plot)
    for name, picture in ("4.png", drawn(4)), ("74.png", ROW):
        to_pil_image(picture).save(tmp_path / name)
    mnist_cnn.predict(lambda images: logits[: len(images)], [tmp_path / "*.png"], tmp_path)
    unsure = " - unsure: see predictions.png"
    digit = f": 1 ({first:.1%})" + f", or 0 ({1 - first:.1%})" * (first < 0.99)
    digit += unsure * (first < 0.9)
    row = f" - or a row of digits: 12 ({first:.1%}, {second:.1%})" + unsure * (min(shares) < 0.9)
    lines = capsys.readouterr().out.splitlines()[:2]
    assert lines == [f"{tmp_path / '4.png'}{digit}", f"{tmp_path / '74.png'}{digit}{row}"]
    (readings,) = plot.call_args.args
    assert [probabilities.argmax() for *_, probabilities in readings] == [1, 1, 1, 2]


@pytest.mark.filterwarnings("error")  # fonts may lack the letters of a name
def test_predict(weights, capsys):
    """Each picture has its line, in order; one that can't be read has it on stderr."""
    folder = weights.parent
    good = ["七.png", "$1.png", "$2.png", "[x].png"]
    for name in good:
        to_pil_image(drawn(4)).save(folder / name)
    (folder / "half.png").write_bytes((folder / "七.png").read_bytes()[:999])
    names = ["七.png", "$*.png", "[x].png", "half.png", "mnist_cnn.pt", ".", "x" * 300, "no.png"]
    with pytest.raises(mnist_cnn.UserError, match="5 of 9"):
        main("--output-dir", folder, "--predict", *[folder / name for name in names])
    out, err = capsys.readouterr()
    read = re.findall(r"(.*): \d \(\d+\.\d%\)", out)
    assert read == [str(folder / name) for name in good]
    bad = [line.split(": ")[0] for line in err.splitlines()]
    assert bad == [str(folder / name) for name in names[3:]]
    assert "no such file" in err
    Image.open(folder / "predictions.png").close()


def test_plot_readings():
    """Of each: its picture, what the network saw of it, and its probabilities, of any classes."""
    picture, image, probabilities = torch.rand(3, 40, 30), torch.rand(1, 28, 28), torch.rand(11)
    readings = [(name, picture, image, probabilities) for name in ("a.png", "b.png")]
    left, middle, right = mnist_cnn.plot_readings(readings).axes[3:]
    assert left.images[0].get_array().shape == (40, 30, 3)
    assert middle.get_title() == "'b.png'"
    assert image[0].equal(torch.tensor(middle.images[0].get_array()))
    assert middle.images[0].cmap(middle.images[0].norm(1)) == (0, 0, 0, 1)  # ink is black
    assert [bar.get_height() for bar in right.patches] == probabilities.tolist()


# The pad.
MODEL = nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10))  # any network will do


@pytest.fixture
def pad():
    figure = pyplot.figure(figsize=(8.4, 4.4))
    mnist_cnn.draw_pad(figure, MODEL)
    figure.canvas.draw()  # as a window does before anyone can write in it
    yield figure
    pyplot.close(figure)


def see(pad):
    """Return what is said of the strokes, and the image that the network sees, if it sees one."""
    _, view, bars, _ = pad.axes
    if not view.get_visible():
        return "", None
    return bars.get_title(), torch.tensor(view.images[0].get_array())


def use_mouse(axes, *points):
    """Press the mouse's button, move it from point to point of axes, and lift it."""
    names = ["button_press_event"] + ["motion_notify_event"] * (len(points) - 1)
    points = axes.transAxes.transform(points).tolist()
    for name, point in zip([*names, "button_release_event"], [*points, points[-1]]):
        MouseEvent(name, axes.figure.canvas, *point, 1)._process()


def write(pad, *strokes, size=0.6, corner=(0.2, 0.2)):
    """Write strokes on the pad; return what is then seen."""
    for stroke in strokes:
        points = torch.tensor(corner) + size * torch.tensor(stroke) / 100
        use_mouse(pad.axes[0], *[(x, 1 - y) for x, y in points.tolist()])
    return see(pad)


WRITING = [(4, 0.2, (0.05, 0.75)), (7, 0.8, (0.1, 0.1)), (1, 0.6, (0.3, 0.2))]


def test_pad(pad):
    """A digit of any size, anywhere, is seen and read like its strokes, until it is cleared."""
    # A click, as to bring the window to the front, is no stroke, even if the pen trembles.
    assert write(pad, [(50, 50)], [(50, 50), (51, 50)]) == ("", None)
    for digit, size, corner in WRITING:
        title, image = write(pad, *STROKES[digit], size=size, corner=corner)
        expected = mnist_cnn.prepare_strokes(STROKES[digit])
        assert likeness(image[None], expected) > 0.99
        _, probabilities = mnist_cnn.read_digits(MODEL, [expected])
        assert title.startswith(f"{probabilities.argmax()} (")
        use_mouse(pad.axes[-1], (0.5, 0.5))  # the button
        assert see(pad) == ("", None)


def test_pad_keeps_up_with_the_pen(pad):
    """A window loses points while it draws the whole figure; the pen may leave the pad."""
    drawn = Mock()
    pad.canvas.mpl_connect("draw_event", drawn)
    title, _ = write(pad, [(20, 50), (160, 50), (30, 60)] * 30)
    assert title
    assert 1 <= drawn.call_count <= 3


class Manager(FigureManagerBase):
    """A back end's own, with matplotlib's toolbar."""

    _toolbar2_class = NavigationToolbar2


class Timer(TimerBase):
    """A window's own."""


def test_window(weights, monkeypatch):
    """Light whatever matplotlibrc says; matplotlib's own keys and tools do nothing to the pad."""
    show = Mock()
    monkeypatch.setattr(pyplot, "show", show)
    monkeypatch.setattr(FigureCanvasAgg, "manager_class", Manager)
    monkeypatch.setattr(FigureCanvasAgg, "_timer_cls", Timer)
    for _ in range(2):  # as a notebook's cell may be run again
        with style.context("dark_background"):
            main("--output-dir", weights.parent, "--draw")
    show.assert_called_with(block=True)
    (name,) = pyplot.get_figlabels()
    pad = pyplot.figure(name)
    assert not pad.canvas.manager.toolbar
    assert to_rgb(pad.axes[0].get_facecolor()) == (1, 1, 1)
    for key in "fgklopqrs":
        KeyEvent("key_press_event", pad.canvas, key, 200, 200)._process()  # over the pad
    pad.canvas.handle_toolbar_button({"name": "home"})  # a browser's page shows a toolbar
    pad.canvas.handle_dblclick({})
    _, image = write(pad, *STROKES[7])
    assert likeness(image[None], mnist_cnn.prepare_strokes(STROKES[7])) > 0.99
    assert pyplot.fignum_exists(name)
    pyplot.close(pad)


@pytest.mark.parametrize("manager", [FigureManagerBase, Manager])
def test_no_window(manager, weights, monkeypatch):
    """As without a display, and in a console that only shows pictures."""
    monkeypatch.setattr(FigureCanvasAgg, "manager_class", manager)
    with pytest.raises(mnist_cnn.UserError, match=r"No window.*webagg"):
        main("--output-dir", weights.parent, "--draw")
