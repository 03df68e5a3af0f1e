"""A smoke test of the program: its training, reading one's own digits, and what goes wrong."""

import errno
import io
import os
import random
import re
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from matplotlib import pyplot, style
from matplotlib.backend_bases import KeyEvent
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import MNIST, FashionMNIST
from torchvision.transforms import ToTensor
from torchvision.transforms.functional import to_pil_image

import mnist_cnn

from .conftest import FLAGS, ROOT
from .photographs import KINDS, STROKES, drawn, save_in_many_formats, share_right_untouched, write


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
        try:
            result, sentence = mnist_cnn.main([*FLAGS, *map(str, flags)]), ""
        except SystemExit as stop:
            # Python prints a sentence that one holds, and ends with status 1.
            result, sentence = (1, stop.code) if isinstance(stop.code, str) else (stop.code, "")
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

    def head(split, count):
        return SimpleNamespace(data=split.data[:count], targets=split.targets[:count])

    small = head(mnist[0], 1000), head(mnist[1], 20)
    monkeypatch.setattr(mnist_cnn, "load_mnist", lambda data_dir: small)


@pytest.fixture
def earlier(tmp_path):
    """A folder with an earlier run's weights: they stay as they are, beside pictures alone."""
    weights = tmp_path / "mnist_cnn.pt"
    mnist_cnn.save(weights, mnist_cnn.CNN().state_dict())
    content = weights.read_bytes()
    yield tmp_path
    assert weights.read_bytes() == content
    assert {path.suffix for path in tmp_path.iterdir()} <= {
        ".pt",
        ".png",
    }


