"""A smoke test of the program: its training, reading one's own digits, and what goes wrong."""

import copy
import errno
import filecmp
import io
import math
import os
import random
import re
import runpy
import shutil
import sys
from functools import partial
from pathlib import Path
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
from PIL import Image, ImageDraw, ImageOps
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision import datasets
from torchvision.datasets import MNIST
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

import mnist_cnn

from .conftest import FLAGS, ROOT
from .photographs import KINDS, STROKES, drawn, share_right


@pytest.fixture(scope="session")
def trained(pytestconfig):
    """The folder that the training filled, what it printed, and the network."""
    process, outputs = pytestconfig.training
    out, err = process.communicate()
    assert process.returncode == 0, err
    return outputs, out, mnist_cnn.load_model(outputs / "mnist_cnn.pt")


@pytest.fixture
def call(capsys):
    """Run the program here; return its result or status, what it prints, and stderr's lines."""

    def call(*flags):
        sentence = ""
        try:
            result = mnist_cnn.main([*FLAGS, *map(str, flags)])
        except SystemExit as stop:  # a wrong flag
            result = stop.code
        except mnist_cnn.UserError as error:
            result, sentence = 1, str(error).replace("\n", " ")
        out, err = capsys.readouterr()
        return result, out, (err + sentence).splitlines()

    return call


@pytest.fixture(scope="session")
def mnist():
    return mnist_cnn.load_mnist(ROOT / "data")


@pytest.fixture(scope="session")
def digits(mnist):
    """Some test images, shape (50, 28, 28) in [0, 1], and their labels."""
    return mnist[1].data[:50] / 255, mnist[1].targets[:50]


@pytest.fixture
def small_mnist(monkeypatch, mnist):
    """What the program sees: 1,000 training images and 20 test images."""
    small = [copy.copy(split) for split in mnist]
    for split, count in zip(small, (1000, 20)):
        split.data = split.data[:count]
        split.targets = split.targets[:count]
    monkeypatch.setattr(mnist_cnn, "load_mnist", lambda data_dir: small)


@pytest.fixture
def earlier(tmp_path):
    """A folder with an earlier run's weights."""
    folder = tmp_path / "earlier"
    folder.mkdir()
    mnist_cnn.save(folder / "mnist_cnn.pt", mnist_cnn.CNN().state_dict())
    shutil.copy(folder / "mnist_cnn.pt", tmp_path)
    return folder


def is_kept(earlier):
    """Say whether an earlier run's weights are as they were, beside pictures alone."""
    if {path.suffix for path in earlier.iterdir()} <= {".pt", ".png"}:
        return filecmp.cmp(earlier / "mnist_cnn.pt", earlier.parent / "mnist_cnn.pt", shallow=False)
    return False


# The training program: from the data to the files that it leaves behind.
def reported(out, split):
    """Return what is printed last: the accuracy in per cent, how many are right, and of all."""
    line = rf"{split}: average loss \d+\.\d+, accuracy (\d+\.\d+)% \((\d+)/(\d+)\)"
    return [float(number) for number in re.search(line, out).groups()]


def test_training_learns_and_says_so(trained):
    _, out, model = trained
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert re.match(f"device: cpu\n.*50,000 .*10,000 .*\n.* {parameters:,}\n", out)
    assert len(re.findall(r"epoch 1/1 .*batch +\d+/500 .*loss \d+\.\d+", out)) == 500 / 20
    assert "batch 500/500" in out
    training_accuracy = re.search(r"training loss \S+ accuracy (\d+\.\d+)%", out)[1]
    assert float(training_accuracy) > 50
    assert not model.training  # what it is loaded for
    accuracy, correct, _ = reported(out, "Validation")
    assert accuracy == correct / 100 >= 85


def test_files_of_a_training(trained):
    """Plots are PNG, whatever matplotlibrc says; other programs can take the weights."""
    for name in ("loss_curves.png", "mistakes.png"):
        with Image.open(trained[0] / name) as image:
            assert image.format == "PNG"
    weights = torch.load(trained[0] / "mnist_cnn.pt", weights_only=True)
    assert all(tensor.is_contiguous() for tensor in weights.values())


def test_plot_curves():
    """What was measured in two epochs of 100 batches each: 100 means of two."""
    losses, accuracies = torch.rand(2, 100), torch.rand(2, 100)
    history = [(losses[0], accuracies[0], 0.5, 91), (losses[1], accuracies[1], 0.25, 93)]
    axes = mnist_cnn.plot_curves(history, "test").axes
    expected = [("loss", losses, [0.5, 0.25]), ("accuracy", accuracies, [91, 93])]
    for plot, (name, batches, tests) in zip(axes, expected):
        training, test = plot.lines
        assert name in plot.get_ylabel()
        assert test.get_linestyle() != "None"
        assert "training" in training.get_label()
        assert max(tests) < plot.get_ylim()[1]
        means = batches.view(100, 2).mean(dim=1)
        assert list(training.get_ydata()) == pytest.approx(means.tolist())
        assert training.get_xdata()[-1] == pytest.approx(1.99)  # epochs: amid the last two
        assert list(test.get_xdata()) == [1, 2]
        assert list(test.get_ydata()) == tests
    assert axes[0].get_legend()


