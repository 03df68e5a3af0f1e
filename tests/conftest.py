"""What several test files share: the trained program's run, and small pieces of real MNIST."""

import subprocess
import sys
from pathlib import Path

import pytest

import mnist_cnn

ROOT = Path(__file__).parent.parent


def run_program(*flags):
    """Run the program as a user does; return its exit status and its two outputs."""
    command = [sys.executable, "mnist_cnn.py", *map(str, flags)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="session")
def mnist():
    """The training and the test set."""
    return mnist_cnn.load_mnist(ROOT / "data")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """One run of one epoch from the command line, and the folder that it filled."""
    outputs = tmp_path_factory.mktemp("run") / "made" / "by the run"
    return run_program("--epochs", 1, "--output-dir", outputs), outputs


@pytest.fixture
def small_mnist(monkeypatch, mnist):
    """Let the program see only the first 1,500 training images and 500 test images."""
    for split, count in zip(mnist, (1500, 500)):
        monkeypatch.setattr(split, "data", split.data[:count])
        monkeypatch.setattr(split, "targets", split.targets[:count])
    monkeypatch.setattr(mnist_cnn, "load_mnist", lambda data_dir: mnist)
