"""The training program: from the data to the files that it leaves behind."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

import mnist_cnn

from .conftest import DATA, ROOT, call

EDITS = {  # of the README's table: how often they change the file as it is, what is replaced, and by what
    "no augmentation": (1, r"images = augment\(images\)", "pass"),
    "no dropout": (1, r"nn\.Dropout\(.*", ""),
    "no batch norm": (8, r"nn\.BatchNorm2d\(.*|, bias=False", ""),
    "usual first weights": (1, r"nn\.init\.normal_\(.*", "pass"),
    "constant rate": (1, r"scheduler\.step\(\).*", "pass"),
    "SGD": (1, r"torch\.optim\.Adam\(.*", "torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)"),
    "half width": (12, r"\b(16|32|64)(?=, 32|, 64|, kernel|\),| \* 2 \* 2)", lambda m: str(int(m[0]) // 2)),
    "double width": (12, r"\b(16|32|64)(?=, 32|, 64|, kernel|\),| \* 2 \* 2)", lambda m: str(int(m[0]) * 2)),
    "strides": (4, r"nn\.MaxPool2d\(.*|((16|16, 32), kernel_size=.)", lambda m: f"{m[1]}, stride=2" if m[1] else ""),
}


@pytest.fixture(scope="module")
def loaders(mnist):
    return mnist_cnn.make_loaders(mnist, 96, "cpu")


def reported(out, split="Test"):
    """Return the average loss, the accuracy in per cent, the count of right images and of all, as they are printed."""
    line = rf"{split}: average loss (\d+\.\d+), accuracy (\d+\.\d+)% \((\d+)/(\d+)\)"
    return [float(text) for text in re.search(line, out).groups()]


def test_smoke(trained, model, loaders):
    outputs, out = trained
    count = sum(parameter.numel() for parameter in model.parameters())
    for line in ("device: cpu$", "images: 60,000 .*10,000 ", f"parameters: {count:,}$"):
        assert re.search(f"^{line}", out, re.MULTILINE)
    batches = re.findall(r"epoch 1/1 .*batch +(\d+)/600 .*loss \d+\.\d+", out)
    assert [int(batch) for batch in batches] == list(range(20, 601, 20))
    loss, accuracy, correct, total = reported(out)
    assert total == 10_000 and accuracy == correct / 100 >= 85
    assert re.search(rf"epoch 1/1 .*{loss:.4f}.*{accuracy:.2f}%", out)
    assert all(name in out for name in ("mnist_cnn.pt", "loss_curves.png", "mistakes.png"))
    for name in ("loss_curves.png", "mistakes.png"):
        assert len(Image.open(outputs / name).convert("RGB").getcolors(2**24)) > 50  # a blank one has a single colour
    # The saved weights give this result; images in another batch may round differently.
    assert mnist_cnn.evaluate(model, loaders[1])[:2] == (pytest.approx(loss, abs=1e-3), pytest.approx(correct, abs=2))


def test_loaders(mnist, loaders):
    """Images as ToTensor returns them, in the data set's order for testing, in a new one each epoch for training."""
    images, labels = (torch.cat(parts) for parts in zip(*loaders[1]))
    assert (images.shape, images.dtype, labels.dtype) == ((10_000, 1, 28, 28), torch.float32, torch.int64)
    assert torch.equal(labels, mnist[1].targets)
    reference = MNIST(DATA, train=False, transform=ToTensor())
    for index in range(0, 10_000, 100):  # where a learner normalizes them, they still go up and down together
        pair = torch.stack([reference[index][0].flatten(), images[index].flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.999
    assert [len(part) for _, part in loaders[1]] == [96] * 104 + [16]
    orders = [torch.cat([labels for _, labels in loaders[0]]) for _ in range(2)]
    for order, other in ((orders[0], orders[1]), (orders[0], mnist[0].targets)):
        assert not torch.equal(order, other) and torch.equal(order.bincount(), other.bincount())
    assert [part.shape for part in loaders[0].dataset[0]] == [(1, 28, 28), ()]


def test_validate(mnist, tmp_path, monkeypatch):
    train_loader, held_out_loader = mnist_cnn.make_loaders(mnist, 100, "cpu", validate=True)
    assert torch.equal(torch.stack([label for _, label in train_loader.dataset]), mnist[0].targets[:50_000])
    assert torch.equal(torch.cat([labels for _, labels in held_out_loader]), mnist[0].targets[50_000:])
    monkeypatch.setattr(mnist[0], "data", mnist[0].data[-12_000:])
    monkeypatch.setattr(mnist[0], "targets", mnist[0].targets[-12_000:])
    monkeypatch.setattr(mnist_cnn, "load_mnist", lambda data_dir: mnist)
    monkeypatch.setattr(mnist_cnn, "save", lambda path, write: None)  # which takes a second
    result, out = call("--output-dir", tmp_path, "--validate")
    _, accuracy, correct, total = reported(out, "Validation")
    assert total == 10_000 and accuracy == correct / 100 == pytest.approx(result)


def run_train(model, batches, lr):
    """Train a network on a few batches with the program's loop, as epoch 3 of 7; return the losses."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    return mnist_cnn.train(model, batches, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1), 3, 7, 40)


def linear():
    """Return another network, which can be handed in."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


@pytest.mark.parametrize("network", [mnist_cnn.CNN, linear])
def test_training_lowers_the_loss(network, loaders, capsys):
    torch.manual_seed(0)
    model = network()
    losses = run_train(model, [batch for batch, _ in zip(loaders[0], range(110))], lr=3e-3)
    assert (losses.shape, losses.device.type, losses.requires_grad) == ((110,), "cpu", False)
    assert losses[-20:].mean() < 0.8 * losses[0]
    logged = re.findall(r"epoch 3/7 .*batch +(\d+)/110 .*loss (\d+\.\d+)", capsys.readouterr().out)
    assert logged == [(f"{batch}", f"{losses[batch - 1]:.4f}") for batch in (40, 80)]
    logits = model(next(iter(loaders[1]))[0])
    for sums in (logits.sum(dim=1), logits.exp().sum(dim=1)):  # with softmax or log-softmax at the end, all are one
        assert sums.shape == (96,) and not torch.allclose(sums, torch.ones(96), atol=1e-3)


def test_gradients_are_forgotten_and_dropout_is_only_in_training(loaders, monkeypatch):
    monkeypatch.setattr(mnist_cnn, "augment", lambda images: images, raising=False)
    model, modes, sizes = linear(), [], []
    model.register_forward_hook(lambda *arguments: modes.append(model.training))
    images, labels = (part[:50] for part in next(iter(loaders[1])))
    for count in (1, 9):  # with lr=0 no weight changes, and so a batch has the same gradient whenever it comes
        run_train(model.eval(), [(images, labels)] * count, lr=0)
        sizes.append(model[1].weight.grad.norm().item())
    assert 0 < sizes[1] < 3 * sizes[0] and modes == [True] * 10
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), 32)  # batches of 32 and 18
    loss, correct, probabilities = mnist_cnn.evaluate(model, loader)
    assert modes[10:] == [False] * 2
    logits = model(images).detach().double()
    assert loss == pytest.approx(mnist_cnn.criterion(logits, labels).item(), rel=1e-5)
    assert correct == (logits.topk(1).indices[:, 0] == labels).sum()
    assert torch.allclose(probabilities.double(), logits.softmax(dim=1), atol=1e-5)


