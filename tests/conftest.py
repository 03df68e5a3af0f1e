"""What several test files share: the flags of a run, ways to run the program, and real MNIST."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mnist_cnn

os.environ["PYTHONWARNINGS"] = "ignore:CUDA initialization"  # what torch says of an old driver; stderr is looked at
ROOT = Path(__file__).parent.parent
DATA = ROOT / "data"
# Every flag but --output-dir, so that the constants of the program may be edited; a later flag overrides an earlier.
FLAGS = "--epochs 1 --batch-size 100 --lr 1e-3 --seed 0 --log-interval 20 --no-validate --device cpu"


def flags(*more):
    """Return a command line of FLAGS and more."""
    return [*FLAGS.split(), "--data-dir", str(DATA), *map(str, more)]


def start_program(*more, **options):
    """Start the program as a user does."""
    command = [sys.executable, str(ROOT / "mnist_cnn.py"), *flags(*more)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def call(*more):
    """Run the program in this process; return what main returns, and what it prints to a stdout that is no file."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        result = mnist_cnn.main(flags(*more))
    return result, out.getvalue()


def refusal(capsys, *more, status=1):
    """Run the program in this process; return the lines on stderr with which it must end before the training."""
    with pytest.raises(SystemExit) as stop:
        mnist_cnn.main(flags(*more))
    code, (out, err) = stop.value.code, capsys.readouterr()
    assert code == status or status == 1 and isinstance(code, str)  # which Python prints on stderr, with status 1
    assert "images:" not in out
    return (err + code if isinstance(code, str) else err).splitlines()


@pytest.fixture(scope="session")
def mnist():
    return mnist_cnn.load_mnist(DATA)


@pytest.fixture(scope="session")
def digits(mnist):
    """Some test images, shape (N, 28, 28) in [0, 1], and their labels."""
    return mnist[1].data[:50].float() / 255, mnist[1].targets[:50]


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder that one run of one epoch filled, from another folder, and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    # The back end is one that a notebook leaves in the environment, and that is not installed here.
    environment = os.environ | {"MPLBACKEND": "module://not_installed"}
    run = start_program("--output-dir", "made/by the run", cwd=folder, env=environment)
    out, err = run.communicate()
    assert (run.returncode, err) == (0, "")
    return folder / "made" / "by the run", out


@pytest.fixture(scope="session")
def model(trained):
    """The network that this run trained."""
    return mnist_cnn.load_model(trained[0] / "mnist_cnn.pt")


@pytest.fixture
def small_mnist(monkeypatch, mnist):
    """Let the program see only the first 1,000 training images and 20 test images."""
    for split, count in zip(mnist, (1000, 20)):
        monkeypatch.setattr(split, "data", split.data[:count])
        monkeypatch.setattr(split, "targets", split.targets[:count])
    monkeypatch.setattr(mnist_cnn, "load_mnist", lambda data_dir: mnist)
