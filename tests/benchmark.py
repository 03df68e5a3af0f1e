"""Measure the program against PyTorch's official MNIST example. Run by hand, on a quiet machine:

.venv/bin/python -m tests.benchmark --rounds 3 --seeds 10 --example-seeds 10
"""

import argparse
import platform
import statistics
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


def example_loader(data_dir, train, device):
    """MNIST as the official example feeds it: decoded and normalized image by image."""
    beside_gpu = {"num_workers": 1, "pin_memory": True} if device == "cuda" else {}
    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    )
    dataset = datasets.MNIST(data_dir, train, transform, download=True)
    return DataLoader(dataset, batch_size=64, shuffle=train, **beside_gpu)


def make_example(device):
    """Return the official example's network, optimizer and schedule."""
    model = example_network().to(device)
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)


def example_epoch(model, optimizer, scheduler, loader, device):
    """Train the official example for an epoch."""
    model.train()
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        F.nll_loss(F.log_softmax(model(images), dim=1), labels).backward()
        optimizer.step()
    scheduler.step()


@torch.inference_mode()
def example_accuracy(model, loader, device):
    """Return the percentage of the test images that the official example's network reads right."""
    model.eval()
    right = 0
    for images, labels in loader:
        right += (model(images.to(device)).argmax(dim=1).cpu() == labels).sum().item()
    return 100 * right / len(loader.dataset)


def run_program(*flags):
    """Call the program's main with flags; return the accuracy in per cent."""
    words = map(str, flags)
    with tempfile.TemporaryDirectory() as outputs:
        return mnist_cnn.main([*words, "--log-interval=1000000", "--output-dir", outputs])


def seconds(work, *arguments):
    """Return how long a call takes, with all that it has left to a GPU, and what it returns."""
    start = time.perf_counter()
    result = work(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def compare_training(rounds, data_dir, device):
    """Train both programs by turns, an epoch each; print how long each takes."""
    loader = example_loader(data_dir, True, device)
    example = make_example(device)
    train, times = mnist_cnn.train, []

    def train_by_turns(*arguments):
        ours, result = seconds(train, *arguments)
        theirs, _ = seconds(example_epoch, *example, loader, device)
        times.append((ours, theirs))
        return result

    mnist_cnn.train = train_by_turns  # what main does is measured, whatever it trains
    run_program("--epochs", rounds, "--device", device, "--data-dir", data_dir)
    mnist_cnn.train = train
    ours, theirs = (statistics.median(column) for column in zip(*times))
    ratio = statistics.median(their / our for our, their in times)
    print(f"\nMedians of {rounds} epochs by turns: mnist_cnn {ours:.2f} s, example {theirs:.2f} s")
    print(f"Median of their ratios: {ratio:.1f}")


def summary(values):
    """Return accuracies in per cent in words: mean, standard deviation, the lowest, and each."""
    if len(values) == 1:
        return f"accuracy {values[0]:.2f}%"
    spread = f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}%"
    each = " ".join(f"{value:.2f}" for value in values)
    return f"accuracy {spread} (lowest {min(values):.2f}%: {each})"


def measure_program(seeds, epochs, data_dir, device):
    """Print the program's test accuracy after so many epochs, of so many seeds."""
    flags = ["--epochs", epochs, "--device", device, "--data-dir", data_dir]
    accuracies = [run_program("--seed", seed, *flags) for seed in range(seeds)]
    print(f"mnist_cnn, {epochs} epochs, {seeds} seeds: {summary(accuracies)}", flush=True)


def measure_example(seeds, epochs, data_dir, device):
    """Print the official example's test accuracy after each of so many epochs, of so many seeds."""
    loader = example_loader(data_dir, True, device)
    test_loader = example_loader(data_dir, False, device)
    accuracies = [[] for _ in range(epochs)]
    for seed in range(seeds):
        torch.manual_seed(seed)
        example = make_example(device)
        for after_epoch in accuracies:
            example_epoch(*example, loader, device)
            after_epoch.append(example_accuracy(example[0], test_loader, device))
    for epoch, after_epoch in enumerate(accuracies, start=1):
        print(f"The example after epoch {epoch}, {seeds} seeds: {summary(after_epoch)}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="epochs of each side; 0 leaves them out")
    add("--seeds", type=int, default=0, help="runs for the accuracy; 0 leaves them out")
    add("--epochs", type=int, nargs="+", default=[5, 1], help="how long these runs are")
    add("--example-seeds", type=int, default=0, help="the same for the example")
    add("--example-epochs", type=int, default=5, help="how long its runs are")
    add("--data-dir", default=mnist_cnn.parse_args([]).data_dir)
    add("--device", default=mnist_cnn.DEVICE)
    args = parser.parse_args()
    data_dir, device = args.data_dir, args.device
    threads = f"{torch.get_num_threads()} CPU threads"
    processor = torch.cuda.get_device_name() if device == "cuda" else threads
    print(platform.machine(), processor, sep=", ", end=", ")
    print(f"Python {platform.python_version()}, torch {torch.__version__}")
    if args.rounds:
        compare_training(args.rounds, data_dir, device)
    if args.seeds:
        for epochs in args.epochs:
            measure_program(args.seeds, epochs, data_dir, device)
    if args.example_seeds:
        measure_example(args.example_seeds, args.example_epochs, data_dir, device)


if __name__ == "__main__":
    main()