@pytest.mark.skipif(not hasattr(mnist_cnn, "augment"), reason="the augmentation was taken out")
def test_augment(digits):
    images, changed = digits[0][:, None], []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        changed.append(mnist_cnn.augment(images.repeat(40, 1, 1, 1)).view(40, *images.shape))
    assert torch.equal(changed[0], changed[1])  # the seed decides
    assert changed[0].min() > -0.5 and changed[0].max() < 1.5  # bicubic interpolation overshoots
    # On average each image is most like its own original: it is not flipped, and not mixed up with others.
    average, originals = (F.normalize(part.flatten(1)) for part in (changed[0].mean(dim=0), images))
    assert ((average @ originals.T).argmax(dim=1) == torch.arange(50)).float().mean() > 0.22
    if torch.allclose(changed[0][0], images, atol=1e-3):
        pytest.skip("its ranges are zero")
    assert not torch.equal(changed[0], changed[2]) and not torch.equal(*changed[0][:2])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_flags_decide(device, small_mnist, tmp_path):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    runs = []
    for seed in (2**64 - 1, 2**64 - 1, 3):
        more = ["--device", device, "--seed", seed, "--epochs", 2, "--batch-size", 64, "--log-interval", 7]
        accuracy, out = call("--output-dir", tmp_path, *more)
        _, said, correct, total = reported(out)
        assert type(accuracy) is float and accuracy == pytest.approx(said) == 100 * correct / total
        assert re.findall(r"epoch (\d)/2 .*batch +(\d+)/16\b", out) == [(e, b) for e in "12" for b in ("7", "14")]
        runs.append((re.findall(r"batch.* loss .*", out), (tmp_path / "mnist_cnn.pt").read_bytes()))
        mnist_cnn.load_model(tmp_path / "mnist_cnn.pt")
    assert runs[0] == runs[1] or device == "cuda"  # there, the last digits may differ
    assert runs[0][0] != runs[2][0] and runs[0][1] != runs[2][1]