def test_plot_mistakes(digits):
    """Of four images three are misclassified, with probabilities of 50, 90 and 70%."""
    images, labels = digits[0][:4, None], torch.tensor([1, 2, 3, 4])
    probabilities = torch.zeros(4, 10)
    guesses = [5, 2, 7, 8]
    probabilities[range(4), guesses] = torch.tensor([0.5, 0.99, 0.9, 0.7])
    dataset = TensorDataset(images, labels)
    axes = mnist_cnn.plot_mistakes(dataset, probabilities, "test").axes
    titles = ["said 7 (90%)\nis 3", "said 8 (70%)\nis 4", "said 5 (50%)\nis 1"]
    assert [plot.get_title() for plot in axes[:4]] == [*titles, ""]
    for plot, index in zip(axes, (2, 3, 0)):
        assert images[index, 0].equal(torch.tensor(plot.images[0].get_array()))


@pytest.mark.parametrize(("wrong", "shown"), [(0, 0), (12, 12), (105, 100)])
def test_number_of_mistakes(wrong, shown):
    labels = (torch.arange(200) < wrong).long()
    dataset = TensorDataset(torch.rand(200, 1, 28, 28), labels)
    figure = mnist_cnn.plot_mistakes(dataset, torch.eye(10)[[0] * 200], "test")
    assert sum(len(plot.images) for plot in figure.axes) == shown
    assert f"{wrong} of 200 test" in figure.get_suptitle()


def test_plot_readings(digits):
    """Of each: its picture, what the network saw of it, and ten probabilities."""
    picture, images, probabilities = torch.rand(3, 40, 30), digits[0][:2, None], torch.rand(2, 10)
    readings = [(f"{i}.png", picture, images[i], probabilities[i]) for i in range(2)]
    axes = mnist_cnn.plot_readings(readings).axes
    shown = torch.tensor(axes[3].images[0].get_array())
    assert torch.allclose(shown, picture.movedim(0, -1), atol=1e-2)
    for i in range(2):
        _, middle, right = axes[3 * i : 3 * i + 3]
        assert f"{i}.png" in middle.get_title()
        assert images[i, 0].equal(torch.tensor(middle.images[0].get_array()))
        heights = [bar.get_height() for bar in right.patches]
        assert heights == pytest.approx(probabilities[i].tolist())
        assert [label.get_text() for label in right.get_xticklabels()] == list("0123456789")
        assert right.get_ylim() == middle.images[0].get_clim() == (0, 1)


def test_network_returns_logits(digits):
    logits = mnist_cnn.CNN().eval()(digits[0][:, None])
    # After softmax, or log-softmax, all of these would be one.
    for sums in (logits.sum(dim=1), logits.exp().sum(dim=1)):
        assert not torch.allclose(sums, torch.ones(50), atol=1e-3)


def labels_of(loader):
    return torch.cat([labels for _, labels in loader])


def test_images_for_testing_come_in_order(mnist):
    assert [len(dataset) for dataset in mnist] == [60_000, 10_000]
    _, loader = mnist_cnn.make_loaders(mnist, 96, "cpu")
    images = torch.cat([images for images, _ in loader])
    assert images.equal(mnist[1].data[:, None] / 255)
    assert labels_of(loader).equal(mnist[1].targets)


def test_images_for_training_come_in_a_new_order_in_each_epoch(mnist):
    loader, _ = mnist_cnn.make_loaders(mnist, 96, "cpu")
    stored, first, second = mnist[0].targets, labels_of(loader), labels_of(loader)
    assert not first.equal(stored)
    assert not first.equal(second)
    assert first.bincount().equal(stored.bincount())


def test_held_out_images(mnist):
    """To validate, the last 10,000 training images are left out and tested on."""
    train_loader, test_loader = mnist_cnn.make_loaders(mnist, 96, "cpu", validate=True)
    kept, held_out = mnist[0].targets.split([50_000, 10_000])
    assert labels_of(train_loader).bincount().equal(kept.bincount())
    assert labels_of(test_loader).equal(held_out)


def test_train(digits, monkeypatch):
    """With the same gradient, three small steps go three times as far as one (added up: six)."""
    monkeypatch.setattr(mnist_cnn, "augment", lambda images: images, raising=False)
    images, labels = digits[0].flatten(1), digits[1]
    model = nn.Linear(784, 10).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    moved = []
    for steps in (1, 3):
        before = model.weight.detach().clone()
        batches = [(images, labels)] * steps
        measured = mnist_cnn.train(model, batches, optimizer, Mock(), 1, 1, 20)
        moved.append((model.weight - before).norm().item())
    losses, accuracies, sizes = measured
    assert model.training
    assert 0 < 2.9 * moved[0] < moved[1] < 3.1 * moved[0]
    logits = model(images)
    loss = mnist_cnn.criterion(logits, labels).item()
    assert losses.tolist() == pytest.approx([loss] * 3, rel=0.01)
    right = (logits.argmax(dim=1) == labels).sum().item()
    # Of 50 images, two may have changed.
    assert accuracies.tolist() == pytest.approx([2 * right] * 3, abs=4.1)
    assert sizes.tolist() == [50] * 3


