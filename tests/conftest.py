"""What several test files share: the flags of a run, the trained program's run, and pieces of real MNIST."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mnist_cnn

ROOT = Path(__file__).parent.parent
DATA = ROOT / "data"
# Every flag, so that the constants of the program may be edited; a later flag overrides an earlier one.
FLAGS = f"--epochs 1 --batch-size 100 --lr 1e-3 --seed 0 --log-interval 20 --no-validate --no-show --data-dir {DATA}"


def flags(*more):
    """Return a command line of FLAGS and more."""
    given, directory = FLAGS.split(" --data-dir ")
    return [*given.split(), "--data-dir", directory, *map(str, more)]


def run_program(*more, cwd=ROOT):
    """Run the program as a user does; return its exit status and its two outputs."""
    command = [sys.executable, str(ROOT / "mnist_cnn.py"), *flags(*more)]
    # The back end is one that a notebook leaves in the environment, and that is not installed here.
    environment = {**os.environ, "MPLBACKEND": "module://not_installed"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="session")
def mnist():
    """The training and the test set."""
    return mnist_cnn.load_mnist(DATA)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """One run of one epoch from the command line, from another folder, and the folder that it filled."""
    outputs = tmp_path_factory.mktemp("run")
    return run_program("--output-dir", "made/by the run", cwd=outputs), outputs / "made" / "by the run"


@pytest.fixture
def small_mnist(monkeypatch, mnist):
    """Let the program see only the first 1,000 training images and 50 test images."""
    for split, count in zip(mnist, (1000, 50)):
        monkeypatch.setattr(split, "data", split.data[:count])
        monkeypatch.setattr(split, "targets", split.targets[:count])
    monkeypatch.setattr(mnist_cnn, "load_mnist", lambda data_dir: mnist)
