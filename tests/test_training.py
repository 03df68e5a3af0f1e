"""The training program: from the data to the files that it leaves behind."""

import pickle
import re
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.nn import functional as F
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

import mnist_cnn

from .conftest import DATA, ROOT, flags


@pytest.fixture(scope="module")
def loaders():
    return mnist_cnn.make_loaders(DATA, 96, "cpu")


@pytest.fixture(scope="module")
def images_and_labels(loaders):
    return next(iter(loaders[1]))


def test_smoke(trained):
    run, outputs = trained
    assert (run.returncode, run.stderr) == (0, "")
    lines = run.stdout.splitlines()
    assert re.fullmatch(r"device: \S+", lines[0])
    assert lines[1] == "images: 60,000 for training, 10,000 for testing"
    assert re.fullmatch(r"parameters: [\d,]+", lines[2])
    batches = [re.fullmatch(r"epoch 1/1  batch ( *\d+)/600  loss \d+\.\d{4}", line)[1] for line in lines[3:33]]
    assert batches == [f"{batch:3}" for batch in range(20, 601, 20)]
    assert re.fullmatch(
        r"epoch 1/1  training loss \d\.\d{4}  test loss \d\.\d{4}  test accuracy \d\d\.\d\d%  \d+\.\d s", lines[33]
    )
    loss, accuracy, correct = re.fullmatch(
        r"Test: average loss (\d\.\d{4}), accuracy (\d\d\.\d\d)% \((\d{4})/10000\)", lines[34]
    ).groups()
    assert float(accuracy) == int(correct) / 100 >= 95
    assert float(loss) < 0.2
    assert len(lines) == 35
    assert (outputs / "mnist_cnn.pt").exists()
    for name in ("loss_curves.png", "mistakes.png"):
        with Image.open(outputs / name) as picture:
            assert picture.width > 1200 and picture.height > 300
            assert len(picture.convert("RGB").getcolors(2**24)) > 50


def test_saved_weights_give_the_reported_result(trained, loaders):
    run, outputs = trained
    model = mnist_cnn.CNN()
    model.load_state_dict(torch.load(outputs / "mnist_cnn.pt", weights_only=True, map_location="cpu"))
    loss, correct, _ = mnist_cnn.evaluate(model, loaders[1])
    reported = re.search(r"Test: average loss ([\d.]+), .*\((\d+)/10000\)", run.stdout)
    assert (loss, correct) == pytest.approx((float(reported[1]), int(reported[2])), abs=1e-4)


def test_images_equal_to_tensor(loaders):
    reference = MNIST(DATA, train=False, transform=ToTensor())
    images = torch.cat([images for images, _ in loaders[1]])
    assert torch.equal(images, torch.stack([image for image, _ in reference]))
    assert torch.equal(torch.cat([labels for _, labels in loaders[1]]), reference.targets)


def test_batches(loaders):
    train_loader, test_loader = loaders
    assert [len(labels) for _, labels in train_loader] == [96] * 625
    assert [len(labels) for _, labels in test_loader] == [96] * 104 + [16]
    images, labels = next(iter(train_loader))
    assert (images.shape, images.dtype, labels.dtype) == ((96, 1, 28, 28), torch.float32, torch.int64)
    assert images.min() == 0 and images.max() == 1
    assert not torch.equal(labels, train_loader.dataset.labels[:96])
    assert not torch.equal(labels, next(iter(train_loader))[1])


def test_loaders_reach_worker_processes(loaders):
    """Where processes are spawned, a DataLoader pickles the data set and its collate_fn for them."""
    assert loaders[0].collate_fn is loaders[1].collate_fn
    dataset, collate = pickle.loads(pickle.dumps((loaders[1].dataset, loaders[1].collate_fn)))
    images, labels = collate(dataset.__getitems__([3, 5]))
    assert torch.equal(images, loaders[1].dataset.__getitems__([3, 5])[0])
    assert labels.tolist() == loaders[1].dataset.labels[[3, 5]].tolist()