def test_evaluate(digits):
    """Dropout is off, and each image counts the same, in a full batch or the smaller last one."""
    images, labels = digits[0].flatten(1), digits[1]
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(784, 10))
    logits = model[1](images)
    loader = DataLoader(TensorDataset(images, labels), 32)
    loss, correct, probabilities = mnist_cnn.evaluate(model, loader)
    assert loss == pytest.approx(mnist_cnn.criterion(logits, labels).item(), rel=1e-5)
    assert correct == (logits.argmax(dim=1) == labels).sum()
    assert torch.allclose(probabilities, logits.softmax(dim=1), atol=1e-5)
    assert not probabilities.requires_grad  # or all that gradients need would be kept


def likeness(images, others):
    """Return the cosine similarities of images, (N, ...), and others, (M, ...): shape (N, M)."""
    return F.normalize(images.flatten(1)) @ F.normalize(others.flatten(1)).T


@pytest.mark.skipif(not hasattr(mnist_cnn, "augment"), reason="the augmentation was taken out")
def test_augment(digits):
    """Each is changed in another way; on average it is like its original, and where that is."""
    copies = digits[0].repeat(40, 1, 1)[:, None]
    changed = mnist_cnn.augment(copies).view(40, 50, 784)
    assert not changed[0].equal(changed[1])
    most_alike = likeness(changed.mean(dim=0), digits[0]).argmax(dim=1)
    assert (most_alike == torch.arange(50)).sum() > 25
    before, after = (images.view(-1, 28).sum(dim=0) for images in (copies, changed))  # columns
    columns = torch.arange(28.0)
    assert abs(before @ columns / before.sum() - after @ columns / after.sum()) < 0.2


@pytest.mark.parametrize("device", ["cpu", *["cuda"] * torch.cuda.is_available()])
def test_flags_decide(device, small_mnist, tmp_path, call):
    flags = ["--device", device, "--epochs", 2, "--batch-size", 64, "--log-interval", 1]
    accuracy, out, _ = call("--output-dir", tmp_path, *flags)
    said, correct, total = reported(out, "Test")
    assert isinstance(accuracy, float)
    assert accuracy == pytest.approx(said) == 100 * correct / total
    losses = re.findall(r"epoch 2/2 .*batch +\d+/16 .*loss (\S+)", out)
    assert len(losses) == 16
    losses = [float(loss) for loss in losses]
    mean = (64 * sum(losses[:15]) + 40 * losses[15]) / 1000  # the last batch is smaller
    assert float(re.findall(r"training loss (\d+\.\d+)", out)[1]) == pytest.approx(mean, abs=2e-4)


def test_what_was_measured_is_printed_and_plotted(small_mnist, tmp_path, call, monkeypatch):
    """Training: two batches, of three images and one. Test: 15 of 20 are right."""
    make_loaders, saved = mnist_cnn.make_loaders, {}
    monkeypatch.setattr(mnist_cnn, "make_loaders", lambda *args: make_loaders(*args[:3]))
    measured = torch.tensor([1.0, 5.0]), torch.tensor([20.0, 100.0]), torch.tensor([3, 1])
    monkeypatch.setattr(mnist_cnn, "train", lambda *_: measured)
    tested = 0.25, 15, torch.eye(10)[[0] * 20]
    monkeypatch.setattr(mnist_cnn, "evaluate", lambda *_: tested)
    monkeypatch.setattr(mnist_cnn, "save", lambda path, result: saved.update({path.name: result}))
    _, out, _ = call("--output-dir", tmp_path, "--epochs", 2, "--validate")
    line = "training loss 2.0000, accuracy 40.00%  validation loss 0.2500, accuracy 75.00%"
    assert out.count(line) == 2
    assert out.endswith(f" in {tmp_path}\n")
    _, accuracies = saved["loss_curves.png"].axes
    assert list(accuracies.lines[1].get_ydata()) == [75, 75]
    assert "validation" in accuracies.lines[1].get_label()
    assert "validation" in saved["mistakes.png"].get_suptitle()


def test_seed_decides(small_mnist, tmp_path, call):
    weights = []
    for seed in (2**64 - 1, 2**64 - 1, 3):
        call("--output-dir", tmp_path, "--seed", seed)
        weights.append((tmp_path / "mnist_cnn.pt").read_bytes())
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


SOURCE = (ROOT / "mnist_cnn.py").read_text(encoding="utf-8")
CALLED = "augment(images)  #"


@pytest.mark.skipif(CALLED not in SOURCE, reason="the augmentation was taken out")
def test_training_sees_distorted_images(digits, monkeypatch):
    """Images of zeros teach a layer's weights nothing."""
    monkeypatch.setattr(mnist_cnn, "augment", torch.zeros_like)
    model = nn.Linear(784, 10)
    before = model.weight.detach().clone()
    batches = [(digits[0].flatten(1), digits[1])]
    optimizer = torch.optim.SGD(model.parameters())
    mnist_cnn.train(model, batches, optimizer, Mock(), 1, 1, 20)
    assert model.weight.equal(before)


SCHEDULE = "return min(1, left / 0.7)"


