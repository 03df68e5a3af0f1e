"""Measure the program against PyTorch's official MNIST example. Run by hand, on a quiet machine:

.venv/bin/python -m tests.benchmark --rounds 3 --seeds 10 --example-seeds 10
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
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

import mnist_cnn


def example_network():
    """The network of the official example."""
    return nn.Sequential(
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
    )


def example_loader(data_dir, train):
    """MNIST as the official example feeds it: decoded and normalized image by image."""
    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    )
    return DataLoader(
        datasets.MNIST(data_dir, train, transform, download=True), batch_size=64, shuffle=train
    )


def example_epoch(model, loader, optimizer, device):
    """Train the official example for an epoch."""
    model.train()
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        F.nll_loss(F.log_softmax(model(images), dim=1), labels).backward()
        optimizer.step()


@torch.inference_mode()
def example_accuracy(model, loader, device):
    """Return the percentage of the test images that the official example's network reads right."""
    model.eval()
    right = sum(
        (model(images.to(device)).argmax(dim=1).cpu() == labels).sum() for images, labels in loader
    )
    return 100 * right.item() / len(loader.dataset)


def seconds(work, device):
    """Return how long work takes, with all that it has left to a GPU."""
    start = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def loading_seconds(loader, device):
    """Return how long all batches of a loader take."""
    return seconds(lambda: sum(1 for _ in loader), device)


def compare_training(rounds, data_dir, device):
    """Train both programs by turns, an epoch each; print how long each takes."""
    loader, example = example_loader(data_dir, True), example_network().to(device)
    optimizer = torch.optim.Adadelta(example.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    train, training, loading = mnist_cnn.train, [], []

    def train_by_turns(model, our_loader, *others):
        results = []
        ours = seconds(lambda: results.append(train(model, our_loader, *others)), device)
        training.append(
            (ours, seconds(lambda: example_epoch(example, loader, optimizer, device), device))
        )
        loading.append((loading_seconds(our_loader, device), loading_seconds(loader, device)))
        scheduler.step()
        return results[0]

    mnist_cnn.train = (
        train_by_turns  # so that what is measured is what main does, whatever it trains
    )
    with tempfile.TemporaryDirectory() as outputs:
        flags = {
            "--epochs": rounds,
            "--device": device,
            "--data-dir": data_dir,
            "--output-dir": outputs,
        }
        mnist_cnn.main(
            [str(word) for flag in flags.items() for word in flag] + ["--log-interval", "1000000"]
        )
    mnist_cnn.train = train
    print(f"\n| {rounds} rounds | mnist_cnn, median | official example, median | median ratio |")
    print("| --- | --- | --- | --- |")
    for name, rows in (("training, one epoch", training), ("loading alone, one epoch", loading)):
        ours, theirs = (statistics.median(column) for column in zip(*rows))
        ratio = statistics.median(their / our for our, their in rows)
        print(f"| {name} | {ours:.2f} s | {theirs:.2f} s | 1 / {ratio:.1f} |")


def summary(values):
    """Return accuracies in per cent in words: mean, standard deviation, the lowest, and each."""
    spread = f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}%"
    each = " ".join(f"{value:.2f}" for value in values)
    return f"accuracy {spread} (lowest {min(values):.2f}%: {each})"


def measure_example(seeds, epochs, data_dir, device):
    """Print the official example's test accuracy after each of so many epochs, of so many seeds."""
    loader, test_loader = example_loader(data_dir, True), example_loader(data_dir, False)
    rows = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        example = example_network().to(device)
        optimizer = torch.optim.Adadelta(example.parameters(), lr=1.0)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
        row = []
        for _ in range(epochs):
            example_epoch(example, loader, optimizer, device)
            scheduler.step()
            row.append(example_accuracy(example, test_loader, device))
        rows.append(row)
    for epoch, accuracies in enumerate(zip(*rows), start=1):
        print(f"The example after epoch {epoch}, {seeds} seeds: {summary(accuracies)}", flush=True)


def run(arguments):
    """Run python to its end; return its output, the seconds, and its peak memory in MB."""
    # By a process of its own: a child's peak counts the memory of what it was forked from.
    watch = "import resource as r, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
    watch += "print(r.getrusage(r.RUSAGE_CHILDREN).ru_maxrss)"
    start = time.perf_counter()
    command = [sys.executable, "-c", watch, sys.executable, *map(str, arguments)]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    peak = int(output.splitlines()[-1]) / (1024**2 if sys.platform == "darwin" else 1024)
    return output, time.perf_counter() - start, peak


def measure_accuracy(seeds, epochs, data_dir, device):
    """Print the test accuracy of so many seeds, the seconds of a whole run and its peak memory."""
    rows = []
    with tempfile.TemporaryDirectory() as outputs:
        for seed in range(seeds):
            flags = ["--epochs", epochs, "--lr", 1e-3, "--seed", seed, "--device", device]
            folders = ["--data-dir", data_dir, "--output-dir", outputs]
            out, duration, memory = run([mnist_cnn.__file__, *flags, *folders])
            loss, accuracy = re.search(
                r"Test: average loss ([\d.]+), accuracy ([\d.]+)%", out
            ).groups()
            rows.append((float(accuracy), float(loss), duration, memory))
    accuracies, losses, durations, memories = zip(*rows)
    importing = run(["-c", "import torch, torchvision, matplotlib"])[2]
    print(f"--epochs {epochs} --lr 1e-3, {seeds} seeds: {summary(accuracies)}")
    print(f"  loss {statistics.mean(losses):.4f}, {statistics.median(durations):.0f} s a run")
    peak = max(memories)
    extra = f"{peak - importing:.0f} MB more than the imports"
    print(f"  peak memory {peak:.0f} MB, {extra}", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="epochs of each side; 0 leaves them out"
    )
    parser.add_argument(
        "--seeds", type=int, default=0, help="runs for the accuracy; 0 leaves them out"
    )
    parser.add_argument(
        "--epochs", type=int, nargs="+", default=[5, 1], help="how long these runs are"
    )
    parser.add_argument("--example-seeds", type=int, default=0, help="the same for the example")
    parser.add_argument("--example-epochs", type=int, default=5, help="how long its runs are")
    parser.add_argument("--data-dir", default=mnist_cnn.parse_args([]).data_dir)
    parser.add_argument("--device", default=mnist_cnn.DEVICE)
    args = parser.parse_args()
    threads = f"{torch.get_num_threads()} CPU threads"
    where = torch.cuda.get_device_name() if args.device == "cuda" else threads
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    print(f"{platform.machine()}, {where}, {versions}")
    if args.rounds:
        compare_training(args.rounds, args.data_dir, args.device)
    for epochs in args.epochs if args.seeds > 1 else ():
        measure_accuracy(args.seeds, epochs, args.data_dir, args.device)
    if args.example_seeds > 1:
        measure_example(args.example_seeds, args.example_epochs, args.data_dir, args.device)


if __name__ == "__main__":
    main()