def test_validation_set(mnist):
    train_loader, held_out_loader = mnist_cnn.make_loaders(DATA, 100, "cpu", validate=True)
    assert torch.equal(train_loader.dataset.images[:, 0], mnist[0].data[:50_000])
    assert torch.equal(train_loader.dataset.labels, mnist[0].targets[:50_000])
    assert torch.equal(held_out_loader.dataset.images[:, 0], mnist[0].data[50_000:])
    assert torch.equal(held_out_loader.dataset.labels, mnist[0].targets[50_000:])


def test_validate(mnist, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(mnist[0], "data", mnist[0].data[-12_000:])
    monkeypatch.setattr(mnist[0], "targets", mnist[0].targets[-12_000:])
    monkeypatch.setattr(mnist_cnn, "load_mnist", lambda data_dir: mnist)
    out = printed(capsys, "--output-dir", tmp_path, "--validate")
    assert "images: 2,000 for training, 10,000 for validation\n" in out
    assert re.fullmatch(r"Validation: average loss \d\.\d{4}, accuracy \d+\.\d\d% \(\d+/10000\)", out.splitlines()[-1])
    assert "est" not in out


def test_model_returns_logits(images_and_labels):
    logits = mnist_cnn.CNN().eval()(images_and_labels[0])
    assert logits.shape == (96, 10)
    for probabilities in (logits, logits.exp()):  # as softmax or log-softmax at the end would give
        assert not torch.allclose(probabilities.sum(dim=1), torch.ones(96), atol=1e-3)


def train_steps(batches, model, lr=1e-3):
    """Train a network on a few batches as the program does; return the losses."""
    torch.manual_seed(0)
    return mnist_cnn.train(model, batches, *mnist_cnn.make_training(model, lr, len(batches)), 1, 1, 20)


def linear():
    """Another network that can be handed in."""
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))


@pytest.mark.parametrize("network", [mnist_cnn.CNN, linear])
def test_training_lowers_the_loss(network, images_and_labels):
    losses = train_steps([images_and_labels] * 60, network())
    assert losses.shape == (60,)
    assert losses[0] > 1.9  # ten classes that a new network knows nothing of: about log(10)
    assert losses[-5:].mean() < 0.9 * losses[0]


def test_average_loss_and_accuracy(images_and_labels, small_mnist):
    model = mnist_cnn.CNN()
    train_steps([images_and_labels] * 3, model)
    loader = mnist_cnn.make_loaders(DATA, 32, "cpu")[1]
    loss, correct, probabilities = mnist_cnn.evaluate(model, loader)
    assert not model.training
    images, labels = loader.dataset.__getitems__(range(50))
    with torch.no_grad():
        logits = model(images).double()
    of_the_label = logits.gather(1, labels[:, None])[:, 0]
    assert loss == pytest.approx((logits.exp().sum(dim=1).log() - of_the_label).mean().item(), rel=1e-5)
    assert correct == (logits.topk(1).indices[:, 0] == labels).sum()
    assert torch.allclose(probabilities.double(), logits.softmax(dim=1), atol=1e-5)


@pytest.mark.skipif(not hasattr(mnist_cnn, "augment"), reason="the augmentation was taken out")
def test_augment(images_and_labels):
    torch.manual_seed(0)
    images, _ = images_and_labels
    changed = mnist_cnn.augment(images)
    assert changed.shape == images.shape
    assert changed.min() >= 0 and changed.max() <= 1
    assert (changed - images).abs().flatten(1).amax(dim=1).min() > 0.05
    # Turned, shifted and scaled, but not flipped: a changed image stays closest to its own original.
    distance = torch.cdist(changed.flatten(1), images.flatten(1))
    assert (distance.argmin(dim=1) == torch.arange(len(images))).float().mean() > 0.7


def printed(capsys, *more):
    """Run the program in this process; return what it printed but for the seconds."""
    assert mnist_cnn.main(flags(*more)) == 0
    return re.sub(r"\d+\.\d s$", "", capsys.readouterr().out, flags=re.MULTILINE)


def test_the_seed_and_the_learning_rate_decide(small_mnist, tmp_path, capsys):
    results = [
        printed(capsys, "--output-dir", tmp_path, "--device", "cpu", *more)
        for more in (["--seed", 2**64 - 1], ["--seed", 2**64 - 1], ["--seed", 3], ["--seed", 3, "--lr", 1e-4])
    ]
    assert results[0] == results[1]
    assert len(set(results)) == 3