@pytest.mark.skipif(
    SCHEDULE not in SOURCE or "scheduler.step()" not in SOURCE,
    reason="the file is not as it was: its schedule",
)
def test_schedule(small_mnist, tmp_path, call, monkeypatch):
    """The rate stays as it is for 30% of the steps, and is 0 at last; each batch is a step."""
    train, rates = mnist_cnn.train, []

    def train_and_note(model, loader, optimizer, scheduler, *arguments):
        def note(*_):
            rates.append(scheduler.get_last_lr()[0])

        hook = optimizer.register_step_pre_hook(note)
        result = train(model, loader, optimizer, scheduler, *arguments)
        hook.remove()
        note()
        return result

    monkeypatch.setattr(mnist_cnn, "train", train_and_note)
    call("--output-dir", tmp_path, "--epochs", 2)
    del rates[10]  # what the first epoch left is what the second starts with
    assert rates[:7] == [rates[0]] * 7
    shares = [rate / rates[0] for rate in rates[7:]]
    assert shares == pytest.approx([left / 14 for left in range(13, -1, -1)])


def execute(source, **names):
    """Run a program's text as a notebook's cell, or as the file __file__; return its names."""
    names["__name__"] = "cell"
    exec(source, names)
    return names


def test_constants_are_the_defaults(tmp_path, monkeypatch):
    """A relative folder is beside the file, and ~ the user's own."""
    monkeypatch.setenv("USERPROFILE" if os.name == "nt" else "HOME", str(tmp_path / "me"))
    values = {
        "EPOCHS": 77,
        "BATCH_SIZE": 33,
        "LR": 0.125,
        "SEED": 5,
        "LOG_INTERVAL": 11,
        "VALIDATE": True,
        "DEVICE": "cpu",
    }
    program = execute(SOURCE, __file__=str(tmp_path / "a.py"))
    program.update(values, OUTPUT_DIR="my outputs", run=vars)  # main returns what run is given
    expected = {name.lower(): value for name, value in values.items()}
    expected |= {"predict": None, "draw": False}
    expected["data_dir"] = tmp_path / "me/my data"
    expected["output_dir"] = tmp_path.resolve() / "my outputs"
    assert program["main"](["--data-dir=~/my data"]) == expected


def test_started_by_its_name(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["mnist_cnn.py", "--seed", "6"])
    assert mnist_cnn.parse_args().seed == 6


def test_notebook(monkeypatch):
    """A cell is not meant by the flags of what runs it, and has no file to be beside."""
    monkeypatch.setattr(sys, "argv", ["launcher.py", "--seed", "6"])
    program = execute(SOURCE)
    program.update(SEED=5, DATA_DIR="my data")
    args = program["parse_args"]()
    assert (args.seed, args.data_dir) == (5, Path("my data").resolve())


def test_uv_installs_what_pip_does():
    packages = re.search(r"# dependencies = \[(.*)\]", SOURCE)[1]
    assert re.findall(r'"(.+?)"', packages) == (ROOT / "requirements.txt").read_text().split()


