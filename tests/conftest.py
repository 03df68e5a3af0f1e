"""Start a real training before the tests are collected, so that it goes on beside them."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Every flag but --output-dir, so that the program's constants may be edited; a later flag
# overrides an earlier.
FLAGS = [
    "--epochs",
    "1",
    "--batch-size",
    "100",
    "--lr",
    "1e-3",
    "--seed",
    "0",
    "--log-interval",
    "20",
    "--no-validate",
    "--device",
    "cpu",
]
FLAGS += ["--data-dir", str(ROOT / "data")]
os.environ["OMP_NUM_THREADS"] = (
    "1"  # for torch: the training and the tests would wait for each other's threads
)
os.environ["MPLBACKEND"] = "agg"  # for the tests: they open no windows


def pytest_configure(config):
    """Start before this process imports torch, too, which takes five seconds."""
    folder = Path(tempfile.mkdtemp())
    (folder / "matplotlibrc").write_text("savefig.format: pdf")
    environment = os.environ | {"MPLBACKEND": "module://not_installed", "MATPLOTLIBRC": str(folder)}
    command = [
        sys.executable,
        str(ROOT / "mnist_cnn.py"),
        *FLAGS,
        "--validate",
        "--output-dir",
        "made/by the run",
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=folder, env=environment, **pipes)
    for cleanup in (
        lambda: shutil.rmtree(folder),
        process.communicate,
        process.kill,
    ):  # the last one is called first
        config.add_cleanup(cleanup)
    config.training = process, folder / "made" / "by the run"


def pytest_collection_modifyitems(items):
    items.sort(
        key=lambda item: "trained" in item.fixturenames
    )  # the others are tested while the network is trained