def test_log_interval_and_batch_size(small_mnist, tmp_path, capsys):
    out = printed(capsys, "--batch-size", 64, "--log-interval", 7, "--output-dir", tmp_path)
    assert re.findall(r"batch +(\d+)/(\d+)", out) == [(str(batch), "16") for batch in (7, 14)]
    assert re.search(r"\(\d+/50\)$", out)


def test_loss_curves():
    losses = [torch.linspace(2, 1, 60), torch.linspace(1, 0.5, 60)]
    figure = Figure()
    mnist_cnn.draw_loss_curves(figure, losses, [1.1, 0.6], [90, 95], "test")
    left, right = figure.axes[:2]
    lines = {line.get_label(): line for line in left.lines}
    every = lines["training, each batch"]
    assert every.get_xdata()[[0, -1]] == pytest.approx([1 / 60, 2])
    assert every.get_ydata().tolist() == torch.cat(losses).tolist()
    assert lines["training, mean of the epoch"].get_ydata() == pytest.approx([loss.mean().item() for loss in losses])
    assert list(lines["test, after each epoch"].get_ydata()) == [1.1, 0.6]
    assert any(list(line.get_ydata()) == [90, 95] for line in right.lines)
    assert left.get_legend() and all(axes.get_xlabel() and axes.get_ylabel() for axes in (left, right))


@pytest.mark.parametrize("most", [0, 2, 100])
def test_mistakes(loaders, most):
    dataset = loaders[1].dataset
    probabilities = F.one_hot(dataset.labels, 10) * 0.95
    for index, probability in ((3, 0.6), (5, 0.8), (8, 0.7)) if most else ():
        probabilities[index] = probabilities[index].roll(1) * probability
    figure = Figure()
    mnist_cnn.draw_mistakes(figure, dataset, probabilities, "test", most)
    (axes,) = figure.axes
    titles = [[int(number) for number in re.findall(r"\d+", text.get_text())] for text in axes.texts]
    assert titles == [[(label + 1) % 10, 95 * p // 100, label] for p, label in ((80, 1), (70, 5), (60, 0))][:most]
    for image, index in zip(axes.images, (5, 8, 3)):
        assert torch.equal(torch.tensor(image.get_array()), dataset.images[index, 0])
    assert figure.get_suptitle().startswith(f"{3 if most else 0} of 10,000 ")
    assert ("2 worst" in figure.get_suptitle()) == (most == 2)


def test_help_shows_the_constants(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setattr(mnist_cnn, "__doc__", None)  # as under python -OO
    with pytest.raises(SystemExit) as stop:
        mnist_cnn.main(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in ("EPOCHS", "BATCH_SIZE", "LR", "SEED", "LOG_INTERVAL", "DEVICE", "VALIDATE", "SHOW"):
        default = re.escape(str(getattr(mnist_cnn, name)))
        assert re.search(rf"--{name.lower().replace('_', '-')}\b[^(]*\(default: {default}\)", text)


def test_folders_are_beside_the_script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = mnist_cnn.parse_args([])
    assert Path(args.data_dir) == ROOT / mnist_cnn.DATA_DIR
    assert Path(args.output_dir) == ROOT / mnist_cnn.OUTPUT_DIR


def test_the_loop_reads_no_number_off_the_device_between_logged_lines(mnist):
    """The meta device computes shapes alone: to read a number off it fails, so the first read shows."""
    images = mnist_cnn.BatchedImages(mnist[0].data, mnist[0].targets, "meta")
    model = mnist_cnn.CNN().to("meta")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)  # the fused one has no meta version
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    batches = [images.__getitems__(range(start, start + 10)) for start in range(0, 100, 10)]
    steps = []
    optimizer.register_step_post_hook(lambda *arguments: steps.append(1))
    with pytest.raises((RuntimeError, NotImplementedError)):
        mnist_cnn.train(model, batches, optimizer, scheduler, 1, 1, log_interval=7)
    assert len(steps) == 7
