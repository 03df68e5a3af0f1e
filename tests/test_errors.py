"""What goes wrong ends in one sentence, leaves earlier results as they are, and no half a file."""

import errno
import io
import math
import os
import re
import runpy
import shutil
import sys
import tempfile
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torchvision import datasets
from torchvision.datasets import MNIST
from torchvision.transforms.functional import to_pil_image

import mnist_cnn

from .conftest import FLAGS, ROOT, main
from .photographs import drawn


def fails(words, *flags):
    """Run the program with flags: it has to end with words in its sentence."""
    with pytest.raises(mnist_cnn.UserError, match=re.escape(words)):
        main(*flags)


# Flags and folders.
WRONG_FLAGS = [
    "--epochs 0",
    "--batch-size 0",
    "--lr 0",
    "--lr nan",
    "--lr inf",
    "--log-interval 0",
    "--device quantum",
    *["--device cuda"] * (not torch.cuda.is_available()),
    "--predict",
    "--no-such-flag",
]


@pytest.mark.parametrize("wrong", WRONG_FLAGS)
def test_wrong_flags(wrong, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(*wrong.split())
    assert wrong.split()[0] in capsys.readouterr().err.splitlines()[-1]


def test_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    fails(str(tmp_path / "file/below"), "--output-dir", tmp_path / "file/below")
    assert not capsys.readouterr().out  # it is said before the training


def test_folder_that_cannot_be_written_in(tmp_path, monkeypatch, capsys):
    closed = Mock(side_effect=PermissionError(errno.EACCES, "closed"))
    monkeypatch.setattr(tempfile, "TemporaryFile", closed)
    fails(f"Can't write in {tmp_path}", "--output-dir", tmp_path)
    assert closed.call_args.kwargs == {"dir": tmp_path}
    assert not capsys.readouterr().out


# Data.
ARCHIVES = [name for name, _ in MNIST.resources]


@pytest.fixture
def raw(tmp_path):
    """The folder of the four archives, in a data folder, and beside each what a kill has left."""
    raw = tmp_path / "data/MNIST/raw"
    raw.mkdir(parents=True)
    for name in ARCHIVES:
        shutil.copy(ROOT / "data/MNIST/raw" / name, raw)
        (raw / name).with_suffix("").write_bytes(b"half")
    return raw


def test_data_folder_is_only_read(mnist, raw):
    before = {path: path.stat().st_mtime_ns for path in raw.iterdir()}
    for split, expected in zip(mnist_cnn.load_mnist(raw.parent.parent), mnist):
        assert split.data.equal(expected.data)
        assert split.targets.equal(expected.targets)
    assert {path: path.stat().st_mtime_ns for path in raw.iterdir()} == before


@pytest.mark.parametrize("other", [MNIST, datasets.FashionMNIST, datasets.KMNIST])
def test_damaged_data_and_no_network(other, raw, tmp_path, monkeypatch):
    """Each of these sets has a folder of its own, to which torchvision tries to download it."""
    monkeypatch.setattr(mnist_cnn, "MNIST", other)
    (raw / ARCHIVES[1]).write_bytes(b"half")
    monkeypatch.setattr(other, "mirrors", ["http://127.0.0.1:9/"])  # this address refuses
    raw = tmp_path / "data" / other.__name__ / "raw"
    advice = f"put {', '.join(ARCHIVES)} in {raw}"
    fails(advice, "--data-dir", tmp_path / "data", "--output-dir", tmp_path)
    assert raw.exists()


# Weights and network.
class Trap:
    def __reduce__(self):
        return print, ("the trap was sprung",)


@pytest.mark.parametrize("held", [Trap(), [], {}])
def test_weights_that_cannot_be_used(held, weights, capsys):
    """They aren't the network's, or are code that runs where it is unpickled."""
    torch.save(held, weights)
    fails(f"Can't load {weights} into CNN", "--output-dir", weights.parent, "--predict", "a.png")
    assert not capsys.readouterr().out


@pytest.mark.parametrize("flags", [["--predict", "a.png"], ["--draw"]])
def test_no_weights(flags, tmp_path):
    fails("No such file", "--output-dir", tmp_path, *flags)


@pytest.mark.parametrize("flags", [[], ["--predict", "a.png"]])
def test_a_mistake_in_the_network_shows_its_traceback(flags, weights, quick, monkeypatch):
    monkeypatch.setattr(mnist_cnn, "CNN", Mock(side_effect=TypeError))
    with pytest.raises(TypeError):
        main("--output-dir", weights.parent, *flags)


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_loss_that_is_not_finite(loss, quick, tmp_path, monkeypatch):
    """The network is of no use, so it isn't saved."""
    monkeypatch.setattr(mnist_cnn, "evaluate", lambda *_: torch.tensor([[loss, 5, 20]]))
    fails("not finite", "--output-dir", tmp_path)
    assert not os.listdir(tmp_path)


# Files.
@pytest.mark.parametrize("error", [KeyboardInterrupt("No space"), OSError(28, "No space")])
def test_stopped_while_writing(error, weights, monkeypatch):
    earlier = weights.read_bytes()

    def write_half(path, content):
        assert str(os.getpid()) in path.name  # two runs have unfinished files of their own
        path.touch()
        raise error

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises((KeyboardInterrupt, mnist_cnn.UserError), match="No space"):
        mnist_cnn.save(weights, {})
    assert os.listdir(weights.parent) == [weights.name]
    assert weights.read_bytes() == earlier


def test_a_file_that_cannot_be_replaced(quick, tmp_path):
    """The weights come first, so that they are safe."""
    (tmp_path / "loss_curves.png").mkdir()
    fails(f"Can't write {tmp_path / 'loss_curves.png'}", "--output-dir", tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["loss_curves.png", "mnist_cnn.pt"]


# How the program ends.
@pytest.fixture
def start(weights, monkeypatch):
    """Read a picture as a user does it, but in this process, which has imported torch already."""
    picture = weights.with_name("七.png")
    to_pil_image(drawn(7)).save(picture)

    def start(stdout, folder=weights.parent):
        flags = [f"--output-dir={folder}", f"--predict={picture}"]
        monkeypatch.setattr(sys, "argv", [mnist_cnn.__file__, *FLAGS, *flags])
        monkeypatch.setattr(sys, "stdout", stdout)
        runpy.run_path(mnist_cnn.__file__, run_name="__main__")

    return start


@pytest.mark.parametrize("error", [KeyboardInterrupt, BrokenPipeError])
def test_stopped_by_ctrl_c_or_a_closed_output(error, start):
    with pytest.raises(SystemExit, match="Stopped before the end"):  # Python prints it on stderr
        start(Mock(spec=["write"], write=Mock(side_effect=error)))
    assert sys.stdout is None  # Python would complain of what is left to print


def test_what_a_user_can_mend_ends_in_one_line(start):
    with pytest.raises(SystemExit, match=r"^Can't load no folder.*train first.*$"):
        start(sys.stdout, "no\nfolder")


def test_name_that_the_output_cannot_show(start):
    output = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    start(output)
    assert re.search(rb"\.png: \d \(", output.buffer.getvalue())