# The training program: from the data to the files that it leaves behind.
SOURCE = (ROOT / "mnist_cnn.py").read_text(encoding="utf-8")
WIDTHS = r"(?<!size )\b(16|32|64)\b"
# Of the README's table: how often they change the story as it is, what is replaced, and by what.
EDITS = {
    "no augmentation": (1, r"images = augment\(images\)", "pass"),
    "no dropout": (1, r"nn\.Dropout\(.*", ""),
    "no batch norm": (8, r"nn\.BatchNorm2d\(.*|, bias=False", ""),
    "usual first weights": (1, r"nn\.init\.normal_\(.*", "pass"),
    "constant rate": (1, r"scheduler\.step\(\).*", "pass"),
    "SGD": (
        1,
        r"torch\.optim\.Adam\(.*",
        "torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)",
    ),
    "half width": (18, WIDTHS, lambda match: str(int(match[0]) // 2)),
    "double width": (18, WIDTHS, lambda match: str(int(match[0]) * 2)),
    "strides": (
        4,
        r"nn\.MaxPool2d\(.*|((16|16, 32), kernel_size=.)",
        lambda m: f"{m[1]}, stride=2" if m[1] else "",
    ),
}


def reported(out, split):
    """Return what is printed last: loss, accuracy in per cent, how many are right, and of all."""
    line = rf"{split}: average loss (\d+\.\d+), accuracy (\d+\.\d+)% \((\d+)/(\d+)\)"
    loss, accuracy, correct, total = re.search(line, out).groups()
    assert f"{split.lower()} loss {loss}, accuracy {accuracy}%" in out  # the line of the last epoch
    return float(loss), float(accuracy), int(correct), int(total)


def test_smoke(trained, mnist):
    """A user's run learns, and what it prints, saves and plots fits together."""
    outputs, out, model = trained
    head = "device: cpu\nimages: 50,000 for training, 10,000 for the validation\nparameters: "
    assert out.startswith(f"{head}{sum(parameter.numel() for parameter in model.parameters()):,}\n")
    batches = re.findall(r"epoch 1/1 .*batch +(\d+)/500 .*loss \d+\.\d+", out)
    assert [int(batch) for batch in batches] == list(range(20, 501, 20))
    loss, accuracy, correct, total = reported(out, "Validation")
    assert float(re.search(r"training loss \S+ accuracy (\d+\.\d+)%", out)[1]) > 50
    assert total == 10_000
    assert accuracy == correct / 100 >= 85
    for name in ("loss_curves.png", "mistakes.png"):
        with Image.open(outputs / name) as image:  # a blank one has a single colour
            assert name in out
            assert image.format == "PNG"
            assert len(image.convert("RGB").getcolors(2**24)) > 50
    loader = mnist_cnn.make_loaders(mnist, 100, "cpu", validate=True)[1]
    assert mnist_cnn.evaluate(model, loader)[:2] == (
        pytest.approx(loss, abs=1e-3),
        pytest.approx(correct, abs=2),
    )
    logits = model(next(iter(loader))[0])
    for sums in (
        logits.sum(dim=1),
        logits.exp().sum(dim=1),
    ):  # with softmax or log-softmax at the end, all are one
        assert sums.shape == (100,)
        assert not torch.allclose(sums, torch.ones(100), atol=1e-3)


def test_loaders(mnist):
    """Images are as ToTensor makes them, for testing in order, for training in new ones."""
    train_loader, test_loader = mnist_cnn.make_loaders(mnist, 96, "cpu")
    images, labels = (torch.cat(parts) for parts in zip(*test_loader))
    assert torch.equal(images, torch.stack([ToTensor()(image.numpy()) for image in mnist[1].data]))
    assert torch.equal(labels, mnist[1].targets)
    assert len(test_loader) == 105
    orders = [torch.cat([labels for _, labels in train_loader]) for _ in range(2)]
    for order, other in ((orders[0], orders[1]), (orders[0], mnist[0].targets)):
        assert not torch.equal(order, other)
        assert torch.equal(order.bincount(), other.bincount())
    held_out = mnist_cnn.make_loaders(mnist, 96, "cpu", validate=True)
    labels = [torch.cat([labels for _, labels in loader]) for loader in held_out]
    assert torch.equal(labels[0].bincount(), mnist[0].targets[:50_000].bincount())
    assert torch.equal(labels[1], mnist[0].targets[50_000:])


def test_train_and_evaluate(digits, monkeypatch):
    """With the same gradient, three small steps go three times as far as one (added up: six)."""
    monkeypatch.setattr(mnist_cnn, "augment", lambda images: images, raising=False)
    model, moved = nn.Sequential(nn.Flatten(), nn.Dropout(0), nn.Linear(784, 10)), []
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, 1)
    for steps in (1, 3):
        before = model[2].weight.detach().clone()
        losses, accuracies = mnist_cnn.train(
            model.eval(), [digits] * steps, optimizer, scheduler, 1, 1, 20
        )
        moved.append((model[2].weight.detach() - before).norm())
    assert model.training
    assert 0 < 2.9 * moved[0] < moved[1] < 3.1 * moved[0]
    model[1].p = 0.5  # which evaluate must switch off
    loss, correct, probabilities = mnist_cnn.evaluate(model, DataLoader(TensorDataset(*digits), 32))
    logits = model.eval()(
        digits[0]
    ).detach()  # of all images at once, and not in batches of 32 and 18
    assert loss == pytest.approx(mnist_cnn.criterion(logits, digits[1]).item(), rel=1e-5)
    assert correct == (logits.argmax(dim=1) == digits[1]).sum()
    assert torch.allclose(probabilities, logits.softmax(dim=1), atol=1e-5)
    assert losses.tolist() == pytest.approx([loss] * 3, rel=0.01)
    assert accuracies.tolist() == pytest.approx(
        [2 * correct] * 3, abs=4.1
    )  # of 50 images, two may have changed


@pytest.mark.skipif(not hasattr(mnist_cnn, "augment"), reason="the augmentation was taken out")
def test_augment(digits):
    """Each image is changed in another way; on average it is like its original, not flipped."""
    changed = mnist_cnn.augment(digits[0][:, None].repeat(40, 1, 1, 1)).view(40, 50, 784)
    assert not torch.equal(changed[0], changed[1])
    average, originals = (
        F.normalize(images) for images in (changed.mean(dim=0), digits[0].flatten(1))
    )
    assert ((average @ originals.T).argmax(dim=1) == torch.arange(50)).float().mean() > 0.5


@pytest.mark.parametrize("device", ["cpu", *["cuda"] * torch.cuda.is_available()])
def test_flags_decide(device, small_mnist, tmp_path, call, monkeypatch):
    for name in ("plot_curves", "plot_mistakes"):  # which take a second
        monkeypatch.setattr(mnist_cnn, name, lambda *arguments: {})
    runs, flags = [], ["--device", device, "--epochs", 2, "--batch-size", 64, "--log-interval", 7]
    for seed in (2**64 - 1, 2**64 - 1, 3):
        accuracy, out, _ = call("--output-dir", tmp_path, *flags, "--seed", seed)
        _, said, correct, total = reported(out, "Test")
        assert type(accuracy) is float
        assert accuracy == pytest.approx(said) == 100 * correct / total
        assert re.findall(r"epoch (\d)/2 .*batch +(\d+)/16\b", out) == [
            (e, b) for e in "12" for b in ("7", "14")
        ]
        runs.append((re.findall(r"batch.* loss .*", out), (tmp_path / "mnist_cnn.pt").read_bytes()))
    assert runs[0] == runs[1] or device == "cuda"  # there, the last digits may differ
    assert runs[0][0] != runs[2][0]
    assert runs[0][1] != runs[2][1]


@pytest.mark.parametrize(
    ("started", "file", "seed"),
    [("a.py", "a.py", 6), ("b/link.py", "b/link.py", 6), ("c.py", "", 5)],
)
def test_constants_are_the_defaults_and_folders_lie_beside_the_script(
    started, file, seed, tmp_path, monkeypatch
):
    """A notebook's cell has the current folder, and is not meant by the flags of what runs it."""
    monkeypatch.setenv("USERPROFILE" if os.name == "nt" else "HOME", str(tmp_path / "me"))
    monkeypatch.chdir(tmp_path)
    if started == "b/link.py":
        if os.name == "nt":
            pytest.skip("there, links need an administrator")
        Path("b").mkdir()
        Path(started).symlink_to(tmp_path / "a.py")
    monkeypatch.setattr(sys, "argv", [started, "--seed", "6"])
    exec(SOURCE, cell := {"__name__": "cell"} | ({"__file__": file} if file else {}))
    values = {
        "EPOCHS": 77,
        "BATCH_SIZE": 33,
        "LR": 0.125,
        "LOG_INTERVAL": 11,
        "VALIDATE": True,
        "DEVICE": "cpu",
    }
    folders = {"DATA_DIR": "my data", "OUTPUT_DIR": "~/my outputs"}
    cell.update(values | folders | {"SEED": 5, "run": vars})
    expected = {name.lower(): value for name, value in values.items()}
    expected |= {"seed": seed, "predict": None, "draw": False}
    expected["data_dir"] = (tmp_path.resolve() if file else Path()) / "my data"
    assert (
        cell["main"]()
        == vars(cell["parse_args"]())
        == expected | {"output_dir": tmp_path / "me" / "my outputs"}
    )
    assert cell["parse_args"](["--output-dir=~/runs"]).output_dir == tmp_path / "me" / "runs"


def test_requirements_of_the_file():
    header = re.search(
        r"^# /// script\n(# .*\n)*?# dependencies = \[(.*)\]\n(# .*\n)*?# ///$",
        SOURCE,
        re.MULTILINE,
    )
    assert (
        re.findall(r'"(.*?)"', header[2])
        == (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    )


@pytest.mark.parametrize("name", EDITS)
def test_edits_of_the_readme(name, small_mnist, tmp_path, capsys):
    story, mark, rest = SOURCE.partition("# THE STORY ENDS HERE")
    story, made = re.subn(*EDITS[name][1:], story)
    if made != EDITS[name][0]:
        pytest.skip(f"the file is not as it was: {made} places to edit")
    exec(story + mark + rest, cell := {"__name__": "cell", "__file__": mnist_cnn.__file__})
    assert cell["CNN"]()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    if name == "half width":  # one is run for all
        cell["load_mnist"] = mnist_cnn.load_mnist
        cell["main"](
            [*FLAGS, "--output-dir", str(tmp_path), "--log-interval", "1", "--epochs", "4"]
        )
        first, *_, last = re.findall(r"training loss (\d\.\d+)", out := capsys.readouterr().out)
        losses = [float(loss) for loss in re.findall(r"batch +\d+/10  loss (\S+)", out)]
        assert float(last) == pytest.approx(sum(losses[30:]) / 10, abs=1e-3)
        assert float(last) < 0.7 * float(first)


# Own digits: from pictures of every kind, and from the pad.
CHOSEN = (
    "photograph, a darker table",
    "photograph, a lighter table",
    "cut out tightly",
    "chalk, grainy",
)
PENS = {
    "thin": {"width": 6},
    "broad": {"width": 40},
    "yellow": {"ink": "#ffffa8", "paper": "white"},
}
SNIPPETS = re.findall(
    r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
)


def likeness(images, others):
    """Return the cosine similarities of images, (N, ...), and others, (M, ...): shape (N, M)."""
    return F.normalize(images.flatten(1)) @ F.normalize(others.flatten(1)).T


@pytest.fixture(scope="session")
def looks(digits):
    """The looks of eight or five digits in pictures of each kind, (N, 1, 28, 28) each."""
    rng = random.Random(1)
    torch.manual_seed(1)
    pictures = {kind: [KINDS[kind](image, rng) for image in digits[0][:8]] for kind in CHOSEN}
    pictures |= {pen: [drawn(digit, **PENS[pen]) for digit in STROKES] for pen in PENS}
    return {kind: [mnist_cnn.prepare(picture) for picture in pictures[kind]] for kind in pictures}


def test_looks_of_pictures_and_strokes_are_alike_and_have_the_form_of_mnist(looks):
    strokes = torch.stack([mnist_cnn.prepare_strokes(strokes) for strokes in STROKES.values()])
    images = [*strokes]
    for pen in PENS:
        for seen, stroke in zip(looks[pen], strokes):
            assert likeness(seen, stroke[None]).max() > 0.7, pen
            images += seen
    for image in images:
        assert image.shape == (1, 28, 28)
        assert image.min() == 0
        assert 0.9 < image.max() <= 1
        for mass in (image.sum(dim=(0, 1)), image.sum(dim=(0, 2))):  # its centre is in the middle
            assert (mass / mass.sum() @ torch.arange(-13.5, 14)).abs() < 0.6


def test_own_digits_are_read_like_untouched_ones(looks, trained, digits):
    least = share_right_untouched(trained[2], *digits) - 0.3
    for kind in looks:
        probabilities = [mnist_cnn.read_digit(trained[2], seen)[1] for seen in looks[kind]]
        read = torch.stack(probabilities).argmax(dim=1)
        answers = torch.tensor([*STROKES]) if kind in PENS else digits[1][:8]
        assert (read == answers).float().mean() >= least, kind


def test_what_shows_no_digit_is_refused():
    torch.manual_seed(0)
    light = 0.9 - 0.4 * torch.linspace(0, 1, 400).expand(3, 300, 400)  # on paper, from one side
    specks = [F.pad(torch.ones(1, 1, width), [50] * 4) for width in (1, 5)]
    for picture in (
        torch.ones(3, 50, 60),
        torch.zeros(1, 1, 1),
        *specks,
        light,
        light + torch.randn(300, 400) / 10,
    ):
        with pytest.raises(ValueError, match="empty"):
            mnist_cnn.prepare(picture)


def test_kinds_of_files(tmp_path, recwarn):
    levels, paths = save_in_many_formats(3, tmp_path)
    expected = mnist_cnn.prepare(levels[None] / 255)
    for path in paths:
        picture = mnist_cnn.read_picture(path)
        assert picture.dtype == torch.float32, path
        assert picture.equal(picture.clamp(0, 1)), path
        assert likeness(mnist_cnn.prepare(picture), expected).max() > 0.9, path
    assert not recwarn.list


@pytest.mark.filterwarnings("error")  # fonts may lack the letters of a name
@pytest.mark.parametrize(
    ("shares", "reading"),
    [
        (
            {6: 0.395, 0: 0.3, 2: 0.2, 5: 0.105},
            "6 (39.5%), or 0 (30.0%) - unsure: see predictions.png",
        ),
        ({6: 0.996, 0: 0.004}, "6 (99.6%)"),
    ],
)
def test_predict(shares, reading, earlier, call, monkeypatch):
    """Each picture has its line: how its surest look is read, in order, or on stderr."""

    def model(looks):
        logits = torch.full((len(looks), 10), -99.0)
        logits[-1, list(shares)] = torch.tensor([*shares.values()]).log()
        return logits

    monkeypatch.setattr(mnist_cnn, "load_model", lambda path: model)
    pictures = {
        "七.png": drawn(7),
        "$^$.png": drawn(3),
        "[73].png": torch.cat([drawn(7), drawn(3)], dim=2),
    }
    for name, picture in {
        **pictures,
        "7.png": drawn(7),
        "blank.png": torch.ones(1, 50, 50),
    }.items():
        to_pil_image(picture).save(earlier / name)
    (earlier / "half.png").write_bytes((earlier / "$^$.png").read_bytes()[:999])
    (earlier / "text.png").write_bytes(b"no picture")
    names = [
        "七.png",
        "$*.png",
        "[73].png",
        "blank.png",
        "half.png",
        "text.png",
        ".",
        "no.png",
        "x" * 300,
    ]
    status, out, lines = call(
        "--output-dir", earlier, "--predict", *[earlier / name for name in names]
    )
    good = [f"{earlier / name}: {reading}" for name in pictures]
    assert status == 1
    assert out.splitlines() == [
        *good[:2],
        f"{good[2]} - more than one digit? cut them apart",
    ]
    for line, name in zip(lines, names[3:], strict=True):
        assert line.startswith(f"{earlier / name}: ")
        assert ("empty" if name == "blank.png" else "JPEG or PNG") in line
    with Image.open(earlier / "predictions.png") as image:
        assert len(image.convert("RGB").getcolors(2**24)) > 50


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_programs_of_the_readme(snippet, mnist, tmp_path, monkeypatch, capsys):
    first = [type(layer) for layer in getattr(mnist_cnn.CNN(), "layers", [])][:4]
    if "layers[" in snippet and first != [nn.Conv2d, nn.MaxPool2d, nn.BatchNorm2d, nn.ReLU]:
        pytest.skip("it is about a network that starts like the one that ships")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / ".readme", ".readme")
    Path("outputs").mkdir()
    mnist_cnn.save(Path("outputs/mnist_cnn.pt"), mnist_cnn.CNN().state_dict())
    monkeypatch.setattr(mnist_cnn, "load_mnist", lambda data_dir: mnist)
    exec(snippet, {})
    assert Path("outputs/maps.png").exists() or capsys.readouterr().out.strip() in list(
        "0123456789"
    )


@pytest.mark.parametrize(
    ("digit", "size", "corner"), [(4, 0.2, (0.05, 0.75)), (7, 0.8, (0.1, 0.1))]
)
def test_pad(digit, size, corner):
    """The image and its reading are the same wherever the digit is written, until cleared."""
    model = nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10))  # any network will do
    pad = pyplot.figure(figsize=(11, 5.5), layout="constrained")
    mnist_cnn.draw_pad(pad, model)
    pad.canvas.draw()  # as a window does before anyone can write in it
    expected = mnist_cnn.prepare_strokes(STROKES[digit])
    said = mnist_cnn.read_digit(model, expected[None])[1].argmax()
    press = KeyEvent("key_press_event", pad.canvas, "c")
    for clear in (
        lambda: pad.canvas.callbacks.process(press.name, press),
        lambda: write(pad, [(50, 50)], button=3),
    ):
        *_, (image, title) = [write(pad, stroke, size, corner) for stroke in STROKES[digit]]
        assert likeness(image[None], expected) > 0.99
        assert title.startswith(f"{said} (")
        clear()
        assert not pad.axes[1].images[0].get_array().any()
        assert not pad.axes[2].get_title()
    for stroke in (
        [(50, 50)],
        [(20, 50), (90, 50), (160, 50), (160, 80), (90, 90)],
    ):  # a click; off the pad and back
        image, title = write(pad, stroke)
        assert image.any()
        assert title