LAYERS = r"self\.layers = nn\.Sequential\((.|\n)*?\n        \)\n"
ONE_LAYER = "self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"
FEW_IMAGES = "train_set = TensorDataset(*train_set[:1000])\n    return DataLoader"
RANDOM = "torch.utils.data.RandomSampler(train_set)"
BATCHES = f"torch.utils.data.BatchSampler({RANDOM}, batch_size, drop_last=False)"
WHOLE = f"DataLoader(train_set, sampler={BATCHES}, batch_size=None)"
SGD = "torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)"
WIDTHS = r"(?<!size )\b(16|32|64)\b"
# Of the README's tables: how often they change the story as it is, what is replaced, and by what.
EDITS = {
    "no backward": (1, r"loss\.backward\(\)", ""),
    "no zero_grad": (1, r"optimizer\.zero_grad\(\).*", ""),
    "first weights of 0": (1, r"std=0\.01", "std=0"),
    "one layer": (1, LAYERS, ONE_LAYER),
    "no ReLU": (4, r"nn\.ReLU\(\),", ""),
    "two softmaxes": (
        1,
        r"criterion\(logits, labels\)  #",
        "criterion(logits.softmax(1), labels)  #",
    ),
    "few images": (1, "return DataLoader", FEW_IMAGES),
    "whole batches": (1, r"DataLoader\(train_set.*?\)", WHOLE),
    "no augmentation": (1, r"images = augment\(images\)", ""),
    "no batch norm": (8, r"nn\.BatchNorm2d\(.*|, bias=False", ""),
    "constant rate": (1, r"scheduler\.step\(\)", ""),
    "SGD": (1, r"torch\.optim\.Adam\(.*", SGD),
    "double width": (18, WIDTHS, lambda match: str(int(match[0]) * 2)),
    "half width": (18, WIDTHS, lambda match: str(int(match[0]) // 2)),
}


@pytest.mark.parametrize("name", EDITS)
def test_edits_of_the_readme(name, small_mnist, tmp_path):
    """After each, the program still trains."""
    places, pattern, replacement = EDITS[name]
    story, mark, rest = SOURCE.partition("# THE STORY ENDS HERE")
    story, made = re.subn(pattern, replacement, story)
    if made != places:
        pytest.skip(f"the file is not as it was: {made} places to edit")
    program = execute(story + mark + rest, __file__=mnist_cnn.__file__)
    program["load_mnist"] = mnist_cnn.load_mnist
    program["main"]([*FLAGS, f"--output-dir={tmp_path}"])
    assert (tmp_path / "mnist_cnn.pt").exists()


# Own digits: from pictures of every kind, and from the pad.
PENS = [{"width": 6}, {"width": 40}, {"ink": "#ffffa8", "paper": "white"}]


@pytest.mark.parametrize("pen", PENS)
def test_pictures_and_strokes_look_alike_and_have_the_form_of_mnist(pen):
    for digit, strokes in STROKES.items():
        stroke = mnist_cnn.prepare_strokes(strokes)
        candidates = mnist_cnn.prepare(drawn(digit, **pen))
        assert likeness(candidates, stroke[None]).max() > 0.7
        for image in (stroke, *candidates):
            assert image.shape == (1, 28, 28)
            assert image.min() == 0
            assert 0.9 < image.max() <= 1
            for mass in (image.sum(dim=(0, 1)), image.sum(dim=(0, 2))):
                center = mass @ torch.arange(-13.5, 14) / mass.sum()
                assert center.abs() < 0.6


CHOSEN = [
    "photograph, a darker table",
    "photograph, a lighter table",
    "cut out tightly",
    "chalk, grainy",
    "photograph, in a box or a ring",
]


@pytest.mark.parametrize("kind", CHOSEN)
def test_pictures_are_read(kind, trained, digits):
    rng = random.Random(1)
    torch.manual_seed(1)
    pictures = [KINDS[kind](image, rng) for image in digits[0][:8]]
    assert share_right(trained[2], pictures, digits[1][:8]) > 0.6


def test_what_shows_no_digit_is_refused():
    torch.manual_seed(0)
    sizes = [(1, 1), (1, 5), (40, 40)]  # two specks, and a note on a desk
    filled = [F.pad(torch.ones(1, *size), [50] * 4) for size in sizes]
    light = torch.linspace(0.9, 0.5, 400).expand(3, 300, 400)  # on paper, from one side
    grainy = light + torch.randn(300, 400) / 10
    for picture in (torch.ones(3, 50, 60), torch.zeros(1, 1, 1), *filled, light, grainy):
        with pytest.raises(ValueError, match="empty"):
            mnist_cnn.prepare(picture)


# One with a head that is none, and one that ends in its first entry.
DAMAGED_EXIF = [b"Exif\0\0XX\0*\0\0\0\x08", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12"]


def save_in_many_formats(digit, folder):
    """Save a drawn digit as files of many kinds in an empty folder; return it, (1, H, W)."""
    grey = to_pil_image(drawn(digit, "black", "white")).convert("L")
    levels = pil_to_tensor(grey)[0].numpy()
    ink = Image.new("RGB", grey.size, "white")  # ink of any colour on transparent paper
    ink.putalpha(ImageOps.invert(grey))
    card = Image.new("RGBA", (300, 230))  # opaque, on transparent paper
    card.paste(grey, (90, 20))
    thin = Image.new("L", (4000, 3000), 255)  # a pen of two pixels on a large canvas
    for stroke in STROKES[digit]:
        points = [(1000 + 20 * x, 500 + 20 * y) for x, y in stroke]
        ImageDraw.Draw(thin).line(points, 0, 2)
    files = {
        "card.png": card,
        "thin.png": thin,
        "grey.jpg": grey,
        "cmyk.jpg": grey.convert("CMYK"),
        "opaque.png": grey.convert("LA"),
        "transparent.png": ink,
        "bits.png": grey.convert("1"),
        "palette.gif": grey.convert("P"),
        "large.bmp": grey.resize((2400, 1800)),
        "scan.png": Image.fromarray(levels.astype("uint16") * 12 + 300),  # above 255, as of 12 bits
    }
    for name, file in files.items():
        file.save(folder / name)
    turned = grey.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # what a turned camera writes: show it a quarter turn clockwise
    turned.save(folder / "turned.jpg", exif=exif)
    for number, damaged in enumerate(DAMAGED_EXIF):
        grey.save(folder / f"damaged{number}.jpg", exif=damaged)
    return pil_to_tensor(grey) / 255


def test_kinds_of_files(tmp_path, recwarn):
    expected = mnist_cnn.prepare(save_in_many_formats(4, tmp_path))
    for path in tmp_path.iterdir():
        picture = mnist_cnn.read_picture(path)
        assert picture.equal(picture.clamp(0, 1)), path
        assert likeness(mnist_cnn.prepare(picture), expected).max() > 0.8, path
    assert not recwarn.list


def test_few_levels():
    """As Pillow reads three channels of 16 bits, of which a scanner used 12."""
    expected = mnist_cnn.prepare_strokes(STROKES[4])
    candidates = mnist_cnn.prepare((15 * drawn(4)).floor() / 255)
    assert likeness(candidates, expected[None]).max() > 0.7


@pytest.mark.parametrize("first", [0.85, 0.95, 0.995])
def test_unsure(first, tmp_path, capsys):
    """The second choice is said unless it is rare, and that the network is unsure."""
    to_pil_image(drawn(7)).save(tmp_path / "7.png")
    probabilities = torch.zeros(10)
    probabilities[3], probabilities[5] = first, 1 - first

    def model(candidates):
        return probabilities.log().expand(len(candidates), 10)

    mnist_cnn.predict(model, [str(tmp_path / "7.png")], tmp_path)
    out = capsys.readouterr().out
    assert f": 3 ({first:.1%})" in out
    assert (f", or 5 ({1 - first:.1%})" in out) == (first < 0.99)
    assert (" - unsure" in out) == (first < 0.9)


@pytest.mark.filterwarnings("error")  # fonts may lack the letters of a name
def test_predict(earlier, call):
    """Each picture has its line, in order; one that can't be read has it on stderr."""
    to_pil_image(drawn(7)).save(earlier / "七.png")
    to_pil_image(drawn(4)).save(earlier / "$^$.png")
    to_pil_image(torch.cat([drawn(7), drawn(4)], dim=2)).save(earlier / "[七].png")
    (earlier / "half.png").write_bytes((earlier / "七.png").read_bytes()[:999])
    (earlier / "text.png").write_bytes(b"no picture")
    bad = ["half.png", "text.png", ".", "no.png", "x" * 300]
    paths = [earlier / name for name in ["七.png", "$*.png", "[七].png", *bad]]
    status, out, errors = call("--output-dir", earlier, "--predict", *paths)
    assert status == 1
    assert is_kept(earlier)
    good = re.findall(r"(.*): \d \(\d+\.\d%\)", out)
    assert good == [str(earlier / name) for name in ["七.png", "$^$.png", "[七].png"]]
    assert out.count("cut them apart") == 1
    for name, line in zip(bad, errors[:-1], strict=True):
        assert line.startswith(f"{earlier / name}: ")
    assert "5 of 8" in errors[-1]
    assert (earlier / "predictions.png").exists()
    assert f"Saved predictions.png in {earlier}\n" in out


README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("program", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_programs_of_the_readme(program, mnist, tmp_path, monkeypatch, capsys):
    """One prints a digit, one draws the maps of the first layer."""
    first = [type(layer) for layer in getattr(mnist_cnn.CNN(), "layers", [])][:4]
    if "layers[" in program and first != [nn.Conv2d, nn.MaxPool2d, nn.BatchNorm2d, nn.ReLU]:
        pytest.skip("it is about a network that starts like the one that ships")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / ".readme", ".readme")
    Path("outputs").mkdir()
    mnist_cnn.save(Path("outputs/mnist_cnn.pt"), mnist_cnn.CNN().state_dict())
    monkeypatch.setattr(mnist_cnn, "load_mnist", lambda data_dir: mnist)
    exec(program, {})
    assert Path("outputs/maps.png").exists() or capsys.readouterr().out.strip().isdigit()


MODEL = nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10))  # for the pad, any network will do


class Timer(TimerBase):
    """One that rings when it is told to, if it was started."""

    started = False

    def start(self):
        self.started = True

    def stop(self):
        self.started = False

    def ring(self):
        if self.started:
            self._on_timer()


@pytest.fixture
def pad():
    figure = pyplot.figure(figsize=(8.4, 4.4))
    figure.timer = Timer()
    figure.canvas.new_timer = Mock(return_value=figure.timer)
    mnist_cnn.draw_pad(figure, MODEL)
    figure.canvas.draw()  # as a window does before anyone can write in it
    yield figure
    pyplot.close(figure)


def see(pad):
    """Return the image that the network sees, and what is said of it."""
    return torch.tensor(pad.axes[1].images[0].get_array()), pad.axes[2].get_title()


def write(pad, stroke, size=0.6, corner=(0.2, 0.2), button=1, lift=True):
    """Write on the pad as a mouse does; return what is then seen and said."""
    points = torch.tensor(corner) + size * torch.tensor(stroke) / 100
    points = pad.axes[0].transData.transform(points).tolist()

    def send(name, point):
        event = MouseEvent(name, pad.canvas, *point, button)
        pad.canvas.callbacks.process(name, event)

    send("button_press_event", points[0])
    for point in points[1:]:
        send("motion_notify_event", point)
    if lift:
        send("button_release_event", points[-1])
    return see(pad)


def press(pad, key):
    """Press a key where the mouse is over the pad."""
    middle = pad.axes[0].transData.transform((0.5, 0.5))
    event = KeyEvent("key_press_event", pad.canvas, key, *middle)
    pad.canvas.callbacks.process("key_press_event", event)


def write_digit(pad, digit, **place):
    """Write a digit on an empty pad: it is seen and read like its strokes."""
    for stroke in STROKES[digit]:
        image, title = write(pad, stroke, **place)
    expected = mnist_cnn.prepare_strokes(STROKES[digit])
    assert likeness(image[None], expected) > 0.99
    _, probabilities = mnist_cnn.read_digit(MODEL, expected[None])
    assert probabilities.sum().item() == pytest.approx(1)
    assert title.startswith(f"{probabilities.argmax()} (")


def click_right(pad):
    write(pad, [(50, 50)], button=3)


@pytest.mark.parametrize("clear", [partial(press, key="c"), partial(press, key="C"), click_right])
def test_pad(pad, clear):
    write_digit(pad, 4, size=0.2, corner=(0.05, 0.75))
    clear(pad)
    image, title = see(pad)
    assert not image.any()
    assert not title
    write_digit(pad, 7, size=0.8, corner=(0.1, 0.1))


@pytest.mark.parametrize("click", [[(50, 50)], [(50, 50), (51, 50)]])
def test_pad_passes_over_a_click(pad, click):
    """As one that brings the window to the front, even if the pen trembles."""
    image, title = write(pad, click)
    assert not image.any()
    assert not title


def test_pad_reads_where_the_pen_rests(pad):
    """Also when it has left the pad, and come back."""
    write(pad, [(20, 50), (160, 50), (90, 90)], lift=False)
    pad.timer.ring()
    image, title = see(pad)
    assert image.any()
    assert title


def test_pad_keeps_up_with_the_pen(pad):
    """A window loses points while it draws the whole figure."""
    drawn = Mock()
    pad.canvas.mpl_connect("draw_event", drawn)
    write(pad, [(x, x * x / 100) for x in range(100)])
    assert 1 <= drawn.call_count <= 3


def test_window(earlier, call, monkeypatch):
    """A browser's is one, too. matplotlib's own keys and tools do nothing to the pad in it."""

    class Window(FigureManagerBase):
        _toolbar2_class = NavigationToolbar2
        show = Mock()

    monkeypatch.setattr(FigureCanvasAgg, "manager_class", Window)
    for _ in range(2):  # as a notebook's cell may be run again
        assert call("--output-dir", earlier, "--draw") == (None, "", [])
    assert Window.show.call_count == 2
    pad = pyplot.figure("mnist_cnn")
    assert len(pad.axes) == 3
    assert not pad.canvas.manager.toolbar
    for key in "fgklopqrs":
        press(pad, key)
    image, _ = write(pad, *STROKES[7])
    assert likeness(image[None], mnist_cnn.prepare_strokes(STROKES[7])) > 0.99
    assert pyplot.fignum_exists("mnist_cnn")
    pyplot.close(pad)


def test_pad_is_light_whatever_matplotlibrc_says(earlier, call, monkeypatch):
    def open_pad(model):
        figure = pyplot.figure()
        mnist_cnn.draw_pad(figure, model)
        return figure.axes[0]

    monkeypatch.setattr(mnist_cnn, "open_pad", open_pad)
    with style.context("dark_background"):
        pad, _, _ = call("--output-dir", earlier, "--draw")
    assert to_rgb(pad.get_facecolor()) == (1, 1, 1)
    assert to_rgb(pad.lines[0].get_color()) == (0, 0, 0)


# What goes wrong ends in one sentence, leaves earlier results as they are, and no half a file.
WRONG_FLAGS = [
    "--epochs 0",
    "--batch-size 0",
    "--lr 0",
    "--lr nan",
    "--lr inf",
    "--seed -1",
    "--seed 18446744073709551616",
    "--log-interval 0",
    "--device quantum",
    "--predict",
    "--epoch 3",
    "--draw --predict a.png",
]


@pytest.mark.parametrize("wrong", WRONG_FLAGS)
def test_wrong_flags(wrong, call):
    flags = wrong.split()
    status, out, lines = call(*flags)
    assert (status, out) == (2, "")
    assert flags[0] in lines[-1]


@pytest.mark.parametrize("folder", ["file/below", "closed"])
def test_folder_that_cannot_be(folder, tmp_path, call):
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "closed/mnist_cnn.trial").mkdir(parents=True)  # in the way of the trial file
    status, out, (line,) = call("--output-dir", tmp_path / folder)
    assert (status, out) == (1, "")
    assert str(tmp_path / folder) in line


