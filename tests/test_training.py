"""The training program: from the data to the files that it leaves behind."""

import re

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.nn import functional as F
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

import mnist_cnn

from .conftest import ROOT


@pytest.fixture(scope="module")
def loaders():
    return mnist_cnn.make_loaders(ROOT / "data", 96, "cpu")


@pytest.fixture(scope="module")
def images_and_labels(loaders):
    return next(iter(loaders[1]))


def test_smoke(trained):
    run, outputs = trained
    assert (run.returncode, run.stderr) == (0, "")
    lines = run.stdout.splitlines()
    assert re.fullmatch(r"device: (cpu|cuda)", lines[0])
    assert lines[1] == "images: 60,000 for training, 10,000 for testing"
    assert int(re.fullmatch(r"parameters: ([\d,]+)", lines[2])[1].replace(",", "")) <= 200_000
    batches = [re.fullmatch(r"epoch 1/1  batch ( *\d+)/600  loss \d+\.\d{4}", line)[1] for line in lines[3:33]]
    assert batches == [f"{batch:3}" for batch in range(20, 601, 20)]
    assert re.fullmatch(
        r"epoch 1/1  training loss 0\.\d{4}  test loss 0\.\d{4}  test accuracy 9\d\.\d\d%  \d+\.\d s", lines[33]
    )
    loss, accuracy, correct = re.fullmatch(
        r"Test: average loss (0\.\d{4}), accuracy (\d\d\.\d\d)% \((\d{4})/10000\)", lines[34]
    ).groups()
    assert float(accuracy) == int(correct) / 100 >= 98.7
    assert float(loss) < 0.05
    assert len(lines) == 35
    assert sorted(path.name for path in outputs.iterdir()) == ["loss_curves.png", "mistakes.png", "mnist_cnn.pt"]


def test_saved_weights_give_the_reported_result(trained, loaders):
    run, outputs = trained
    weights = torch.load(outputs / "mnist_cnn.pt", weights_only=True)
    model = mnist_cnn.CNN()
    model.load_state_dict(weights)
    loss, correct, _ = mnist_cnn.test(model, loaders[1])
    assert f"average loss {loss:.4f}, accuracy {correct / 100:.2f}% ({correct}/10000)" in run.stdout


def test_pictures_are_whole(trained):
    for name, least in (("loss_curves.png", (1200, 500)), ("mistakes.png", (1200, 500))):
        with Image.open(trained[1] / name) as picture:
            picture.load()
            assert picture.format == "PNG"
            assert picture.size > least
            assert len(picture.convert("RGB").getcolors(2**24)) > 50


def test_images_equal_to_tensor(loaders):
    reference = MNIST(ROOT / "data", train=False, transform=ToTensor())
    images = torch.cat([images for images, _ in loaders[1]])
    assert torch.equal(images, torch.stack([image for image, _ in reference]))
    assert torch.equal(torch.cat([labels for _, labels in loaders[1]]), reference.targets)


def test_batches(loaders):
    train_loader, test_loader = loaders
    sizes = [len(labels) for _, labels in train_loader]
    assert sizes == [96] * 625
    assert [len(labels) for _, labels in test_loader] == [96] * 104 + [16]
    images, labels = next(iter(train_loader))
    assert (images.shape, images.dtype, labels.dtype) == ((96, 1, 28, 28), torch.float32, torch.int64)
    assert images.min() == 0 and images.max() == 1
    assert not torch.equal(labels, train_loader.dataset.labels[:96])
    assert not torch.equal(labels, next(iter(train_loader))[1])
    image, label = train_loader.dataset[7]
    assert torch.equal(image[0] * 255, train_loader.dataset.images[7, 0].float())
    assert label == train_loader.dataset.labels[7]


def test_model_returns_logits(images_and_labels):
    images, _ = images_and_labels
    logits = mnist_cnn.CNN().eval()(images)
    assert logits.shape == (96, 10)
    assert logits.min() < 0 or logits.max() > 1
    names = {type(layer).__name__ for layer in mnist_cnn.CNN().modules()}
    assert {"Conv2d", "MaxPool2d", "Dropout", "Linear", "ReLU"} <= names
    assert "Softmax" not in names


def train_steps(batches, seed=0):
    """Train a new network on a few batches; return it and its losses."""
    torch.manual_seed(seed)
    model = mnist_cnn.CNN()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)
    return model, mnist_cnn.train(model, batches, optimizer, scheduler, 1, 1, 20)


@pytest.mark.parametrize("steps", [1, 10, 3000])
def test_learning_rate_rises_to_its_peak_and_falls_to_zero(steps):
    _, optimizer, scheduler = mnist_cnn.make_training(2e-3, steps, "cpu")
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert max(rates) == pytest.approx(2e-3, rel=0.01)
    assert rates.index(max(rates)) <= steps // 10
    assert min(rates) > 0 and optimizer.param_groups[0]["lr"] == 0


def test_training_lowers_the_loss(images_and_labels):
    _, losses = train_steps([images_and_labels] * 30)
    assert losses.shape == (30,)
    assert losses[0] > 2  # ten classes that a new network knows nothing of: about log(10)
    assert losses[-5:].max() < 0.5


def test_average_loss_and_accuracy(loaders, images_and_labels):
    model, _ = train_steps([images_and_labels] * 3)
    loss, correct, probabilities = mnist_cnn.test(model, loaders[1])
    assert not model.training
    images, labels = loaders[1].dataset.__getitems__(range(10_000))
    with torch.no_grad():
        logits = model(images).double()
    of_the_label = logits.gather(1, labels[:, None])[:, 0]
    assert loss == pytest.approx((logits.exp().sum(dim=1).log() - of_the_label).mean().item(), rel=1e-5)
    assert correct == sum(row.argmax() == label for row, label in zip(logits, labels))
    assert probabilities.shape == (10_000, 10)
    assert torch.allclose(probabilities.sum(dim=1), torch.ones(10_000))


