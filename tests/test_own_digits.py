"""Digits of one's own: from pictures of every kind, and from the pad."""

import re
from unittest.mock import Mock, call

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
from PIL import Image, ImageOps
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

import mnist_cnn

from .conftest import main
from .photographs import STROKES, drawn, prepare


def likeness(images, expected):
    """Return the highest cosine similarity of some images with another."""
    return F.cosine_similarity(images.flatten(1), expected.flatten(1)).max()


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
        candidates = prepare(drawn(digit, **pen), "PNG")
        assert likeness(candidates, stroke) > 0.7
        for image in (stroke, *candidates):
            assert image.shape == (1, 28, 28)
            assert image.min() == 0
            assert 0.9 < image.max() <= 1
            for mass in (image.sum(dim=(0, 1)), image.sum(dim=(0, 2))):
                center = mass @ torch.arange(-13.5, 14) / mass.sum()
                assert center.abs() < 0.6


SIZES = [(1, 5), (40, 40)]  # a speck, and a note on a desk
LIGHT = torch.linspace(0.9, 0.5, 400).expand(3, 300, 400)  # on paper, from one side
EMPTY = [F.pad(torch.ones(1, *size), [50] * 4) for size in SIZES]
EMPTY += [LIGHT, LIGHT + torch.randn(300, 400, generator=torch.manual_seed(0)) / 10]
EMPTY += [torch.ones(1, 1, length) for length in (1, 200, 300)]  # no more than a line


@pytest.mark.parametrize("picture", EMPTY)
def test_what_shows_no_digit_is_refused(picture):
    with pytest.raises(ValueError, match=r"empty|can't be read"):
        prepare(picture)


GREY = to_pil_image(drawn(4, "black", "white")).convert("L")


def transparent():
    """Draw on transparent paper, with ink that is white, too."""
    picture = Image.new("RGB", GREY.size, "white")
    picture.putalpha(ImageOps.invert(GREY))
    return picture


def card():
    """Lay an opaque picture on transparent paper."""
    picture = Image.new("RGBA", (300, 230))
    picture.paste(GREY, (90, 20))
    return picture


def scan():
    """Scan with 12 bits, of which most levels are above 255."""
    return Image.fromarray(pil_to_tensor(GREY)[0].numpy().astype("uint16") * 12 + 300)


FILES = {
    "transparent.png": transparent(),
    "card.png": card(),
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
    assert likeness(mnist_cnn.prepare(picture), mnist_cnn.prepare_strokes(STROKES[4])) > 0.7
    assert not recwarn.list


def test_most_like_a_digit():
    candidates, logits = torch.rand(3, 1, 28, 28), torch.zeros(3, 10)
    logits[range(3), [5, 6, 7]] = torch.tensor([1.0, 3.0, 2.0])
    image, probabilities = mnist_cnn.read_digit(Mock(return_value=logits), candidates)
    assert image.equal(candidates[1])
    assert probabilities.argmax() == 6


@pytest.mark.parametrize("first", [0.85, 0.95, 0.995])
def test_unsure(first, tmp_path, capsys):
    """The second choice is said unless it is rare, and that the network is unsure."""
    GREY.save(tmp_path / "4.png")
    logits = torch.tensor([[0, 0, 0, first, 0, 1 - first, 0, 0, 0, 0]]).log()
    mnist_cnn.predict(Mock(return_value=logits), [tmp_path / "4.png"], tmp_path)
    line = capsys.readouterr().out.splitlines()[0]
    assert f": 3 ({first:.1%})" in line
    assert (f", or 5 ({1 - first:.1%})" in line) == (first < 0.99)
    assert (" - unsure" in line) == (first < 0.9)


@pytest.mark.filterwarnings("error")  # fonts may lack the letters of a name
def test_predict(weights, capsys):
    """Each picture has its line, in order; one that can't be read has it on stderr."""
    folder, earlier = weights.parent, weights.read_bytes()
    two = torch.cat([drawn(7), drawn(4)], dim=2)
    good = ["七.png", "$1.png", "$2.png", "[x].png"]
    for name, picture in zip(good, (drawn(7), drawn(4), drawn(4), two)):
        to_pil_image(picture).save(folder / name)
    (folder / "half.png").write_bytes((folder / "七.png").read_bytes()[:999])
    names = ["七.png", "$*.png", "[x].png", "half.png", "mnist_cnn.pt", ".", "x" * 300, "no.png"]
    with pytest.raises(mnist_cnn.UserError, match="5 of 9"):
        main("--output-dir", folder, "--predict", *[folder / name for name in names])
    out, err = capsys.readouterr()
    read = re.findall(r"(.*): \d \(\d+\.\d%\)", out)
    assert read == [str(folder / name) for name in good]
    assert out.count("cut them apart") == 1
    bad = [line.split(": ")[0] for line in err.splitlines()]
    assert bad == [str(folder / name) for name in names[3:]]
    assert err.count("no such file") == 1
    assert f"Saved predictions.png in {folder}\n" in out
    Image.open(folder / "predictions.png").close()
    assert weights.read_bytes() == earlier


def test_plot_readings():
    """Of each: its picture, what the network saw of it, and its probabilities, of any classes."""
    picture, image, probabilities = torch.rand(3, 40, 30), torch.rand(1, 28, 28), torch.rand(11)
    readings = [(name, picture, image, probabilities) for name in ("a.png", "b.png")]
    left, middle, right = mnist_cnn.plot_readings(readings).axes[3:]
    assert torch.allclose(
        torch.tensor(left.images[0].get_array()).movedim(2, 0), picture, atol=0.01
    )
    assert middle.get_title() == "'b.png'"
    assert image[0].equal(torch.tensor(middle.images[0].get_array()))
    assert middle.images[0].cmap(1.0) == (0, 0, 0, 1)  # ink is black
    assert [bar.get_height() for bar in right.patches] == probabilities.tolist()
    assert [label.get_text() for label in right.get_xticklabels()] == [*"0123456789", "10"]
    assert middle.images[0].get_clim() == (0, 1)


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
    assert see(pad) == ("", None)
    for digit, size, corner in WRITING:
        title, image = write(pad, *STROKES[digit], size=size, corner=corner)
        expected = mnist_cnn.prepare_strokes(STROKES[digit])
        assert likeness(image[None], expected) > 0.99
        _, probabilities = mnist_cnn.read_digit(MODEL, expected[None])
        assert title.startswith(f"{probabilities.argmax()} (")
        assert probabilities.sum().item() == pytest.approx(1)
        use_mouse(pad.axes[-1], (0.5, 0.5))  # the button
        assert see(pad) == ("", None)


def test_pad_passes_over_a_click(pad):
    """As one that brings the window to the front, even if the pen trembles."""
    assert write(pad, [(50, 50)], [(50, 50), (51, 50)]) == ("", None)


def test_pad_keeps_up_with_the_pen(pad):
    """A window loses points while it draws the whole figure; the pen may leave the pad."""
    drawn = Mock()
    pad.canvas.mpl_connect("draw_event", drawn)
    title, _ = write(pad, [(20, 50), (160, 50), *[(x, x * x / 100) for x in range(90)]])
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
    assert show.call_args_list == [call(block=True)] * 2
    (name,) = pyplot.get_figlabels()
    pad = pyplot.figure(name)
    assert not pad.canvas.manager.toolbar
    assert to_rgb(pad.axes[0].get_facecolor()) == (1, 1, 1)
    assert to_rgb(pad.axes[0].lines[0].get_color()) == (0, 0, 0)
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