def test_two_runs_in_one_folder(tmp_path):
    """A run that starts leaves alone what another has written, and not yet renamed."""
    (tmp_path / "mnist_cnn.part").touch()
    mnist_cnn.make_output_dir(tmp_path)
    assert os.listdir(tmp_path) == ["mnist_cnn.part"]


@pytest.mark.parametrize(("name", "value"), [("DEVICE", "tpu"), ("SEED", None)])
def test_constants_that_cannot_be(name, value, monkeypatch, capsys):
    monkeypatch.setattr(mnist_cnn, name, value)
    with pytest.raises(SystemExit, match="2"):
        mnist_cnn.parse_args([])
    assert f"--{name.lower()} must be" in capsys.readouterr().err


@pytest.mark.parametrize("other", [datasets.EMNIST, datasets.QMNIST, datasets.CIFAR10])
def test_data_of_another_form(other, tmp_path, call, monkeypatch):
    monkeypatch.setattr(mnist_cnn, "MNIST", other)
    status, out, (line,) = call("--output-dir", tmp_path)
    assert (status, out) == (1, "")
    assert other.__name__ in line


ARCHIVES = [name for name, _ in MNIST.resources]


@pytest.fixture
def raw(tmp_path):
    """The folder of the four archives, not unpacked, in a data folder."""
    unpacked = shutil.ignore_patterns("*-ubyte")
    raw = tmp_path / "data/MNIST/raw"
    return shutil.copytree(ROOT / "data/MNIST/raw", raw, ignore=unpacked)