# What goes wrong ends in one sentence, leaves earlier results as they are, and no half a file.
ARCHIVES = [name for name, _ in MNIST.resources]
WRONG_FLAGS = [
    "--epochs 0",
    "--epochs 1.5",
    "--batch-size 0",
    "--lr 0",
    "--lr nan",
    "--lr inf",
    "--seed -1",
    "--log-interval 0",
    "--device quantum",
    "--device ",
    "--predict",
    "--epoch 3",
    "--unknown 1",
    "--draw --predict a.png",
]
TRAP = b"cbuiltins\nprint\n(S'the trap was sprung'\ntR."  # runs code where it is unpickled


@pytest.mark.parametrize("wrong", WRONG_FLAGS)
def test_wrong_flags(wrong, call):
    status, out, lines = call(*wrong.split(" "))
    assert (status, out) == (2, "")
    assert wrong.split(" ")[0] in lines[-1]


@pytest.mark.parametrize(
    ("flag", "where"),
    [
        ("--data-dir", "file"),
        ("--data-dir", "x" * 300),
        ("--output-dir", "file/below"),
        ("--output-dir", "x" * 300),
        ("--output-dir", "closed"),
    ],
)
def test_folder_that_cannot_be(flag, where, tmp_path, call, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    if where == "closed":  # to root, no folder is
        monkeypatch.setattr(
            Path, "touch", Mock(side_effect=PermissionError(errno.EACCES, "Permission denied"))
        )
    status, out, (line,) = call("--output-dir", tmp_path / "out", flag, tmp_path / where)
    assert (status, out) == (1, "")
    assert str(tmp_path / where) in line


@pytest.fixture
def raw(tmp_path):  # the folder of the four archives, not unpacked, in a data folder
    raw = tmp_path / "data" / "MNIST" / "raw"
    return shutil.copytree(
        ROOT / "data" / "MNIST" / "raw", raw, ignore=shutil.ignore_patterns("*-ubyte")
    )


def test_data_folder_is_only_read(mnist, raw):
    """Whatever lies unpacked beside the archives: zeros, half a file of a killed run, nothing."""
    for name, content in zip(ARCHIVES, (bytes(47040016), b"\0\0\x08", b"", b"")):
        (raw / name).with_suffix("").write_bytes(content)
    raw.chmod(0o500)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in raw.iterdir()}
    for split, expected in zip(mnist_cnn.load_mnist(raw.parent.parent), mnist):
        assert split.data.equal(expected.data)
        assert split.targets.equal(expected.targets)
    assert before == {
        path: (path.stat().st_mtime_ns, path.stat().st_size) for path in raw.iterdir()
    }
    raw.chmod(0o700)  # so that it can be removed


