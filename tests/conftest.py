"""What several test files share: ways to run the program, one real training, and real MNIST."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import mnist_cnn

ROOT = Path(__file__).parent.parent
# Every flag but --output-dir, so that the constants of the program may be edited; a later flag overrides an earlier.
FLAGS = "--epochs 1 --batch-size 100 --lr 1e-3 --seed 0 --log-interval 20 --no-validate --device cpu".split()
FLAGS += ["--data-dir", str(ROOT / "data")]
torch.set_num_threads(1)  # a training runs beside the tests, and more threads than cores would wait for each other
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.pop("PYTHONUNBUFFERED", None)  # it would hide what becomes of lines that are still in a buffer

def start_program(*more, **options):
    command = [sys.executable, str(ROOT / "mnist_cnn.py"), *FLAGS, *map(str, more)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)

def call(capsys, *more):
    """Run the program in this process; return its result or status, what it prints, and its lines on stderr."""
    try:
        result, code = mnist_cnn.main([*FLAGS, *map(str, more)]), ""
    except SystemExit as stop:  # Python prints one with a sentence, and ends with status 1
        result, code = (1, stop.code) if isinstance(stop.code, str) else (stop.code, "")
    out, err = capsys.readouterr()
    return result, out, (err + code).splitlines()

def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: "trained" in item.fixturenames)  # the others are tested while the network is trained

@pytest.fixture(scope="session", autouse=True)
def training(tmp_path_factory):
    """A real run of one epoch, from another folder, with a plotting back end that is not installed."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "matplotlibrc").write_text("savefig.format: pdf")
    environment = os.environ | {"MPLBACKEND": "module://not_installed", "MATPLOTLIBRC": str(folder)}
    with start_program("--output-dir", "made/by the run", cwd=folder, env=environment) as process:
        yield process, folder / "made" / "by the run"
        process.kill()

@pytest.fixture(scope="session")
def trained(training):
    """The folder that this run filled, what it printed, and the network."""
    out, err = training[0].communicate()
    assert training[0].returncode == 0 and "Traceback" not in err, err
    return training[1], out, mnist_cnn.load_model(training[1] / "mnist_cnn.pt")

@pytest.fixture(scope="session")
def mnist():
    return mnist_cnn.load_mnist(ROOT / "data")

@pytest.fixture(scope="session")
def digits(mnist):  # some test images, shape (N, 28, 28) in [0, 1], and their labels
    return mnist[1].data[:50].float() / 255, mnist[1].targets[:50]

@pytest.fixture
def small_mnist(monkeypatch, mnist):  # what the program sees: the first 1,000 training images and 20 test images
    small = [SimpleNamespace(data=split.data[:n], targets=split.targets[:n]) for split, n in zip(mnist, (1000, 20))]
    monkeypatch.setattr(mnist_cnn, "load_mnist", lambda data_dir: small)