def test_surest_mistakes_come_first(digits):
    probabilities = F.one_hot(digits[1], 10) * 0.95
    for index, share in ((3, 0.6), (5, 0.8), (8, 0.7)):
        probabilities[index] = probabilities[index].roll(1) * share
    figure = mnist_cnn.plot_mistakes(digits[0][:, None], digits[1], probabilities, "test", 2)
    shown = [axes for axes in figure.axes if axes.images]
    assert [re.findall(r"\d+", axes.get_title()) for axes in shown] == [["2", "76", "1"], ["6", "66", "5"]]
    assert all(digits[0][index].equal(torch.tensor(a.images[0].get_array())) for a, index in zip(shown, (5, 8)))


def test_constants_are_the_defaults_and_are_checked(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    values = {"EPOCHS": 77, "BATCH_SIZE": 33, "LR": 0.125, "SEED": -5, "LOG_INTERVAL": 11, "VALIDATE": True}
    values |= {"DEVICE": "cpu", "DATA_DIR": "my data", "OUTPUT_DIR": "my outputs"}
    for name, value in values.items():
        monkeypatch.setattr(mnist_cnn, name, value)
    for argv, status in (["--help"], 0), ([], 2):
        with pytest.raises(SystemExit, match=f"^{status}$"):
            mnist_cnn.main(argv)
    out, err = (" ".join(text.split()) for text in capsys.readouterr())
    for name, value in values.items():
        assert re.search(rf"--{name.lower().replace('_', '-')}\b[^()]*\(default: [^)]*{value}\)", out)
    assert "argument --seed" in err


def test_folders_are_beside_the_script_or_in_the_current_folder_of_a_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = (ROOT / "mnist_cnn.py").read_text(encoding="utf-8")
    for cell, folder in (({"__file__": tmp_path / "home" / "a.py"}, tmp_path / "home"), ({}, Path())):
        cell["__name__"] = "cell"  # a cell has no __file__
        exec(source, cell)
        args = cell["parse_args"]([])
        assert (args.data_dir, args.output_dir) == (folder / cell["DATA_DIR"], folder / cell["OUTPUT_DIR"])


@pytest.mark.parametrize("name", EDITS)
def test_edits_of_the_readme(name, small_mnist, tmp_path, monkeypatch):
    source, made = re.subn(*EDITS[name][1:], (ROOT / "mnist_cnn.py").read_text(encoding="utf-8"))
    if made != EDITS[name][0]:
        pytest.skip("the file is not as it was")
    exec(source, cell := {"__name__": "cell", "__file__": mnist_cnn.__file__})
    cell["load_mnist"] = mnist_cnn.load_mnist
    monkeypatch.setattr(mnist_cnn, "main", cell["main"])
    accuracy, out = call("--output-dir", tmp_path, "--log-interval", 1)
    assert 0 <= accuracy <= 100 and len(re.findall(r"batch +\d+/10 .*loss \d", out)) == 10