@pytest.mark.parametrize(
    ("dataset", "content"), [(MNIST, b""), (MNIST, b"<html>404</html>"), (FashionMNIST, b"")]
)
def test_missing_or_damaged_data_and_no_network(dataset, content, raw, call, tmp_path, monkeypatch):
    (raw / ARCHIVES[2]).write_bytes(content)
    monkeypatch.setattr(dataset, "mirrors", ["http://127.0.0.1:9/"])  # this address refuses
    monkeypatch.setattr(mnist_cnn, "MNIST", dataset)
    status, _, (line,) = call("--data-dir", tmp_path / "data", "--output-dir", tmp_path)
    assert status == 1
    assert str(tmp_path / "data" / dataset.__name__ / "raw") in line
    assert all(name in line for name in ARCHIVES)


def start(monkeypatch, *flags):
    """Start the file as a user does, but in this process, which has imported torch already."""
    monkeypatch.setattr(sys, "argv", [str(ROOT / "mnist_cnn.py"), *FLAGS, *map(str, flags)])
    runpy.run_path(sys.argv[0], run_name="__main__")


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, 130), (BrokenPipeError, 1)])
def test_stopped_by_ctrl_c_or_a_closed_output(error, status, earlier, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Mock(**{"flush.side_effect": error()}))
    with pytest.raises(SystemExit) as stop:
        start(monkeypatch, "--output-dir", earlier)
    said = stop.value.code if status == 1 else capsys.readouterr().err
    assert "Stopped before the end" in said
    assert (stop.value.code == 130) == (status == 130)


