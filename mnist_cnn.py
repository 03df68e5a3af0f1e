"""Train a small convolutional network (CNN) on MNIST, test it, and read your own digits with it.

    python mnist_cnn.py --epochs 5 --lr 1e-3
    python mnist_cnn.py --predict photo.png

Reads from top to bottom: constants, data, model, training, testing, plots, own digits, command line.
"""

import argparse
import gzip
import io
import math
import os
import pickle
import sys
import tempfile
import time
import zipfile
from http.client import HTTPException
from pathlib import Path

import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import MNIST
from torchvision.datasets.utils import check_integrity
from torchvision.transforms.functional import pil_to_tensor

# Each constant is the default of the flag of the same name (--epochs, --batch-size, ...).
EPOCHS = 5  # how often the training sees each of the 60,000 training images
BATCH_SIZE = 100  # images in one training step
LR = 1e-3  # learning rate at its peak; it starts low, rises, and falls to zero at the end
SEED = 0  # the same seed on the same CPU gives the same result, to the last digit
LOG_INTERVAL = 20  # batches from one logged loss to the next
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where the network is trained
DATA_DIR = "data"  # holds MNIST/raw with the four archives; what is missing is downloaded
OUTPUT_DIR = "outputs"  # gets the weights and the pictures
SHOW = False  # open the plots in a window at the end

# MD5 of the four files once unpacked: torchvision checks its archives, but not what it reads.
UNPACKED_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


class UserError(Exception):
    """A fault that its user can mend; the message is one sentence that says how."""


def load_mnist(data_dir):
    """Return MNIST's training set (60,000 images) and test set (10,000).

    The archives in data_dir/MNIST/raw are unpacked once, and again wherever an unpacked file is
    damaged. Where there are none, torchvision downloads them.

    Raises:
        UserError: a file is damaged, the folder cannot be used, or the download failed.
    """
    raw = Path(data_dir, "MNIST", "raw")
    try:
        raw.mkdir(parents=True, exist_ok=True)
        for archive, md5 in ((raw / name, md5) for name, md5 in MNIST.resources):
            unpacked = archive.with_suffix("")
            if check_integrity(unpacked, UNPACKED_MD5[unpacked.name]):
                continue
            if check_integrity(archive, md5):
                write_file(unpacked, gzip.decompress(archive.read_bytes()))
            elif unpacked.exists():
                raise UserError(f"{unpacked} is damaged: delete it, and put the official {archive.name} beside it.")
    except OSError as error:
        raise UserError(f"Cannot use {raw} ({error.strerror}): choose another --data-dir.") from error
    try:
        return MNIST(data_dir, train=True, download=True), MNIST(data_dir, train=False)
    except (OSError, RuntimeError, HTTPException) as error:
        bad = [name for name, md5 in MNIST.resources if not check_integrity(raw / name, md5)]
        wanted = ", ".join(name for name, _ in MNIST.resources)
        reason = " ".join(str(error).split())
        raise UserError(
            f"{', '.join(bad)} is missing or damaged in {raw}, and the download failed ({reason}): "
            f"put the four official archives there ({wanted})."
        ) from error


class BatchedImages(Dataset):
    """Images and labels that stay on one device and are handed out a whole batch at a time.

    Decoding images one by one costs more time than training on them. A DataLoader asks for a
    batch at once where a data set defines __getitems__.
    """

    def __init__(self, mnist, device):
        self.images = mnist.data.unsqueeze(1).to(device)  # uint8, a quarter of the memory of float32
        self.labels = mnist.targets.to(device)

    def __len__(self):
        return len(self.labels)

    def __getitems__(self, indices):
        """Return images, float32 of shape (N, 1, 28, 28) in [0, 1], and labels, int64 of shape (N,)."""
        # non_blocking: the GPU gets the numbers of the images without the loop waiting for it.
        indices = torch.tensor(indices).to(self.labels.device, non_blocking=True)
        return self.images[indices].float() / 255, self.labels[indices]

    def __getitem__(self, index):
        images, labels = self.__getitems__([index])
        return images[0], labels[0]


def make_loaders(data_dir, batch_size, device):
    """Return the DataLoaders of the training set, shuffled, and of the test set, in order."""
    train_set, test_set = (BatchedImages(mnist, device) for mnist in load_mnist(data_dir))
    options = {"batch_size": batch_size, "collate_fn": lambda batch: batch}  # a batch comes ready-made
    return DataLoader(train_set, shuffle=True, **options), DataLoader(test_set, **options)


