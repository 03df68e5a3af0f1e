"""Measure the program against PyTorch's official MNIST example. Run by hand, on a quiet machine:

.venv/bin/python -m tests.benchmark --rounds 5 --seeds 10
"""

import argparse
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms

import mnist_cnn

IMPORTS = "import torch, torchvision, matplotlib"


def example_network():
    """The network of the official example."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25),
        nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10),
    )  # fmt: skip


def example_loader(data_dir):
    """The training set as the official example feeds it: decoded and normalized image by image."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    return DataLoader(torchvision.datasets.MNIST(data_dir, transform=transform), batch_size=64, shuffle=True)


def example_epoch(model, loader, optimizer, device):
    """Train the official example for an epoch."""
    model.train()
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        F.nll_loss(F.log_softmax(model(images), dim=1), labels).backward()
        optimizer.step()
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def example_accuracy(model, data_dir, device):
    """Return the percentage of the test images that the official example's network reads right."""
    test_set = torchvision.datasets.MNIST(data_dir, train=False)
    images = ((test_set.data.float() / 255 - 0.1307) / 0.3081).unsqueeze(1).to(device)
    model.eval()
    with torch.inference_mode():
        digits = torch.cat([model(batch).argmax(dim=1) for batch in images.split(1000)])
    return 100 * (digits.cpu() == test_set.targets).float().mean().item()


def compare_training(rounds, data_dir, device):
    """Print the seconds that an epoch and that its batches alone take, ours and the example's in turn."""
    loader, _ = mnist_cnn.make_loaders(data_dir, 100, device)
    model = mnist_cnn.CNN().to(device, memory_format=torch.channels_last)
    optimizer, scheduler = mnist_cnn.make_training(model, 1e-3, rounds * len(loader))
    peer_loader, peer = example_loader(data_dir), example_network().to(device)
    peer_optimizer = torch.optim.Adadelta(peer.parameters(), lr=1.0)
    peer_scheduler = torch.optim.lr_scheduler.StepLR(peer_optimizer, step_size=1, gamma=0.7)
    peer_accuracies = []

    def train_example():
        example_epoch(peer, peer_loader, peer_optimizer, device)

    def train_ours():
        mnist_cnn.train(model, loader, optimizer, scheduler, 1, 1, log_interval=10**9)

    def load(batches):
        return sum(len(labels) for _, labels in batches)

    print(f"\n| {rounds} rounds | mnist_cnn, median | official example, median | median of the rounds' ratios |")
    print("| --- | --- | --- | --- |")
    rows = []
    for _ in range(rounds):
        rows.append((seconds(train_ours), seconds(train_example)))
        peer_scheduler.step()
        peer_accuracies.append(example_accuracy(peer, data_dir, device))
    epoch = print_row("training, one epoch", rows)
    loading = print_row(
        "loading, one epoch",
        [(seconds(lambda: load(loader)), seconds(lambda: load(peer_loader))) for _ in range(rounds)],
    )
    print(
        f"\nLoading takes {100 * loading / epoch:.1f}% of an epoch; {60_000 / epoch:,.0f} images a second in training."
    )
    each = ", ".join(f"{accuracy:.2f}%" for accuracy in peer_accuracies)
    print(f"The example's test accuracy after each of its epochs, one seed: {each}", flush=True)


def print_row(name, rows):
    """Print medians of the seconds of ours and theirs, and of their ratio; return the median of ours."""
    ours, theirs = (statistics.median(column) for column in zip(*rows))
    ratio = statistics.median(their / our for our, their in rows)
    print(f"| {name} | {ours:.2f} s | {theirs:.2f} s | 1 / {ratio:.1f} |", flush=True)
    return ours


def run(arguments):
    """Run python to its end; return its output, the seconds, and its peak memory in MB."""
    # By a process of its own: a child's peak counts the memory of the process that it was forked from.
    watch = "import resource as r, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
    watch += "print(r.getrusage(r.RUSAGE_CHILDREN).ru_maxrss)"
    start = time.perf_counter()
    command = [sys.executable, "-c", watch, sys.executable, *arguments]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    peak = int(output.splitlines()[-1]) / (1024**2 if sys.platform == "darwin" else 1024)
    return output, time.perf_counter() - start, peak


def measure_accuracy(seeds, epochs, data_dir):
    """Print the test accuracy of so many seeds, the seconds of a whole run and its peak memory."""
    accuracies, losses, durations, memories = [], [], [], []
    with tempfile.TemporaryDirectory() as outputs:
        for seed in range(seeds):
            flags = ["--epochs", epochs, "--lr", 1e-3, "--seed", seed, "--data-dir", data_dir, "--output-dir", outputs]
            out, duration, memory = run([mnist_cnn.__file__, *map(str, flags)])
            loss, accuracy = re.search(r"Test: average loss ([\d.]+), accuracy ([\d.]+)%", out).groups()
            for values, value in zip((accuracies, losses, durations, memories), (accuracy, loss, duration, memory)):
                values.append(float(value))
    importing = run(["-c", IMPORTS])[2]
    print(
        f"--epochs {epochs} --lr 1e-3, seeds 0 to {seeds - 1}: accuracy {statistics.mean(accuracies):.3f} ± "
        f"{statistics.stdev(accuracies):.3f}% (minimum {min(accuracies):.2f}%), loss {statistics.mean(losses):.4f}, "
        f"{statistics.median(durations):.0f} s a run, peak memory {max(memories):.0f} MB, "
        f"{max(memories) - importing:.0f} MB more than the imports.\n"
        f"  each: {' '.join(f'{accuracy:.2f}' for accuracy in accuracies)}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="epochs of each side")
    parser.add_argument("--seeds", type=int, default=0, help="headline runs; 0 leaves them out")
    parser.add_argument("--data-dir", default=mnist_cnn.parse_args([]).data_dir)
    parser.add_argument("--device", default=mnist_cnn.DEVICE)
    args = parser.parse_args()
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{platform.machine()}, {where}, Python {platform.python_version()}, torch {torch.__version__}")
    compare_training(args.rounds, args.data_dir, args.device)
    for epochs in (5, 1) if args.seeds > 1 else ():
        measure_accuracy(args.seeds, epochs, args.data_dir)


if __name__ == "__main__":
    main()
