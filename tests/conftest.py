"""What the tests share: MNIST, a way to call the program, and a training that runs beside them."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))  # --import-mode=importlib leaves it out
# The training and the tests would wait for each other's threads.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "agg"  # for the tests: they open no windows

from matplotlib.figure import Figure

import mnist_cnn

ROOT = Path(mnist_cnn.__file__).parent
# Every flag but --output-dir, so that the program's constants may be edited; a later flag
# overrides an earlier.
FLAGS = ["--epochs=1", "--batch-size=100", "--lr=1e-3", "--seed=0", "--log-interval=20"]
FLAGS += ["--device=cpu", f"--data-dir={ROOT / 'data'}"]


def main(*flags):
    """Run the program here; return its result."""
    return mnist_cnn.main([*FLAGS, *map(str, flags)])


def needs_training(item):
    return "trained" in item.fixturenames


def pytest_collection_modifyitems(items):
    """Leave for the end what needs the trained network."""
    items.sort(key=needs_training)


@pytest.fixture(scope="session", autouse=True)
def training(request, tmp_path_factory):
    """Start the program as a user does, if a test needs it, and let it run beside the others."""
    if not any(map(needs_training, request.session.items)):
        yield
        return
    folder = tmp_path_factory.mktemp("training")
    (folder / "matplotlibrc").write_text("savefig.format: pdf")
    environment = {"MPLBACKEND": "module://not_installed", "MATPLOTLIBRC": str(folder)}
    with subprocess.Popen(
        [sys.executable, ROOT / "mnist_cnn.py", *FLAGS, "--validate", "--output-dir=made/by a run"],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process, folder / "made/by a run"
        process.kill()


@pytest.fixture(scope="session")
def trained(training):
    """The folder that the training filled, what it printed, and the network."""
    process, outputs = training
    out, err = process.communicate()
    assert process.returncode == 0, err
    return outputs, out, mnist_cnn.load_model(outputs / "mnist_cnn.pt")


@pytest.fixture(scope="session")
def mnist():
    return mnist_cnn.load_mnist(ROOT / "data")


@pytest.fixture(scope="session")
def digits(mnist):
    """Some test images, shape (50, 1, 28, 28) in [0, 1], and their labels."""
    return mnist[1].data[:50, None] / 255, mnist[1].targets[:50]


@pytest.fixture
def quick(monkeypatch, mnist):
    """Let the program see 250 training images and 20 test images, and draw no plots."""
    small = [copy.copy(split) for split in mnist]
    for split, count in zip(small, (250, 20)):
        split.data = split.data[:count]
        split.targets = split.targets[:count]
    monkeypatch.setattr(mnist_cnn, "load_mnist", lambda data_dir: small)
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)


@pytest.fixture
def weights(tmp_path):
    """The file of an earlier run's weights, in a folder of its own."""
    path = tmp_path / "mnist_cnn.pt"
    mnist_cnn.save(path, mnist_cnn.CNN().state_dict())
    return path