def test_data_folder_is_only_read(mnist, raw):
    """Whatever lies unpacked beside the archives, such as half a file of a killed run."""
    for name in ARCHIVES:
        (raw / name).with_suffix("").write_bytes(b"half")
    before = {path: path.stat().st_mtime_ns for path in raw.iterdir()}
    for split, expected in zip(mnist_cnn.load_mnist(raw.parent.parent), mnist):
        assert split.data.equal(expected.data)
        assert split.targets.equal(expected.targets)
    assert {path: path.stat().st_mtime_ns for path in raw.iterdir()} == before


def test_damaged_data_and_no_network(raw, call, tmp_path, monkeypatch):
    shutil.copy(raw / ARCHIVES[3], raw / ARCHIVES[1])  # whole, but another
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])  # this address refuses
    status, _, (line,) = call("--data-dir", tmp_path / "data", "--output-dir", tmp_path)
    assert status == 1
    assert str(raw) in line
    assert ", ".join(ARCHIVES) in line


def start(monkeypatch, *flags):
    """Start the file as a user does, but in this process, which has imported torch already."""
    monkeypatch.setattr(sys, "argv", [str(ROOT / "mnist_cnn.py"), *FLAGS, *map(str, flags)])
    runpy.run_path(sys.argv[0], run_name="__main__")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), "130"),
        (BrokenPipeError(errno.EPIPE, "closed"), "^1$"),
        (OSError(errno.EINVAL, "closed, on Windows"), "^1$"),
    ],
)
def test_stopped_by_ctrl_c_or_a_closed_output(error, code, earlier, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Mock(spec=["write"], **{"write.side_effect": error}))
    with pytest.raises(SystemExit, match=code):
        start(monkeypatch, "--output-dir", earlier)
    (line,) = capsys.readouterr().err.splitlines()
    assert "Stopped before the end" in line
    assert sys.stdout is None or code == "130"  # Python would complain of what is left to print
    assert is_kept(earlier)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "odd"), OSError(errno.EINVAL, "odd", "a")])