def test_names_that_the_output_cannot_show(earlier, monkeypatch):
    names = ["七.png", *([os.fsdecode(b"\xff7.png")] if sys.platform == "linux" else [])]
    for name in names:
        to_pil_image(drawn(7)).save(str(earlier / name))
    monkeypatch.chdir(earlier)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
    start(monkeypatch, "--output-dir", ".", "--predict", *names)
    assert len(re.findall(rb"\.png: \d \(", sys.stdout.buffer.getvalue())) == len(names)
    assert Path("predictions.png").exists()


def test_pad_in_a_dark_style_and_while_the_pen_is_down():
    model = nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10))
    with style.context("dark_background"):
        pad = pyplot.figure(figsize=(11, 5.5))
        mnist_cnn.draw_pad(pad, model)
    assert pad.axes[0].get_facecolor()[:3] == (1, 1, 1)
    image, title = write(pad, STROKES[7][0], lift=False)
    assert image.any()
    assert title


def test_no_window(earlier, call, monkeypatch):
    for figure in (
        pyplot.figure,
        Mock(side_effect=RuntimeError("no\ndisplay")),
    ):  # the first: agg has no windows
        monkeypatch.setattr(pyplot, "figure", figure)
        status, out, (line,) = call("--output-dir", earlier, "--draw")
        assert (status, out) == (1, "")
        assert "window" in line