def augment(images, degrees=8, zoom=0.08, pixels=1):
    """Turn, scale and shift each image at random, by at most so much, so that no image is seen twice.

    Takes and returns images of shape (N, 1, 28, 28).
    """
    count, _, size, _ = images.shape
    angle, width, height, right, down = torch.empty(5, count, 1, 1, device=images.device).uniform_(-1, 1)
    angle, width, height = math.radians(degrees) * angle, 1 + zoom * width, 1 + zoom * height
    # grid_sample measures places from -1 to 1 across the image, and wants to know for each pixel of
    # the result which place of the image it shows. (F.affine_grid does the same, but slower.)
    x = (2 * torch.arange(size, device=images.device) + 1) / size - 1
    y = x[:, None]
    from_x = width * angle.cos() * x - height * angle.sin() * y + right * 2 * pixels / size
    from_y = width * angle.sin() * x + height * angle.cos() * y + down * 2 * pixels / size
    return F.grid_sample(images, torch.stack([from_x, from_y], dim=-1), align_corners=False)


class CNN(nn.Module):
    """A convolutional network that turns images into ten logits, one a digit."""

    def __init__(self):
        super().__init__()
        # Pooling comes first in a block: what follows then has a quarter of the pixels to work on.
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=5, bias=False),  # 28 x 28 pixels -> 24 x 24
            nn.MaxPool2d(2),  # -> 12 x 12
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=3, padding=1, bias=False),
            nn.MaxPool2d(2),  # -> 6 x 6
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Conv2d(64, 64, kernel_size=3, bias=False),  # -> 4 x 4
            nn.MaxPool2d(2),  # -> 2 x 2
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(64 * 2 * 2, 10),
        )
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                # Batch norm takes the scale of these weights out again; the smaller they are, the
                # further an Adam step turns them, and the faster they learn.
                nn.init.normal_(layer.weight, std=0.01)

    def forward(self, images):
        """Return logits of shape (N, 10) for images of shape (N, 1, 28, 28) in [0, 1].

        No softmax here: CrossEntropyLoss applies it, and a second one would slow the training and
        keep the loss above 1.46. Use logits.softmax(dim=1) where you want probabilities.
        """
        return self.layers(images)


def make_training(lr, steps, device):
    """Return a new network, its optimizer, and the schedule of the learning rate over all steps."""
    # channels_last speeds up convolution and pooling on a CPU; but for rounding, the results stay the same.
    model = CNN().to(device, memory_format=torch.channels_last)
    # beta 0.99 instead of 0.999: five epochs are too short for a memory of a thousand steps.
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.99), fused=True)
    # The rate rises to its peak over the first tenth of the steps, then falls to zero in a straight line.
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, 10 * (step + 1) / steps, (steps - step) / (0.9 * steps))
    )
    return model, optimizer, scheduler


