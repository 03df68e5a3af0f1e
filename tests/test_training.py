"""The training program: from the data to the files that it leaves behind."""

import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import ToTensor

import mnist_cnn

from .conftest import FLAGS, ROOT, call

SOURCE = (ROOT / "mnist_cnn.py").read_text(encoding="utf-8")
WIDTHS = r"\b(16|32|64)(?=, 32|, 64|, kernel|\),| \* 2 \* 2)"
EDITS = {  # of the README's table: how often they change the file as it is, what is replaced, and by what
    "no augmentation": (1, r"images = augment\(images\)", "pass"),
    "no dropout": (1, r"nn\.Dropout\(.*", ""),
    "no batch norm": (8, r"nn\.BatchNorm2d\(.*|, bias=False", ""),
    "usual first weights": (1, r"nn\.init\.normal_\(.*", "pass"),
    "constant rate": (1, r"scheduler\.step\(\).*", "pass"),
    "SGD": (1, r"torch\.optim\.Adam\(.*", "torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)"),
    "half width": (12, WIDTHS, lambda match: str(int(match[0]) // 2)),
    "double width": (12, WIDTHS, lambda match: str(int(match[0]) * 2)),
    "strides": (4, r"nn\.MaxPool2d\(.*|((16|16, 32), kernel_size=.)", lambda m: f"{m[1]}, stride=2" if m[1] else ""),
}

@pytest.fixture(scope="session")
def loaders(mnist):
    return mnist_cnn.make_loaders(mnist, 96, "cpu")

def reported(out, split="Test"):
    """Return the last loss, the accuracy in per cent, the count of right images and of all, as they are printed."""
    line = rf"{split}: average loss (\d+\.\d+), accuracy (\d+\.\d+)% \((\d+)/(\d+)\)"
    loss, accuracy, correct, total = re.search(line, out).groups()
    assert f"{split.lower()} loss {loss}, accuracy {accuracy}%" in out  # the line of the last epoch
    return float(loss), float(accuracy), int(correct), int(total)

def test_smoke(trained, loaders):
    outputs, out, model = trained
    parameters = sum(parameter.numel() for parameter in model.parameters())
    for line in ("device: cpu", "images: 60,000 for training, 10,000 for the test", f"parameters: {parameters:,}"):
        assert f"{line}\n" in out
    batches = re.findall(r"epoch 1/1 .*batch +(\d+)/600 .*loss \d+\.\d+", out)
    assert [int(batch) for batch in batches] == list(range(20, 601, 20))
    loss, accuracy, correct, total = reported(out)
    assert total == 10_000 and accuracy == correct / 100 >= 85
    for name in ("loss_curves.png", "mistakes.png"):
        with Image.open(outputs / name) as image:  # a blank one has a single colour
            assert name in out and image.format == "PNG" and len(image.convert("RGB").getcolors(2**24)) > 50
    # The saved weights give this result; images in another batch may round differently.
    assert mnist_cnn.evaluate(model, loaders[1])[:2] == (pytest.approx(loss, abs=1e-3), pytest.approx(correct, abs=2))
    logits = model(next(iter(loaders[1]))[0])
    for sums in (logits.sum(dim=1), logits.exp().sum(dim=1)):  # with softmax or log-softmax at the end, all are one
        assert sums.shape == (96,) and not torch.allclose(sums, torch.ones(96), atol=1e-3)

def test_loaders(mnist, loaders, monkeypatch):
    """Images as ToTensor returns them, in the data set's order for testing, in a new one each epoch for training."""
    images, labels = (torch.cat(parts) for parts in zip(*loaders[1]))
    assert (images.shape, images.dtype, labels.dtype) == ((10_000, 1, 28, 28), torch.float32, torch.int64)
    assert torch.equal(labels, mnist[1].targets) and len(loaders[1]) == 105
    monkeypatch.setattr(mnist[1], "transform", ToTensor())
    for index in range(0, 10_000, 100):  # where a learner normalizes them, they still go up and down together
        assert torch.stack([mnist[1][index][0].flatten(), images[index].flatten()]).corrcoef()[0, 1] > 0.999
    orders = [torch.cat([labels for _, labels in loaders[0]]) for _ in range(2)]
    for order, other in ((orders[0], orders[1]), (orders[0], mnist[0].targets)):
        assert not torch.equal(order, other) and torch.equal(order.bincount(), other.bincount())

def test_validate(mnist, tmp_path, monkeypatch, capsys):
    train_loader, loader = mnist_cnn.make_loaders(mnist, 100, "cpu", validate=True)
    assert torch.equal(torch.cat([labels for _, labels in loader]), mnist[0].targets[50_000:])
    labels = torch.cat([labels for _, labels in train_loader])
    assert torch.equal(labels.bincount(), mnist[0].targets[:50_000].bincount())
    small = SimpleNamespace(data=mnist[0].data[-10_100:], targets=mnist[0].targets[-10_100:])
    monkeypatch.setattr(mnist_cnn, "load_mnist", lambda data_dir: (small, mnist[1]))
    monkeypatch.setattr(mnist_cnn, "save", lambda path, result: True)  # which takes a second
    result, out, _ = call(capsys, "--output-dir", tmp_path, "--validate")
    _, accuracy, correct, total = reported(out, "Validation")
    assert total == 10_000 and accuracy == correct / 100 == pytest.approx(result) and "images: 100 " in out

def test_what_is_learned_measured_and_forgotten(loaders, monkeypatch, capsys):
    """Another network can be handed in, too; dropout is on in training alone, and gradients must not add up."""
    torch.manual_seed(0)
    model, modes, sizes = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), [], []
    def run(batches, lr):
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        return mnist_cnn.train(model, batches, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1), 3, 7, 30)
    losses, accuracies = run([batch for batch, _ in zip(loaders[0], range(80))], 3e-3)
    assert losses.shape == accuracies.shape == (80,) and not losses.requires_grad
    assert losses[-20:].mean() < 0.8 * losses[0] and accuracies[-20:].mean() > accuracies[0] + 10
    logged = re.findall(r"epoch 3/7 .*batch +(\d+)/80 .*loss (\d+\.\d+)", capsys.readouterr().out)
    assert logged == [(f"{batch}", f"{losses[batch - 1]:.4f}") for batch in (30, 60)]
    monkeypatch.setattr(mnist_cnn, "augment", lambda images: images, raising=False)
    model.register_forward_hook(lambda *arguments: modes.append(model.training))
    images, labels = (part[:50] for part in next(iter(loaders[1])))
    for count in (1, 9):  # with lr=0 no weight changes, and so a batch has the same gradient whenever it comes
        model.zero_grad()
        losses, accuracies = run([(images, labels)] * count, 0)
        sizes.append(model[1].weight.grad.norm().item())
        loss, correct, probabilities = mnist_cnn.evaluate(model, DataLoader(TensorDataset(images, labels), 32))
    assert 0 < sizes[1] < 3 * sizes[0] and modes == [True] + [False] * 2 + [True] * 9 + [False] * 2
    logits = model(images).detach()
    assert loss == pytest.approx(mnist_cnn.criterion(logits, labels).item(), rel=1e-5)
    assert correct == (logits.argmax(dim=1) == labels).sum()
    assert torch.allclose(probabilities, logits.softmax(dim=1), atol=1e-5)
    assert losses.tolist() == pytest.approx([loss] * 9) and accuracies.tolist() == pytest.approx([2 * correct] * 9)

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
    if not torch.allclose(changed[0][0], images, atol=1e-3):  # where a learner's ranges are zero, it is
        assert not torch.equal(changed[0], changed[2]) and not torch.equal(*changed[0][:2])