def test_augment(images_and_labels):
    torch.manual_seed(0)
    images, _ = images_and_labels
    changed = mnist_cnn.augment(images)
    assert changed.shape == images.shape
    assert changed.min() >= 0 and changed.max() <= 1
    assert (changed - images).abs().flatten(1).amax(dim=1).min() > 0.05
    assert torch.allclose(mnist_cnn.augment(images, degrees=0, zoom=0, pixels=0), images, atol=1e-4)
    # Turned, shifted and scaled, but not flipped: a changed image stays closest to its own original.
    distance = torch.cdist(changed.flatten(1), images.flatten(1))
    assert (distance.argmin(dim=1) == torch.arange(len(images))).float().mean() > 0.75


def printed(capsys, *flags):
    """Run the program in this process; return what it printed but for the seconds."""
    assert mnist_cnn.main([str(flag) for flag in flags]) == 0
    return re.sub(r"\d+\.\d s$", "", capsys.readouterr().out, flags=re.MULTILINE)


def test_the_seed_decides(small_mnist, tmp_path, capsys):
    flags = ("--epochs", 1, "--output-dir", tmp_path, "--device", "cpu")
    first = printed(capsys, *flags, "--seed", 2**64 - 1)
    assert first == printed(capsys, *flags, "--seed", 2**64 - 1)
    assert first != printed(capsys, *flags, "--seed", 3)


def test_log_interval_and_batch_size(small_mnist, tmp_path, capsys):
    out = printed(capsys, "--epochs", 1, "--batch-size", 64, "--log-interval", 7, "--output-dir", tmp_path)
    assert re.findall(r"batch +(\d+)/(\d+)", out) == [(str(batch), "24") for batch in (7, 14, 21)]
    assert re.search(r"\(\d+/500\)$", out)


def test_a_log_interval_longer_than_the_run(small_mnist, tmp_path, capsys):
    assert "batch" not in printed(capsys, "--epochs", 1, "--log-interval", 1000, "--output-dir", tmp_path)
    assert (tmp_path / "loss_curves.png").exists()


def test_loss_curves():
    figure = Figure()
    losses = [torch.linspace(2, 1, 60), torch.linspace(1, 0.5, 60)]
    mnist_cnn.draw_loss_curves(figure, losses, [1.1, 0.6], [90, 95], log_interval=25)
    left, right = figure.axes
    logged, smooth, test_loss = left.lines
    assert logged.get_xdata() == pytest.approx([25 / 60, 50 / 60, 1 + 25 / 60, 1 + 50 / 60])
    assert logged.get_ydata().tolist() == [losses[epoch][batch].item() for epoch in (0, 1) for batch in (24, 49)]
    assert smooth.get_ydata()[0] == pytest.approx(losses[0][:6].mean().item())
    assert list(test_loss.get_xdata()) == [1, 2] and list(test_loss.get_ydata()) == [1.1, 0.6]
    assert list(right.lines[0].get_ydata()) == [90, 95]
    assert left.get_legend() and left.get_yscale() == "log"
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)


@pytest.mark.parametrize("most", [2, 100])
def test_mistakes(images_and_labels, most):
    images, _ = images_and_labels
    labels = torch.zeros(len(images), dtype=torch.int64)
    probabilities = F.one_hot(labels, 10) * 0.9
    probabilities[3] = torch.eye(10)[4] * 0.6
    probabilities[5] = torch.eye(10)[7] * 0.8
    probabilities[8] = torch.eye(10)[1] * 0.7
    figure = Figure()
    mnist_cnn.draw_mistakes(figure, images, labels, probabilities, most)
    (axes,) = figure.axes
    titles = [re.findall(r"\d+", text.get_text()) for text in axes.texts]
    assert titles == [["7", "80", "0"], ["1", "70", "0"], ["4", "60", "0"]][:most]
    assert len(axes.images) == len(titles)
    assert torch.equal(torch.tensor(axes.images[0].get_array()), images[5, 0])
    assert figure.get_suptitle().startswith("3 of 96 ")
    assert ("2 worst" in figure.get_suptitle()) == (most == 2)


def test_no_mistakes(images_and_labels):
    figure = Figure()
    mnist_cnn.draw_mistakes(figure, *images_and_labels, F.one_hot(images_and_labels[1], 10) * 1.0)
    assert figure.get_suptitle().startswith("0 of 96 ")


def test_help_shows_the_constants(capsys):
    with pytest.raises(SystemExit) as stop:
        mnist_cnn.main(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in ("EPOCHS", "BATCH_SIZE", "LR", "SEED", "LOG_INTERVAL", "DEVICE", "DATA_DIR", "OUTPUT_DIR", "SHOW"):
        assert re.search(rf"--{name.lower().replace('_', '-')}\b[^(]*\(default: {getattr(mnist_cnn, name)}\)", text)


def test_the_loop_reads_no_number_off_the_device_between_logged_lines(mnist):
    """The meta device computes shapes alone: to read a number off it fails, so the first read shows."""
    images = mnist_cnn.BatchedImages(mnist[0], "meta")
    model = mnist_cnn.CNN().to("meta")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)  # the fused one has no meta version
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    batches = [images.__getitems__(range(start, start + 10)) for start in range(0, 100, 10)]
    with pytest.raises((RuntimeError, NotImplementedError)):
        mnist_cnn.train(model, batches, optimizer, scheduler, 1, 1, log_interval=7)
    assert scheduler.last_epoch == 7
