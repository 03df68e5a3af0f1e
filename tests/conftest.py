"""Start a real training before the tests run, so that it goes on beside them."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # pytest leaves it out with --import-mode=importlib
# Every flag but --output-dir, so that the program's constants may be edited; a later flag
# overrides an earlier.
FLAGS = ["--epochs=1", "--batch-size=100", "--lr=1e-3", "--seed=0", "--log-interval=20"]
FLAGS += ["--no-validate", "--device=cpu", f"--data-dir={ROOT / 'data'}"]
# The training and the tests would wait for each other's threads.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "agg"  # for the tests: they open no windows


def needs_training(item):
    return "trained" in item.fixturenames


def pytest_collection_modifyitems(items):
    """Leave for the end what needs the trained network."""
    items.sort(key=needs_training)


def pytest_collection_finish(session):
    """Start the training, if a test that was chosen needs it."""
    config = session.config
    if config.option.collectonly or not any(map(needs_training, session.items)):
        return
    folder = Path(tempfile.mkdtemp())
    (folder / "matplotlibrc").write_text("savefig.format: pdf")
    environment = os.environ | {"MPLBACKEND": "module://not_installed", "MATPLOTLIBRC": str(folder)}
    process = subprocess.Popen(
        [sys.executable, ROOT / "mnist_cnn.py", *FLAGS, "--validate", "--output-dir=made/by a run"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # The last one is called first.
    config.add_cleanup(lambda: shutil.rmtree(folder))
    config.add_cleanup(process.communicate)
    config.add_cleanup(process.kill)
    config.training = process, folder / "made/by a run"
