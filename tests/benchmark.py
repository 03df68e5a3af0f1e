"""Measure the program, and PyTorch's official MNIST example beside it. Run by hand:

.venv/bin/python -m tests.benchmark --epochs 1 5 --seeds 10 --example-seeds 3
"""

import argparse
import io
import re
import tempfile
import time
from contextlib import redirect_stdout
from statistics import mean, median, stdev

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

import mnist_cnn

DATA_DIR = mnist_cnn.parse_args([]).data_dir
DEVICE = mnist_cnn.DEVICE


def run_program(seed, epochs):
    """Return the accuracy in per cent, and the seconds of each epoch with its test."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()) as out:
        accuracy = mnist_cnn.main(["--seed", seed, "--epochs", epochs, "--output-dir", folder])
    return accuracy, [float(number) for number in re.findall(r"(\S+) s\n", out.getvalue())]


def example_loader(train):
    """MNIST as the example feeds it: decoded and normalized image by image."""
    normalize = transforms.Normalize((0.1307,), (0.3081,))
    transform = transforms.Compose([transforms.ToTensor(), normalize])
    dataset = datasets.MNIST(DATA_DIR, train, transform, download=True)
    return DataLoader(dataset, batch_size=64, shuffle=train)


def move(loader):
    """Yield a loader's batches, moved to the device."""
    for images, labels in loader:
        yield images.to(DEVICE), labels.to(DEVICE)


def run_example(seed, epochs):
    """Return what run_program does, of the official example."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(9216, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, 10),
    ).to(DEVICE)
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    loader, test_loader = example_loader(train=True), example_loader(train=False)
    seconds = []
    for _ in range(epochs):
        start = time.perf_counter()
        model.train()
        for images, labels in move(loader):
            optimizer.zero_grad()
            mnist_cnn.criterion(model(images), labels).backward()
            optimizer.step()
        scheduler.step()
        _, accuracy = mnist_cnn.summarize(mnist_cnn.evaluate(model, move(test_loader)))
        seconds.append(time.perf_counter() - start)
    return accuracy, seconds


def show(name, runs):
    """Print mean, standard deviation and the lowest of runs' accuracies, and an epoch's time."""
    accuracies, seconds = zip(*runs)
    spread = stdev(accuracies) if len(runs) > 1 else 0
    epoch = median(one for each in seconds for one in each)
    print(
        f"{name}: {mean(accuracies):.3f} ± {spread:.3f}% (lowest {min(accuracies):.2f}%), "
        f"median of an epoch with its test {epoch:.2f} s",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--epochs", type=int, nargs="+", default=[1, 5], help="how long the runs are")
    add("--seeds", type=int, default=3, help="runs of the program")
    add("--example-seeds", type=int, default=0, help="runs of the example, by turns with them")
    args = parser.parse_args()
    print(f"{DEVICE}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}")
    for epochs in args.epochs:
        runs, example_runs = [], []
        for seed in range(args.seeds):
            runs.append(run_program(seed, epochs))
            if seed < args.example_seeds:
                example_runs.append(run_example(seed, epochs))
        show(f"mnist_cnn, {epochs} epochs, {args.seeds} seeds", runs)
        if example_runs:
            show(f"The example, {epochs} epochs, {args.example_seeds} seeds", example_runs)


if __name__ == "__main__":
    main()