def test_other_errors_show_their_traceback(error, earlier, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Mock(spec=["write"], **{"write.side_effect": error}))
    with pytest.raises(OSError, match="odd"):
        start(monkeypatch, "--output-dir", earlier)


def test_what_a_user_can_mend_ends_in_one_line(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit, match=r"^1$"):
        start(monkeypatch, "--output-dir", tmp_path / "no\nfolder", "--draw")
    assert "train first" in capsys.readouterr().err.splitlines()[0]


def test_name_that_the_output_cannot_show(earlier, monkeypatch):
    picture = earlier / "七.png"
    to_pil_image(drawn(7)).save(picture)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
    start(monkeypatch, "--output-dir", earlier, "--predict", picture)
    assert re.search(rb"\.png: \d \(", sys.stdout.buffer.getvalue())
    assert is_kept(earlier)


def test_no_window(earlier, call):
    """The back end of the tests, agg, has none; a computer without a display gets it, too."""
    status, out, (line,) = call("--output-dir", earlier, "--draw")
    assert (status, out) == (1, "")
    assert "window" in line
    assert "webagg" in line
    assert is_kept(earlier)


def test_a_file_that_cannot_be_replaced(small_mnist, tmp_path, call):
    """The weights come first, so that they are safe; what is finished stays, and is named."""
    (tmp_path / "loss_curves.png").mkdir()
    status, _, (line,) = call("--output-dir", tmp_path)
    assert status == 1
    assert str(tmp_path / "loss_curves.part") in line
    files = ["loss_curves.part", "loss_curves.png", "mnist_cnn.pt"]
    assert sorted(os.listdir(tmp_path)) == files
    Image.open(tmp_path / "loss_curves.part").close()


def test_ctrl_c_while_writing(tmp_path, monkeypatch):
    def write_bytes(path, content):
        path.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(KeyboardInterrupt):
        mnist_cnn.save(tmp_path / "weights.pt", {})
    assert not os.listdir(tmp_path)


def test_full_disk(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("there is no device that is always full")
    weights = tmp_path / "weights.pt"
    weights.write_text("earlier")
    (tmp_path / "weights.part").symlink_to("/dev/full")
    with pytest.raises(mnist_cnn.UserError, match="No space"):
        mnist_cnn.save(weights, {})
    assert weights.read_text() == "earlier"
    assert os.listdir(tmp_path) == ["weights.pt"]


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_loss_that_is_not_finite(loss, small_mnist, earlier, call, monkeypatch):
    """The network is of no use, so it isn't saved."""
    results = loss, 5, torch.zeros(20, 10)
    monkeypatch.setattr(mnist_cnn, "evaluate", lambda *arguments: results)
    status, _, (line,) = call("--output-dir", earlier)
    assert status == 1
    assert "not finite" in line
    assert is_kept(earlier)


class Trap:
    def __reduce__(self):
        return print, ("the trap was sprung",)


@pytest.mark.parametrize("held", [Trap(), [], {}, "a folder", None])
def test_weights_that_cannot_be_used(held, tmp_path, call):
    """They can't be opened, aren't the network's, or are code that runs where it is unpickled."""
    weights = tmp_path / "mnist_cnn.pt"
    if held == "a folder":
        weights.mkdir()
    elif held is not None:
        torch.save(held, weights)
    status, out, (line,) = call("--output-dir", tmp_path, "--predict", "a.png")
    assert (status, out) == (1, "")
    assert str(weights) in line
    assert "train first" in line
    assert ("the CNN as it is now" in line) == weights.is_file()


@pytest.mark.parametrize("flags", [[], ["--predict", "a.png"]])
def test_a_mistake_in_the_network_shows_its_traceback(flags, tmp_path, call, monkeypatch):
    monkeypatch.setattr(mnist_cnn, "CNN", Mock(side_effect=TypeError))
    with pytest.raises(TypeError):
        call("--output-dir", tmp_path, *flags)