def train(model, loader, optimizer, scheduler, epoch, epochs, log_interval):
    """Train for one epoch and return the loss of each batch, shape (batches,), on the CPU.

    Raises:
        UserError: a loss was not finite.
    """
    criterion = nn.CrossEntropyLoss()
    model.train()
    losses = []
    for batch, (images, labels) in enumerate(loader, start=1):
        loss = criterion(model(augment(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.detach())
        # Reading a number off a GPU waits for the GPU: only where a line is logged.
        if batch % log_interval == 0 or batch == len(loader):
            if not torch.stack(losses).isfinite().all():
                raise UserError(f"The loss is no longer finite (epoch {epoch}, batch {batch}): lower --lr.")
            if batch % log_interval == 0:
                width = len(str(len(loader)))
                print(f"epoch {epoch}/{epochs}  batch {batch:>{width}}/{len(loader)}  loss {loss:.4f}", flush=True)
    return torch.stack(losses).cpu()


@torch.inference_mode()
def test(model, loader):
    """Return the loss averaged over all images, how many are read right, and the probabilities.

    The probabilities, shape (images, 10), are in the order of the loader.
    """
    model.eval()
    logits, labels = zip(*((model(images), labels) for images, labels in loader))
    logits, labels = torch.cat(logits), torch.cat(labels)
    correct = (logits.argmax(dim=1) == labels).sum().item()
    return F.cross_entropy(logits, labels).item(), correct, logits.softmax(dim=1)


def draw_loss_curves(figure, losses, test_losses, accuracies, log_interval):
    """Draw training and test loss, and beside them the accuracy, over the epochs.

    Takes the loss of each batch as one tensor an epoch; test losses and accuracies (in percent)
    as one number an epoch.
    """
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    epochs, batches = range(1, len(losses) + 1), len(losses[0])
    every = torch.cat(losses)
    seen = torch.arange(1, len(every) + 1)
    logged = (seen - 1) % batches % log_interval == log_interval - 1
    window = math.ceil(batches / 10)
    smooth, middle = (line.unfold(0, window, 1).mean(dim=1) for line in (every, seen / batches))
    dots = {"linestyle": "", "marker": ".", "alpha": 0.4, "color": "C0"}
    left.plot((seen / batches)[logged].numpy(), every[logged].numpy(), **dots, label="training, as logged")
    left.plot(middle.numpy(), smooth.numpy(), color="C0", label=f"training, mean of {window} batches")
    left.plot(epochs, test_losses, "o-", color="C1", label="test, after each epoch")
    left.set(xlabel="epoch", ylabel="cross-entropy loss", yscale="log", xlim=(0, len(losses) * 1.02))
    left.legend()
    right.plot(epochs, accuracies, "o-", color="C1")
    right.set(xlabel="epoch", ylabel="test accuracy (%)", ylim=(min(accuracies) - 0.1, 100))
    right.set_xlim(0.5, len(epochs) + 0.5)
    right.xaxis.get_major_locator().set_params(integer=True)
    for axes in (left, right):
        axes.grid(alpha=0.3)


def png(figure):
    """Return the figure as the bytes of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    return content.getvalue()


def draw_mistakes(figure, images, labels, probabilities, most=100):
    """Draw the test images that are misread, worst first: most probability on the wrong digit.

    Takes images of shape (N, 1, 28, 28), labels (N,) and probabilities (N, 10).
    """
    probability, digit = probabilities.max(dim=1)
    wrong = (digit != labels).nonzero().flatten()
    worst = wrong[probability[wrong].argsort(descending=True)][:most].tolist()
    shown = f", the {most} worst of them here" if len(wrong) > most else ""
    figure.suptitle(f"{len(wrong)} of {len(labels):,} test images are misread{shown}")
    rows = math.ceil(len(worst) / 10)
    figure.set_size_inches(11, 1.1 * rows + 1)
    axes = figure.add_subplot()
    axes.set_axis_off()
    for place, index in enumerate(worst):
        x, y = place % 10, -(place // 10)
        axes.imshow(images[index, 0].numpy(), cmap="gray_r", extent=(x - 0.35, x + 0.35, y - 0.35, y + 0.35))
        said = f"said {digit[index]} ({probability[index]:.0%})\nis {labels[index]}"
        axes.text(x, y + 0.4, said, horizontalalignment="center", fontsize=9)
    axes.set(xlim=(-0.5, 9.5), ylim=(0.5 - rows, 0.9))


def read_picture(path):
    """Return the picture's brightness, float32 of shape (channels, height, width), right side up.

    Raises:
        UserError: the file is missing or is not a picture.
    """
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith(("I", "F")):  # 16 bits a pixel and more, which convert() would cut off
                levels = pil_to_tensor(image.convert("F")).nan_to_num()
                return levels / levels.max().clamp(min=1)
            pixels = pil_to_tensor(image.convert("RGBA")).float() / 255
    except (OSError, SyntaxError, ValueError, NotImplementedError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "it is no picture, or a damaged one"
        raise UserError(f"cannot be read ({reason}); name a whole picture, such as a PNG or JPEG.") from error
    colour, opacity = pixels[:3], pixels[3:]
    mean = (colour * opacity).sum() / (3 * opacity.sum()).clamp(min=1)
    # Where most is transparent, that is the paper, and it must not have the brightness of the ink.
    paper = mean if opacity.mean() > 0.5 else (mean < 0.5).float()
    return colour * opacity + paper * (1 - opacity)


def remove_paper(brightness):
    """Return how far each pixel is from the paper, ink positive, and the grain of the paper.

    Light falls unevenly, so the paper is taken to be a quadratic surface, fitted to the pixels that
    are near it (iteratively reweighted least squares), starting from the brightness of the border.
    Takes and returns shape (H, W); the grain is a standard deviation.
    """
    height, width = brightness.shape
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    surfaces = torch.stack([torch.ones_like(x), x, y, x * y, x * x, y * y], dim=-1).view(-1, 6).double()
    border = torch.maximum(x.abs(), y.abs()) > 0.9
    pixels = brightness.double().view(-1, 1)
    difference = pixels - brightness[border].median()
    for _ in range(12):
        weighted = surfaces / (difference**2 + 0.03**2)
        # The small diagonal keeps the equations solvable where the picture is one pixel wide.
        normal = weighted.T @ surfaces + 1e-4 * torch.eye(6)
        difference = pixels - surfaces @ torch.linalg.solve(normal, weighted.T @ pixels)
    difference = difference.float()
    difference = difference * (difference**3).sum().sign()  # the ink is the longer tail
    # Grain is taken to be normal: a quarter of it then lies within 0.32 of its standard deviation.
    return difference.view(height, width), difference.abs().quantile(0.25).item() / 0.32


def connected_parts(mask):
    """Number the connected parts of a mask of shape (H, W): one number a part, 0 where it is False."""
    numbers = torch.arange(1.0, mask.numel() + 1).view(mask.shape) * mask
    while True:
        spread = grow(numbers, 1) * mask
        if spread.equal(numbers):
            return numbers.long()
        numbers = spread


def grow(pixels, radius):
    """Return the largest value within the radius of each pixel, shape (H, W)."""
    return F.max_pool2d(pixels[None], 2 * radius + 1, stride=1, padding=radius)[0]


def find_ink(picture, side=128):
    """Return the digit of a picture, cut out: shape (h, w), ink 1 on paper 0.

    Takes shape (channels, H, W). The picture is looked at shrunk to so many pixels a side, and then
    again, closer, while the digit is but a small part of it.

    Raises:
        UserError: there is no ink.
    """
    height, width = picture.shape[1:]
    shrink = max(height / side, width / side, 1)
    small = F.interpolate(picture[None], (math.ceil(height / shrink), math.ceil(width / shrink)), mode="area")[0]
    channel = small[small.flatten(1).std(dim=1).argmax()]  # red ink shows in blue light, blue ink in red
    difference, grain = remove_paper(channel)
    smooth, noise = difference, 0
    if min(small.shape[1:]) > 40:  # the strokes are wide enough to average over the grain
        smooth, noise = F.avg_pool2d(difference[None], 3, stride=1, padding=1)[0], grain
    peak = smooth.max().item()
    if not peak > max(0.03, 2.5 * noise):
        raise UserError("is empty; there must be a digit darker or lighter than its paper.")
    # Dust and the lines of ruled paper are fainter or smaller than the digit.
    parts = connected_parts(smooth > max(0.4 * peak, 1.5 * noise))
    mass = torch.bincount(parts.flatten(), difference.flatten().clamp(min=0))
    mass[0] = 0
    digit = (mass > 0.08 * mass.max())[parts]
    black, white = difference[digit].quantile(0.8).item(), max(grain, 0.04 * peak)
    ink = ((difference - white) / (black - white)).clamp(0, 1) * grow(digit.float(), max(1, side // 64))
    rows, columns = ((ink > 0.05).any(dim=d).nonzero().flatten() for d in (1, 0))
    top, bottom, left, right = rows[0].item(), rows[-1].item() + 1, columns[0].item(), columns[-1].item() + 1
    size = max(bottom - top, right - left)
    if shrink == 1 or size > side / 3:
        return ink[top:bottom, left:right]
    margin = 0.35 * size + 1
    top, left = (max(0, int(shrink * (edge - margin))) for edge in (top, left))
    bottom, right = (int(shrink * (edge + margin)) for edge in (bottom, right))
    return find_ink(picture[:, top:bottom, left:right], side)


def prepare(picture):
    """Bring a picture into MNIST's own form: shape (1, 28, 28), ink 1 on paper 0.

    The digit is scaled, its aspect kept, to fit a box of 20 x 20, and placed so that its centre of
    mass is the centre of the image, as in LeCun et al., "Gradient-Based Learning Applied to Document
    Recognition", 1998, section III-A. Takes shape (channels, H, W), dark on light or light on dark.

    Raises:
        UserError: there is no ink.
    """
    ink = find_ink(picture)
    height, width = (max(1, round(20 * length / max(ink.shape))) for length in ink.shape)
    ink = F.interpolate(ink[None, None], (height, width), mode="bilinear", antialias=True)[0, 0]
    ink = ink / ink.max()
    centre_y = (ink.sum(dim=1) * (torch.arange(height) + 0.5)).sum() / ink.sum()
    centre_x = (ink.sum(dim=0) * (torch.arange(width) + 0.5)).sum() / ink.sum()
    top = min(max(round(14 - centre_y.item()), 0), 28 - height)
    left = min(max(round(14 - centre_x.item()), 0), 28 - width)
    image = torch.zeros(1, 28, 28)
    image[0, top : top + height, left : left + width] = ink
    return image


def load_model(path):
    """Return the network with the weights of a file that train_and_test saved.

    Raises:
        UserError: the file is missing, damaged or of another network.
    """
    if not path.exists():
        raise UserError(f"There are no weights in {path} yet: train first, without --predict.")
    model = CNN()
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():  # torch.load does not look at the checksums
                raise ValueError("a checksum is wrong")
        # map_location: the weights may have been saved by a run on a GPU that this machine lacks.
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, ValueError, TypeError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is damaged or holds another network's weights: train again.") from error
    return model.eval()


@torch.inference_mode()
def predict(paths, weights):
    """Print what digit each picture shows; return the exit status, 1 if one of them cannot be read.

    Raises:
        UserError: the weights cannot be used.
    """
    model, status = load_model(weights), 0
    for path in paths:
        try:
            logits = model(prepare(read_picture(path))[None])
        except UserError as error:
            print(f"{path} {error}", file=sys.stderr)
            status = 1
            continue
        (first, second), (digit, other) = (both.tolist() for both in logits.softmax(dim=1)[0].topk(2))
        second_choice = f", or {other} ({second:.1%})" if second > 0.01 else ""
        print(f"{path}: {digit} ({first:.1%}){second_choice}", flush=True)
    return status


def write_file(path, content):
    """Write bytes to a file that appears whole or not at all, whatever stops the program."""
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            part = Path(folder, path.name)
            part.write_bytes(content)
            part.replace(path)
    except OSError as error:
        raise UserError(f"Cannot write {path} ({error.strerror}): make room, or choose another folder.") from error


def prepare_output_dir(output_dir):
    """Make the folder if need be, and find out now, not after the training, that results can be written.

    Raises:
        UserError: they cannot.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir) as probe:
            probe.write(bytes(2_000_000))  # more than the results take
    except OSError as error:
        raise UserError(f"Cannot write to {output_dir} ({error.strerror}): choose another --output-dir.") from error


def train_and_test(args):
    """Train, test, print and save as the flags say.

    Raises:
        UserError: see load_mnist, train and write_file.
        KeyboardInterrupt: with a sentence that says after which epoch.
    """
    output_dir = Path(args.output_dir)
    prepare_output_dir(output_dir)
    torch.manual_seed(args.seed)
    train_loader, test_loader = make_loaders(args.data_dir, args.batch_size, args.device)
    model, optimizer, scheduler = make_training(args.lr, args.epochs * len(train_loader), args.device)
    print(f"device: {args.device}")
    print(f"images: {len(train_loader.dataset):,} for training, {len(test_loader.dataset):,} for testing")
    print(f"parameters: {sum(parameter.numel() for parameter in model.parameters()):,}", flush=True)

    losses, test_losses, accuracies = [], [], []
    try:
        for epoch in range(1, args.epochs + 1):
            start = time.perf_counter()
            losses.append(train(model, train_loader, optimizer, scheduler, epoch, args.epochs, args.log_interval))
            test_loss, correct, probabilities = test(model, test_loader)
            test_losses.append(test_loss)
            accuracies.append(100 * correct / len(probabilities))
            print(
                f"epoch {epoch}/{args.epochs}  training loss {losses[-1].mean():.4f}  test loss {test_loss:.4f}  "
                f"test accuracy {accuracies[-1]:.2f}%  {time.perf_counter() - start:.1f} s",
                flush=True,
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Stopped after epoch {len(accuracies)} of {args.epochs}; nothing was saved.") from None

    print(
        f"Test: average loss {test_loss:.4f}, accuracy {accuracies[-1]:.2f}% ({correct}/{len(probabilities)})",
        flush=True,
    )

    new_figure = pyplot.figure if args.show else Figure  # a Figure of its own needs no display
    curves = new_figure(figsize=(10, 4), layout="constrained")
    draw_loss_curves(curves, losses, test_losses, accuracies, args.log_interval)
    mistakes = new_figure(layout="constrained")
    test_set = test_loader.dataset
    draw_mistakes(mistakes, test_set.images.cpu(), test_set.labels.cpu(), probabilities.cpu())
    weights = io.BytesIO()
    torch.save(model.state_dict(), weights)
    write_file(output_dir / "mnist_cnn.pt", weights.getvalue())
    write_file(output_dir / "loss_curves.png", png(curves))
    write_file(output_dir / "mistakes.png", png(mistakes))
    if args.show:
        pyplot.show()


def device_works(name):
    """Tell whether a number can be put on the device of that name and read back."""
    try:
        return torch.ones(1, device=name).item() == 1
    except (RuntimeError, AssertionError):  # an assertion is how torch says that it was built without CUDA
        return False


def can_show():
    """Tell whether matplotlib can open a window here."""
    try:
        interactive = pyplot.figure().canvas.required_interactive_framework is not None
    except ImportError:  # the backend asked for is not installed, or finds no display
        return False
    pyplot.close()
    return interactive


class Parser(argparse.ArgumentParser):
    """A parser that answers a wrong flag with one sentence, without the list of all flags."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def parse_args(argv=None):
    """Return the command line's flags, checked; a wrong one ends the program with exit status 2."""
    show_defaults = argparse.ArgumentDefaultsHelpFormatter
    parser = Parser(description=__doc__.splitlines()[0], formatter_class=show_defaults, allow_abbrev=False)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="passes over the training images")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help="images in one step")
    parser.add_argument("--lr", type=float, default=LR, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=SEED, help="start of the random numbers")
    parser.add_argument("--log-interval", type=int, default=LOG_INTERVAL, help="batches between logged losses")
    parser.add_argument("--device", default=DEVICE, help="cpu, cuda, or cuda:1 for a second GPU")
    parser.add_argument("--data-dir", default=DATA_DIR, help="folder of MNIST")
    parser.add_argument("--output-dir", default=OUTPUT_DIR, help="folder of the weights and the pictures")
    parser.add_argument("--show", action="store_true", default=SHOW, help="open the plots in a window")
    parser.add_argument("--predict", nargs="+", metavar="IMAGE", help="read these pictures instead of training")
    args = parser.parse_args(argv)
    checks = {
        f"--epochs must be 1 or more, not {args.epochs}": args.epochs >= 1,
        f"--batch-size must be from 1 to 60000, not {args.batch_size}": 1 <= args.batch_size <= 60000,
        f"--lr must be a finite number above 0, not {args.lr}": 0 < args.lr < math.inf,
        f"--seed must be from 0 to 2**64 - 1, not {args.seed}": 0 <= args.seed < 2**64,
        f"--log-interval must be 1 or more, not {args.log_interval}": args.log_interval >= 1,
        f"--device {args.device!r} is not to be had here: leave it out, or try cpu": device_works(args.device),
        "--data-dir must name a folder, not be empty": args.data_dir,
        "--output-dir must name a folder, not be empty": args.output_dir,
        "--predict must name pictures, not be empty": args.predict is None or all(args.predict),
        "--show needs a display: without it, the plots are in the output folder": not args.show or can_show(),
    }
    for message, passed in checks.items():
        if not passed:
            parser.error(message)
    return args


def main(argv=None):
    """Run the program with the command line argv; return its exit status."""
    args = parse_args(argv)
    try:
        if args.predict:
            return predict(args.predict, Path(args.output_dir, "mnist_cnn.pt"))
        train_and_test(args)
    except UserError as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "Stopped.", file=sys.stderr)
        return 130
    except OSError as error:  # nobody reads the output any more, as after "| head", or its disk is full
        print(f"Cannot print ({error.strerror}): stopped.", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python prints on its way out
        return 1
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # a picture's name may hold what cannot be printed
    sys.exit(main())