@pytest.mark.parametrize("device", ["cpu", *["cuda"] * torch.cuda.is_available()])
def test_flags_decide(device, small_mnist, tmp_path, capsys, monkeypatch):
    for name in ("plot_curves", "plot_mistakes"):  # which take a second
        monkeypatch.setattr(mnist_cnn, name, lambda *arguments: {})
    runs, flags = [], ["--device", device, "--epochs", 2, "--batch-size", 64, "--log-interval", 7]
    for seed in (2**64 - 1, 2**64 - 1, 3):
        accuracy, out, _ = call(capsys, "--output-dir", tmp_path, *flags, "--seed", seed)
        _, said, correct, total = reported(out)
        assert type(accuracy) is float and accuracy == pytest.approx(said) == 100 * correct / total
        assert re.findall(r"epoch (\d)/2 .*batch +(\d+)/16\b", out) == [(e, b) for e in "12" for b in ("7", "14")]
        runs.append((re.findall(r"batch.* loss .*", out), (tmp_path / "mnist_cnn.pt").read_bytes()))
    assert runs[0] == runs[1] or device == "cuda"  # there, the last digits may differ
    assert runs[0][0] != runs[2][0] and runs[0][1] != runs[2][1]

@pytest.mark.parametrize("started", ["home/a.py", "link.py", "ipykernel_launcher.py"])
def test_constants_are_the_defaults_and_folders_lie_beside_the_script(started, tmp_path, monkeypatch):
    """A notebook's cell has the current folder, and is not meant by the flags of what runs it."""
    monkeypatch.setenv("USERPROFILE" if os.name == "nt" else "HOME", str(tmp_path / "me"))
    monkeypatch.chdir(tmp_path)
    if started == "link.py":
        os.name == "nt" and pytest.skip("there, links need an administrator")
        Path("link.py").symlink_to(tmp_path / "home" / "a.py")
    cell, flags, folder, seed = {"__file__": started}, ["--seed", "6"], tmp_path.resolve() / "home", 6
    if started == "ipykernel_launcher.py":
        cell, flags, folder, seed = {}, ["-f", "k.json"], Path(), 5
    exec(SOURCE, cell := {"__name__": "cell"} | cell)
    values = {"EPOCHS": 77, "BATCH_SIZE": 33, "LR": 0.125, "SEED": 5, "LOG_INTERVAL": 11, "VALIDATE": True}
    cell.update(values | {"DEVICE": "cpu", "DATA_DIR": "my data", "OUTPUT_DIR": "my outputs", "run": vars})
    monkeypatch.setattr(sys, "argv", [started, *flags])
    expected = {name.lower(): value for name, value in values.items()} | {"device": "cpu", "seed": seed}
    expected |= {"data_dir": folder / "my data", "output_dir": folder / "my outputs"}
    assert cell["main"]() == vars(cell["parse_args"]()) == expected
    assert cell["parse_args"](["--output-dir=~/runs"]).output_dir == tmp_path / "me" / "runs"

