"""The story, from the data to the files that a training leaves: what each part promises."""

import copy
import os
import re
import sys
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

import mnist_cnn

from .conftest import ROOT, main

SOURCE = (ROOT / "mnist_cnn.py").read_text(encoding="utf-8")


# Data and network.
def labels_of(loader):
    return torch.cat([labels for _, labels in loader])


def test_loaders(mnist):
    """Training images come in a new order in each epoch, those for testing as they are stored."""
    train_loader, test_loader = mnist_cnn.make_loaders(mnist, 96, "cpu", False)
    images, labels = map(torch.cat, zip(*test_loader))
    assert images.equal(mnist[1].data[:, None] / 255)
    assert labels.equal(mnist[1].targets)
    stored, first, second = mnist[0].targets, labels_of(train_loader), labels_of(train_loader)
    assert first.bincount().equal(stored.bincount())
    assert not first.equal(stored)
    assert not first.equal(second)


def test_held_out_images(mnist):
    """To validate, 10,000 training images are left out and tested on."""
    held_in, held_out = map(labels_of, mnist_cnn.make_loaders(mnist, 96, "cpu", True))
    assert (len(held_in), len(held_out)) == (50_000, 10_000)


def test_network_returns_logits(digits):
    logits = mnist_cnn.CNN().eval()(digits[0])
    # After softmax, or log-softmax, all of these would be one.
    for sums in (logits.sum(dim=1), logits.exp().sum(dim=1)):
        assert not torch.allclose(sums, torch.ones(50), atol=1e-3), "no softmax in forward"


@pytest.mark.skipif(not hasattr(mnist_cnn, "augment"), reason="the augmentation was taken out")
def test_augment(digits):
    """Each is changed in another way; on average it is like its original, and not a pixel away."""
    copies = digits[0].repeat(40, 1, 1, 1)
    changed = mnist_cnn.augment(copies).view(40, 50, 784)
    assert not changed[0].equal(changed[1])
    assert F.cosine_similarity(changed.mean(dim=0), digits[0].flatten(1)).min() > 0.6