def test_a_file_that_cannot_be_written(small_mnist, tmp_path, call):
    """The weights come first, so that they are safe; no half-written file is left."""
    (tmp_path / "loss_curves.png").mkdir()
    status, _, (line,) = call("--output-dir", tmp_path)
    assert status == 1
    assert str(tmp_path / "loss_curves.png") in line
    assert sorted(os.listdir(tmp_path)) == ["loss_curves.png", "mnist_cnn.pt"]


def test_full_disk(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("there is no device that is always full")
    (tmp_path / "weights.part").symlink_to("/dev/full")
    (tmp_path / "weights.pt").write_text("earlier")
    with pytest.raises(SystemExit, match="No space"):
        mnist_cnn.save(tmp_path / "weights.pt", {})
    assert os.listdir(tmp_path) == ["weights.pt"]
    assert (tmp_path / "weights.pt").read_text() == "earlier"


@pytest.mark.parametrize(
    ("name", "function", "error", "words"),
    [
        (
            "evaluate",
            lambda *arguments: (float("inf"), 5, torch.zeros(20, 10)),
            SystemExit,
            "not finite",
        ),
        (
            "CNN",
            lambda: torch.nn.Linear(5, 10),
            RuntimeError,
            "shape",
        ),  # a sentence would hide where an edit fails
    ],
)
def test_failure_in_the_training(name, function, error, words, small_mnist, earlier, monkeypatch):
    monkeypatch.setattr(mnist_cnn, name, function)
    with pytest.raises(error, match=words):
        mnist_cnn.main([*FLAGS, "--output-dir", str(earlier)])


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (None, "No such file"),
        (b"no weights", "damaged"),
        (TRAP, "damaged"),
        ([1, 2], "damaged"),
        ({}, "Missing key"),
    ],
)
def test_weights_that_cannot_be_used(held, words, tmp_path, call):
    weights = tmp_path / "mnist_cnn.pt"
    if held is not None:
        weights.write_bytes(held) if isinstance(held, bytes) else torch.save(held, weights)
    status, out, (line,) = call("--output-dir", tmp_path, "--predict", "a.png")
    assert (status, out) == (1, "")
    assert str(weights) in line
    assert "train first" in line
    assert words in line