def test_requirements_of_the_file():
    header = re.search(r"^# /// script\n(# .*\n)*?# dependencies = \[(.*)\]\n(# .*\n)*?# ///$", SOURCE, re.MULTILINE)
    assert re.findall(r'"(.*?)"', header[2]) == (ROOT / "requirements.txt").read_text(encoding="utf-8").split()

@pytest.mark.parametrize("name", EDITS)
def test_edits_of_the_readme(name, small_mnist, tmp_path, capsys):
    source, made = re.subn(*EDITS[name][1:], SOURCE)
    if made != EDITS[name][0]:
        pytest.skip("the file is not as it was")
    exec(source, cell := {"__name__": "cell", "__file__": mnist_cnn.__file__})
    cell["load_mnist"] = mnist_cnn.load_mnist
    assert cell["CNN"]()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    if name == "half width":  # one is run for all
        cell["main"]([*FLAGS, "--output-dir", str(tmp_path), "--log-interval", "1", "--epochs", "4"])
        first, *_, last = re.findall(r"training loss (\d\.\d+)", out := capsys.readouterr().out)
        losses = [float(loss) for loss in re.findall(r"batch +\d+/10  loss (\S+)", out)]
        assert float(last) == pytest.approx(sum(losses[30:]) / 10, abs=1e-3) and float(last) < 0.7 * float(first)