# Training and testing.
@pytest.fixture
def layer():
    """A network that is simple enough to say what training makes of it."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def test_train(layer, digits, monkeypatch):
    """Each batch is distorted and measured, and is one small step against its own gradient."""
    monkeypatch.setattr(mnist_cnn, "augment", torch.neg, raising=False)
    images, labels = digits
    expected, seen = copy.deepcopy(layer), []
    layer.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    optimizer, other = (torch.optim.SGD(net.parameters(), lr=0.1) for net in (layer, expected))
    measured = mnist_cnn.train(layer.eval(), [(images, labels)] * 3, optimizer, Mock(), "", 20)
    assert layer.training
    if "augment" in mnist_cnn.train.__code__.co_names:
        assert seen[0].equal(-images)
    for batch, (loss_sum, right, count) in zip(seen, measured.tolist(), strict=True):
        logits = expected(batch)
        loss = mnist_cnn.criterion(logits, labels)
        assert loss_sum == pytest.approx(50 * loss.item(), rel=1e-4)
        assert right == (logits.argmax(dim=1) == labels).sum()
        assert count == 50
        other.zero_grad()
        loss.backward()
        other.step()
    assert torch.allclose(layer[1].weight, expected[1].weight, atol=1e-5)


def test_evaluate(layer, digits):
    """Each image counts the same, in a full batch or the smaller last one."""
    measured = mnist_cnn.evaluate(layer, DataLoader(TensorDataset(*digits), 32))
    assert not layer.training
    images, labels = digits
    logits = layer(images)
    loss = mnist_cnn.criterion(logits, labels).item()
    accuracy = 100 * (logits.argmax(dim=1) == labels).float().mean().item()
    assert mnist_cnn.summarize(measured) == pytest.approx((loss, accuracy), rel=1e-5)


# The run.
@pytest.mark.parametrize("device", ["cpu", *["cuda"] * torch.cuda.is_available()])
def test_flags_decide(device, quick, tmp_path, capsys):
    flags = ["--device", device, "--epochs", 2, "--batch-size", 50, "--log-interval", 1]
    accuracy = main("--output-dir", tmp_path / "a/new folder", *flags)
    out = capsys.readouterr().out
    assert out.startswith(f"device: {device}\n")
    assert len(re.findall(r"epoch 2/2 .*batch +[1-5]/5 .*loss \S+", out)) == 5
    assert re.search(rf"Test: .* accuracy {accuracy:.2f}% \({accuracy / 5:.0f}/20\)", out)
    assert (tmp_path / "a/new folder/mnist_cnn.pt").exists()


SCHEDULE = "LambdaLR(optimizer, lambda step: min(1, (1 - step / steps) / 0.7))"


@pytest.mark.skipif(
    SCHEDULE not in SOURCE or "\n        scheduler.step()" not in SOURCE,
    reason="the file is not as it was: its schedule",
)
def test_schedule(quick, tmp_path, monkeypatch):
    """The learning rate stays as it is until 7 of 10 steps are left, and is 0 after the last."""
    rates, step = [], LambdaLR.step
    monkeypatch.setattr(
        LambdaLR, "step", lambda self: (step(self), rates.extend(self.get_last_lr()))
    )
    main("--output-dir", tmp_path, "--epochs", 2, "--batch-size", 50)
    assert [7 * rate / rates[0] for rate in rates] == pytest.approx(
        [7, 7, 7, 7, 6, 5, 4, 3, 2, 1, 0]
    )


def test_seed_decides(quick, weights):
    made = []
    for seed in (2**64 - 1, 2**64 - 1, 3):
        main("--output-dir", weights.parent, "--seed", seed)
        made.append(weights.read_bytes())
    assert made[0] == made[1] != made[2]


def test_what_was_measured_is_printed_and_plotted(mnist, tmp_path, capsys, monkeypatch):
    """Training: two batches, of three images and one. Of the 10,000 held out, 9,955 are right."""
    trained = torch.tensor([[3, 0, 3], [5.0, 1, 1]])
    tested = torch.tensor([[2500.0, 9955, 10_000]])
    saved = {}
    monkeypatch.setattr(mnist_cnn, "load_mnist", lambda data_dir: mnist)
    monkeypatch.setattr(mnist_cnn, "train", lambda *_: trained)
    monkeypatch.setattr(mnist_cnn, "evaluate", lambda *_: tested)
    monkeypatch.setattr(mnist_cnn, "save", lambda path, result: saved.update({path: result}))
    assert main("--output-dir", tmp_path, "--epochs", 2, "--validate") == 99.55
    out = capsys.readouterr().out
    line = "training loss 2.0000, accuracy 25.00%  validation loss 0.2500, accuracy 99.55%"
    assert out.count(line) == 2
    assert "Validation: average loss 0.2500, accuracy 99.55% (9955/10000)" in out
    _, test = saved[tmp_path / "loss_curves.png"].axes[1].lines
    assert list(test.get_ydata()) == [99.55, 99.55]
    assert "10,000 validation" in saved[tmp_path / "mistakes.png"].get_suptitle()


# Plots.
def test_plot_curves():
    """What was measured in two epochs of 100 batches each: 100 means of two."""
    batches = torch.rand(2, 100, 3)
    history = [(batches[0], 0.5, 91), (batches[1], 0.25, 93)]
    losses, accuracies = mnist_cnn.plot_curves(history, "test").axes
    assert losses.get_legend()
    sums = batches.view(100, 2, 3).sum(dim=1)
    for axes, column, factor, tests in (
        (losses, 0, 1, [0.5, 0.25]),
        (accuracies, 1, 100, [91, 93]),
    ):
        training, test = axes.lines
        means = factor * sums[:, column] / sums[:, 2]
        assert list(training.get_ydata()) == pytest.approx(means.tolist())
        assert list(training.get_xdata())[::99] == pytest.approx([0.01, 1.99])  # amid two batches
        assert (list(test.get_xdata()), list(test.get_ydata())) == ([1, 2], tests)
        assert max(tests) < axes.get_ylim()[1] < 110


@pytest.mark.parametrize("wrong", [0, 3, 105])
def test_plot_mistakes(wrong):
    """The surest come first; of more than a hundred, a hundred are shown, of any data set."""
    images, labels = torch.rand(200, 1, 28, 28), torch.full((200,), 7)
    labels[:wrong] = 3
    sure = images[:, 0, 0, 0] = torch.linspace(0.1, 1, 200)  # so the last of the wrong comes first
    loader = DataLoader(TensorDataset(images, labels), 64, shuffle=True)
    figure = mnist_cnn.plot_mistakes(
        lambda images: images[:, 0, 0, :1] * (torch.arange(10) == 7), loader, "test"
    )
    assert f"{wrong} of 200 test" in figure.get_suptitle()
    assert len(figure.axes) == min(wrong, 100)
    for index, axes in zip(reversed(range(wrong)), figure.axes):
        confidence = sure[index].exp() / (sure[index].exp() + 9)  # softmax of one such logit
        assert axes.get_title() == f"said 7 ({confidence:.0%})\nis 3"
        assert images[index, 0].equal(torch.tensor(axes.images[0].get_array()))
        assert axes.images[0].cmap(1.0) == (0, 0, 0, 1)  # ink is black


# What a user may change: constants, the design, where the program runs.
def test_constants_are_the_defaults(tmp_path, monkeypatch):
    """Of a folder, ~ is the user's own; flags may be numbers, too."""
    monkeypatch.setenv("USERPROFILE" if os.name == "nt" else "HOME", str(tmp_path))
    values = {"EPOCHS": 77, "BATCH_SIZE": 33, "LR": 0.125, "SEED": 5, "LOG_INTERVAL": 11}
    for name, value in {**values, "DEVICE": "cpu", "OUTPUT_DIR": "~/outputs"}.items():
        monkeypatch.setattr(mnist_cnn, name, value)
    expected = {name.lower(): value for name, value in values.items()}
    expected |= {"device": "cpu", "validate": False, "predict": None, "draw": False, "lr": 0.5}
    expected |= {"data_dir": tmp_path / "data", "output_dir": tmp_path / "outputs"}
    assert vars(mnist_cnn.parse_args(["--data-dir=~/data", "--lr", 0.5])) == expected


def test_flags_are_for_the_file_alone(tmp_path, monkeypatch):
    """Not for the notebook that runs it in a cell, which has no file to be beside."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["mnist_cnn.py", "--seed", "987654"])
    assert mnist_cnn.parse_args().seed == 987654
    monkeypatch.chdir(tmp_path)
    cell = {"__name__": "cell"}
    exec(SOURCE, cell)
    args = cell["parse_args"]()
    assert args.seed == cell["SEED"] != 987654
    beside_the_file = str(mnist_cnn.parse_args([]).data_dir)
    assert str(args.data_dir) == beside_the_file.replace(str(ROOT), str(tmp_path.resolve()))


def test_another_network(quick, weights, layer, monkeypatch):
    monkeypatch.setattr(mnist_cnn, "CNN", lambda: layer)
    main("--output-dir", weights.parent)
    assert mnist_cnn.load_model(weights) is layer
