"""Train a small convolutional neural network (CNN) on MNIST, test it, and let it read your digits.

Read from the top: constants, data, network, training, testing, more images, the run. A comment
marks where the story ends; save and the plots, which the run calls, stand after it.
"""

# The story needs these.
import math
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import MNIST
from torchvision.datasets.utils import extract_archive

# isort: split
# What follows it needs these: skip them. (The line above keeps a formatter from sorting them in.)
import argparse
import io
import os
import sys
import warnings
from glob import glob
from textwrap import shorten

from matplotlib import style
from matplotlib.backend_bases import TimerBase
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.widgets import Button, LassoSelector
from PIL import Image, ImageDraw, ImageOps
from torchvision.transforms.functional import center_crop, pil_to_tensor, resized_crop

script = Path(globals().get("__file__", "cell")).resolve()  # a notebook's cell has no file

# Each constant in capitals is the default of a flag: python mnist_cnn.py --epochs 3 --batch-size 64
EPOCHS = 5  # passes over the training images
BATCH_SIZE = 100  # images in one training step
LR = 1e-3  # learning rate at the start: how far a step changes the weights; it falls to zero
SEED = 0  # start of the random numbers: on the same CPU, the same seed gives the same result
LOG_INTERVAL = 20  # batches from one logged loss to the next
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where the network is trained
DATA_DIR = script.parent / "data"  # holds MNIST, or gets the download
OUTPUT_DIR = script.parent / "outputs"  # gets the weights and the plots


def load_mnist(data_dir):
    """Return MNIST's training and test set, downloaded if need be; raise UserError if it can't.

    Nothing of it is needed to follow the story: go on to make_dataset.
    """
    names = [name for name, _ in MNIST.resources]  # of four archives
    raw = Path(data_dir, MNIST.__name__, "raw")  # where torchvision keeps them
    try:
        # torchvision would unpack the archives beside them, where a run that was killed may have
        # left half a file. So they are unpacked in a folder that is deleted at the end.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            unpacked = Path(folder, MNIST.__name__, "raw")
            unpacked.mkdir(parents=True)
            with suppress(FileNotFoundError):  # if one is missing, it is downloaded to data_dir
                for name in names:
                    extract_archive(raw / name, unpacked)
                data_dir = folder
            return MNIST(data_dir, train=True, download=True), MNIST(data_dir, train=False)
    except Exception as error:  # torchvision raises whatever it likes
        raise UserError(
            f"Can't load {MNIST.__name__} ({error}): put {', '.join(names)} in {raw}."
        ) from error


def make_dataset(dataset, device):
    """Return one of torchvision's two sets as tensors: images in [0, 1], float32, and labels."""
    # data has the pixels of all images, (N, 28, 28), as whole numbers from 0 (paper) to 255. (So a
    # transform that was given to MNIST has no effect; who normalises does it in CNN's forward.)
    # PyTorch expects images, channels, rows, columns: unsqueeze adds the channels, 1 for grey.
    # to(device) moves a tensor to the GPU, if there is one: it has to be where the network is.
    images = dataset.data.unsqueeze(1).to(device) / 255
    return TensorDataset(images, dataset.targets.to(device))


def make_loaders(mnist, batch_size, device, validate):
    """Return DataLoaders for training and testing; mnist is the pair of torchvision's sets.

    A batch is a pair: images (batch_size, 1, 28, 28) and labels (batch_size,).
    """
    train_set, test_set = (make_dataset(dataset, device) for dataset in mnist)
    if validate:
        # A slice of a set is a pair, its images and labels.
        test_set = TensorDataset(*train_set[-10_000:])
        train_set = TensorDataset(*train_set[:-10_000])
    # A loop takes batches from a DataLoader. Shuffled, they differ in each epoch: more is learned.
    return DataLoader(train_set, batch_size, shuffle=True), DataLoader(test_set, batch_size)


class CNN(nn.Module):
    """A convolutional network that turns images into logits.

    Logits are ten numbers, one per digit; the highest marks the network's guess.
    """

    def __init__(self):
        super().__init__()
        # nn.Module searches what is assigned to self for weights and biases, the network's
        # parameters: parameters() returns them, to(device) moves them to a GPU.
        # Beside each layer stands one image's shape after it: channels x height x width.
        # A convolution looks for patterns; a channel is a map of where one was found. A window of 5
        # has 24 places in 28 pixels; padding, a border of zeros, would keep the size as it is.
        # (Digits have a margin of 4 pixels, so the first needs none; the last two shrink the maps.)
        # A pool keeps the highest of every 2 x 2 numbers.
        # Batch norm brings each map to mean 0 and deviation 1, then scales it and adds a bias, both
        # learned. With that bias, a convolution needs none of its own. For testing it remembers
        # means and deviations; momentum says how fast they follow (the usual 0.1 is late at first).
        # ReLU sets negatives to 0. In training, dropout zeroes a tenth at random, so that the
        # network relies on no single number.
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=5, bias=False),  # 16 x 24 x 24
            nn.MaxPool2d(2),  # 16 x 12 x 12
            nn.BatchNorm2d(16, momentum=0.3),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=3, padding=1, bias=False),  # 32 x 12 x 12
            nn.MaxPool2d(2),  # 32 x 6 x 6
            nn.BatchNorm2d(32, momentum=0.3),
            nn.ReLU(),
            nn.Conv2d(32, 64, kernel_size=3, bias=False),  # 64 x 4 x 4
            nn.BatchNorm2d(64, momentum=0.3),
            nn.ReLU(),
            nn.Conv2d(64, 64, kernel_size=3, bias=False),  # 64 x 2 x 2
            nn.BatchNorm2d(64, momentum=0.3),
            nn.ReLU(),
            nn.Flatten(),  # 256
            nn.Dropout(0.1),
            nn.Linear(64 * 2 * 2, 10),  # 10 logits
        )
        # First weights are random. Small ones learn faster, as each step changes them by a larger
        # share. A convolution's can be small where batch norm follows: it rescales what comes out.
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and layer.bias is None:
                nn.init.normal_(layer.weight, std=0.01)

    def forward(self, images):
        """Return the logits (N, 10) of images (N, 1, 28, 28) in [0, 1]; model(images) calls this.

        Who normalises images does it here, so that digits of one's own are normalised, too.
        """
        return self.layers(images)


criterion = nn.CrossEntropyLoss()  # the loss; it turns logits into probabilities itself, by softmax


def measure(loss, logits, labels):
    """Return a batch's loss, summed over its images, how many are read right, and of how many."""
    # argmax is, of each image's ten logits, the place of the highest: the network's guess.
    right = (logits.argmax(dim=1) == labels).sum()
    # detach: the number without PyTorch's notes on how it came about, which take memory.
    return loss.detach() * len(labels), right, len(labels)


def summarize(batches):
    """Return the mean loss, and the accuracy in per cent, of measured batches, (batches, 3).

    Each image counts once: the last batch may be smaller.
    """
    loss, right, count = batches.sum(dim=0).tolist()
    return loss / count, 100 * right / count


def train(model, loader, optimizer, scheduler, title, log_interval):
    """Train for one epoch; return a tensor (batches, 3), measure's three numbers of each batch.

    Every log_interval batches, print the loss after title.
    """
    # This trains nothing yet, but switches: dropout is on, and batch norm measures each map's mean
    # and deviation in the batch.
    model.train()
    batches = []
    for number, (images, labels) in enumerate(loader, start=1):
        images = augment(images)  # distort each at random, so that none is seen twice
        optimizer.zero_grad()  # forget the last batch's gradients: backward adds to what is there
        logits = model(images)
        loss = criterion(logits, labels)  # the batch's mean
        # PyTorch has noted how the loss came from the weights. backward goes the same way back
        # (backpropagation), and stores beside each weight its gradient: how the loss changes when
        # the weight grows. There the optimizer finds it, which was given the weights in run.
        loss.backward()
        optimizer.step()  # change each weight a little, against its gradient
        scheduler.step()  # set the next learning rate: here once a batch, not once an epoch
        batches.append(measure(loss, logits, labels))
        if number % log_interval == 0:
            print(f"{title}  batch {number:3}/{len(loader)}  loss {loss.item():.4f}")
    return torch.tensor(batches)  # waits until a GPU has finished, so it is not done in the loop


@torch.inference_mode()  # no gradients are needed here, so nothing is kept for them
def evaluate(model, loader):
    """Test: return a tensor (batches, 3), as train does."""
    model.eval()  # a switch, too: dropout is off; batch norm uses what it remembers of training
    batches = []
    for images, labels in loader:
        logits = model(images)
        batches.append(measure(criterion(logits, labels), logits, labels))
    return torch.tensor(batches)


def augment(images, stretch=0.1, slant=0.2, shift=1):
    """Return images (N, 1, 28, 28), each distorted at random.

    Each is stretched and slanted by up to these shares, and moved by up to shift pixels. So there
    are more different images than 60,000, too many for the network to learn by heart.
    """
    # Each pixel (x, y) of the new image comes from another place of the original,
    # (a x + b y + c, d x + e y + f): a and e change width and height, b and d slant, c and f move.
    # The matrix [[a, b, c], [d, e, f]] is random, but near [[1, 0, 0], [0, 1, 0]], which changes
    # nothing: torch.eye(2, 3). x and y go from -1 to 1 over 28 pixels, so one pixel is 2 / 28.
    # affine_grid computes these places, and grid_sample looks up what is there.
    move = shift * 2 / 28
    limits = torch.tensor([[stretch, slant, move], [slant, stretch, move]])
    changes = torch.empty(len(images), 2, 3).uniform_(-1, 1)
    matrices = torch.eye(2, 3) + limits * changes
    grid = F.affine_grid(matrices.to(images.device), images.shape, align_corners=False)
    # A place between pixels gets a mixture of its neighbours: bicubic, of sixteen, as the usual
    # four would blur the strokes. Some values leave [0, 1] by a little.
    return F.grid_sample(images, grid, mode="bicubic", align_corners=False)


def run(args):
    """Train, test, and save the weights and plots; return the accuracy in per cent.

    args has the values of the command line's flags, from parse_args.
    """
    torch.manual_seed(args.seed)
    mnist = load_mnist(args.data_dir)
    train_loader, test_loader = make_loaders(mnist, args.batch_size, args.device, args.validate)
    # channels_last is the order of the numbers in memory with which a CPU is fastest.
    model = CNN().to(args.device, memory_format=torch.channels_last)
    # Plain gradient descent changes a weight by lr times its gradient. Adam divides the gradient by
    # its recent size, so that a step is about lr long, be the gradient small or large. The betas
    # say how far back it looks: about 10 steps for the gradient (0.9), 100 for its size (0.99; the
    # usual 0.999 stands for 1,000, a third of the run).
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, betas=(0.9, 0.99))
    steps = args.epochs * len(train_loader)
    # The share of lr that is used after so many steps: all, until 70% are left; 0 at last.
    scheduler = LambdaLR(optimizer, lambda step: min(1, (1 - step / steps) / 0.7))

    split = "validation" if args.validate else "test"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    count = len(test_loader.dataset)
    print(f"device: {args.device}")
    print(f"images: {len(train_loader.dataset):,} for training, {count:,} for the {split}")
    print(f"parameters: {parameters:,}")

    history = []  # of each epoch, what plot_curves shows
    for epoch in range(1, args.epochs + 1):
        start = time.perf_counter()
        title = f"epoch {epoch}/{args.epochs}"
        batches = train(model, train_loader, optimizer, scheduler, title, args.log_interval)
        loss, accuracy = summarize(evaluate(model, test_loader))
        train_loss, train_accuracy = summarize(batches)
        if not math.isfinite(train_loss + loss):
            raise UserError(f"The loss is not finite after {title}: lower --lr; nothing was saved.")
        history.append((batches, loss, accuracy))
        trained = f"training loss {train_loss:.4f}, accuracy {train_accuracy:.2f}%"
        tested = f"loss {loss:.4f}, accuracy {accuracy:.2f}%"
        print(f"{title}  {trained}  {split} {tested}  {time.perf_counter() - start:.1f} s")

    print(f"{split.capitalize()}: average {tested} ({accuracy * count / 100:.0f}/{count})")
    # A state_dict has the parameters, and batch norm's means and deviations, by their names.
    save(args.output_dir / "mnist_cnn.pt", model.state_dict())
    save(args.output_dir / "loss_curves.png", plot_curves(history, split))
    save(args.output_dir / "mistakes.png", plot_mistakes(model, test_loader, split))
    print(f"Saved mnist_cnn.pt, loss_curves.png and mistakes.png in {args.output_dir}")
    return accuracy


# THE STORY ENDS HERE. What follows serves it, section by section: read what you need.


# Plots: each function shows results, and changes none.
def plot_curves(history, split):
    """Return a figure of the losses and accuracies of each epoch, in training and after it.

    history has, of each epoch, what train returned, and the test's loss and accuracy.
    """
    batches, *tests = zip(*history)
    parts = torch.cat(batches).chunk(150)  # more points would make a carpet, not a line
    middles = torch.arange(0.5, len(parts)) * len(parts[0]) / len(batches[0])  # in epochs
    figure = Figure(figsize=(8, 7), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    # Losses belong above, accuracies below.
    for axes, training, test in zip((upper, lower), zip(*map(summarize, parts)), tests):
        axes.plot(middles.tolist(), training, label=f"training, mean of {len(parts[0])} batches")
        axes.plot(range(1, len(test) + 1), test, "o-", label=f"{split}, after each epoch")
    upper.set(ylabel="cross-entropy loss", yscale="log")
    upper.legend()
    # The limits leave out how training started.
    lower.set(xlabel="epoch", ylabel="accuracy (%)", ylim=(min(tests[1]) - 10, 100.5))
    return figure


@torch.inference_mode()
def plot_mistakes(model, loader, split):
    """Return a figure of the misclassified images, the most confident first, a hundred at most."""
    mistakes = []
    for images, labels in loader:
        confidences, guesses = model(images).softmax(dim=1).max(dim=1)
        wrong = guesses != labels
        mistakes += zip(*(values[wrong].cpu() for values in (confidences, guesses, labels, images)))
    mistakes.sort(key=lambda mistake: mistake[0], reverse=True)
    figure = Figure(figsize=(11, 13), layout="constrained")  # save cuts off what stays empty
    figure.suptitle(
        f"{len(mistakes)} of {len(loader.dataset):,} {split} images are misclassified, "
        "the surest mistakes first"
    )
    for place, (confidence, guess, label, image) in enumerate(mistakes[:100], 1):
        axes = figure.add_subplot(10, 10, place)
        axes.axis("off")
        axes.imshow(image[0].numpy(), cmap="gray_r")
        axes.set_title(f"said {guess} ({confidence:.0%})\nis {label}", fontsize=8)
    return figure


def plot_readings(readings):
    """Return a figure with a line for each reading, be it of a single digit or of one in a row.

    A reading is a name, a picture (channels, H, W), the digit that the network saw in it
    (1, 28, 28), and its probabilities.
    """
    rows = len(readings)
    figure = Figure(figsize=(5, 1.8 * rows), layout="constrained")
    grid = figure.subplots(rows, 3, squeeze=False)
    for (left, middle, right), (name, picture, image, probabilities) in zip(grid, readings):
        left.imshow(picture.movedim(0, -1).numpy(), cmap="gray")
        left.axis("off")
        plot_reading(middle, right, image, probabilities)
        # Fonts lack some letters.
        middle.set_title(ascii(name[:40]), fontsize=8, parse_math=False)
    return figure


def plot_reading(left, right, image, probabilities):
    """Plot what the network saw, (1, 28, 28), and its probabilities, one per class, on two axes."""
    left.imshow(image[0].numpy(), cmap="gray_r", vmin=0, vmax=1)
    left.set(xticks=[], yticks=[])
    classes = range(len(probabilities))
    right.bar(classes, probabilities.tolist(), tick_label=classes, color="C0")
    right.set_ylim(0, 1)
    right.set_title(describe(probabilities[None]), fontsize=10)


# Own digits: from a file to an image like MNIST's, which the network can read. read_picture opens
# the file; find_ink looks for ink, in two ways in each channel. In each of these images,
# find_candidates looks for one digit (cut_out), find_rows for several side by side (find_parts);
# center gives each MNIST's form. read_digits lets the network choose among what was found.
# predict, at the end, does all of it.
def read_picture(path):
    """Return a file's picture, float32 (channels, H, W) in [0, 1], upright, 128 pixels long.

    It has one channel, grey, or four: red, green and blue on white paper, and opacity. Raise
    ValueError if it can't be read.
    """
    try:
        # What Pillow warns of, damaged EXIF data beside a picture, doesn't matter here.
        with warnings.catch_warnings(record=True), Image.open(path) as image:
            image.draft(None, (256, 256))  # a large JPEG is decoded at a fraction of its size
            mode = "F" if image.mode[0] in "IF" else "RGBA"  # F: one channel, more than 8 bits
            # 128 pixels are enough for a digit; sizes in the search are in such pixels.
            image = ImageOps.contain(image.convert(mode), (128, 128))
            if 0 in image.size:
                raise ValueError("it is no more than a line")
            with suppress(Exception):  # where its turn can't be read, a picture stays as it lies
                image = ImageOps.exif_transpose(image)
            pixels = pil_to_tensor(image)
    except FileNotFoundError:
        raise ValueError("there is no such file") from None
    except Exception as error:  # decoders raise whatever they like
        raise ValueError(f"it can't be read ({error}); use an intact JPEG or PNG file") from error
    if len(pixels) == 1:
        return (pixels / pixels.max()).clamp(0, 1)
    colour, opacity = (pixels / 255).split([3, 1])
    return torch.cat([colour * opacity + (1 - opacity), opacity])


def dilate(images, radius):
    """Return images (N, H, W) with each pixel as bright as the brightest in a square around it."""
    for _ in range(2):  # along the rows, then the columns: much faster than all of it at once
        images = F.max_pool1d(images, 2 * radius + 1, stride=1, padding=radius).mT
    return images


def erode(images, radius):
    """Return images (N, H, W) with each pixel as dark as the darkest in a square around it."""
    return -dilate(-images, radius)


def average(images, radius, pad=True):
    """Return images (N, H, W) with each pixel the mean of a square around it.

    What the square has beyond the border counts as zeros where pad is true, else not at all.
    """
    for _ in range(2):
        images = F.avg_pool1d(images, 2 * radius + 1, 1, radius, count_include_pad=pad).mT
    return images


def reconstruct(seeds, images):
    """Return images (N, H, W) in which only what is connected to seeds (N, H, W) is still bright.

    Vincent, "Morphological Grayscale Reconstruction in Image Analysis", 1993.
    """
    # Like water, the seeds flow on to their neighbours, but not above the images.
    while True:
        flood = torch.minimum(dilate(seeds, 1), images)
        if flood.equal(seeds):
            return flood
        seeds = flood


def add_up(images):
    """Return the sum of each of some images (N, H, W), as (N, 1, 1)."""
    return images.sum(dim=(1, 2), keepdim=True)


def brighten_ink(images):
    """Return images (N, H, W) whose ink is bright: each itself, or negative if its ink is dark."""
    # Without a fifth of it on each side, a picture shows no table.
    middle = center_crop(images, [round(0.6 * length) for length in images.shape[1:]])
    # Ink is rare: where it is dark, a few pixels are far below the mean around them.
    # The cube keeps the sign, and large differences count.
    skewness = add_up((middle - average(middle, 16, pad=False)).pow(3))
    return images.copysign(skewness)  # negative where ink is dark


def find_narrow(images):
    """Return what is bright in images (N, H, W), narrower than 39 pixels, and not at the border."""
    # Opening an image takes away what is too narrow for a square; the top-hat is what it took.
    top_hat = images - dilate(erode(images, 19), 19)
    border = top_hat.clone()
    border[:, 1:-1, 1:-1] = 0
    at_border = reconstruct(border, top_hat)
    # This leaves out tables and shadows. A pixel goes whole, or of a stroke that the border cuts
    # off bolder pieces would stay. (With 0.5, more digits in a form's cells would go, too; with
    # 0.8, fewer at the border would be read.)
    return top_hat * (at_border < 0.65 * top_hat)


def find_unlike(images):
    """Return what is unlike the paper in images (N, H, W); so a digit is found at the border."""
    # The left and right edge: a digit cut out tightly covers more of the other two.
    paper = images[..., [0, -1]].flatten(1).median(dim=1).values
    return (images - paper[:, None, None]).abs()


def find_ink(picture):
    """Return the ink in a picture (channels, H, W), as images (N, H, W).

    It is about 1 in strokes, less at their edges, and 0 elsewhere. Each channel is seen in two
    ways, as the network can tell later which shows a digit.
    """
    images = picture.unique(dim=0)  # a grey picture has one channel, be it three times
    contrast = (dilate(images, 2) - erode(images, 2)).flatten(1)
    grain = 4 * contrast.quantile(0.25, dim=1)  # is everywhere, ink is not
    images = images[contrast.amax(dim=1) > grain.clamp(min=0.01)]
    ink = torch.cat([find_narrow(brighten_ink(images)), find_unlike(images)])
    # The strokes' level: the mean, in which a pixel counts by the square of its ink.
    level = add_up(ink.pow(3)) / add_up(ink.square())
    strokes = (ink > level / 2).float()
    # They are dilated by 1, for the grey levels of their edges. Of no ink at all, the level is NaN.
    return dilate(strokes, 1) * (ink / level).nan_to_num()


def cut_out(ink, radius):
    """Return images of ink (N, H, W), each with one digit alone.

    Strokes with up to 2 * radius pixels between them belong together.
    """
    strokes = (ink > 0.5).float()
    near = dilate(strokes, radius)
    density = average(ink * strokes, 10) * near
    densest = near * (density == density.amax(dim=(1, 2), keepdim=True))
    return ink * reconstruct(densest, near)  # all that is near where ink is densest


def find_parts(ink):
    """Return a list of the digits side by side in an image of ink (H, W), each (1, 1, 28, 28)."""
    ink = ink * (ink > 0.3)  # where digits are near each other, their faint edges touch
    empty = (~ink.any(dim=0)).nonzero().flatten()  # columns without ink: cut at each
    parts = ink.tensor_split(empty, dim=1)
    heights = [part.any(dim=1).sum() for part in parts]  # 0 between two empty columns
    # Half as high as the highest is a minus, say, or a comma; 4 pixels or less can't be read.
    least = max(*heights, 8) / 2
    return [center(part) for part, height in zip(parts, heights) if height > least]


def center(ink):
    """Return an image of a digit's ink (H, W) as MNIST has it, (1, 1, 28, 28) in [0, 1].

    It is 20 pixels high or wide, and its centre of mass is in the centre. LeCun et al.,
    "Gradient-Based Learning Applied to Document Recognition", 1998, III-A.
    """
    ink = ink.clamp(max=1)
    places, mass = ink.nonzero(), ink[ink > 0]
    low, high = places.aminmax(dim=0)
    size = (high - low).max().item()  # its grey edge counts half
    side = round(size * 28 / 20)
    center_of_mass = mass @ (places + 0.5) / mass.sum()
    top, left = (center_of_mass - side / 2).round().int().tolist()
    image = resized_crop(ink[None, None], top, left, side, side, [28, 28])
    # Thin strokes turn grey when they are scaled down: brighten them to 0.6 on average, or nearly
    # what MNIST's own have, 0.69.
    mean = image[image > 0].mean().clamp(max=0.6)
    return (image * 0.6 / mean).clamp(max=1)


def find_candidates(ink):
    """Return a list of what may be the digit in images of ink (N, H, W), each (1, 1, 28, 28).

    Raise ValueError if nothing may.
    """
    candidates = [
        center(digit)
        for radius in (6, 1)  # 6 joins broken strokes, 1 leaves a frame out
        for digit in cut_out(ink, radius)
        if digit.count_nonzero() >= 36  # less, with its edge, is a speck
    ]
    # What is filled is no digit, but a note on a desk: a square has 0.51, MNIST at most 0.33.
    candidates = [image for image in candidates if image.mean() < 0.38]
    if not candidates:
        raise ValueError(
            "the picture is empty: it must show a digit darker or lighter than its paper, not tiny"
        )
    return candidates


def find_rows(ink):
    """Return a list of what may be the row of digits in images of ink (N, H, W).

    Each is (digits, 1, 28, 28). There is none unless most of the images show several digits: a
    shadow, or the pieces of a digit that the border cuts off, look like several in some of them.
    """
    rows = [torch.cat(parts) for parts in map(find_parts, ink) if len(parts) > 1]
    return rows if len(rows) > len(ink) / 2 else []


@torch.inference_mode()
def read_digits(model, candidates):
    """Return the candidate that the network finds most like digits, and its probabilities.

    Their shapes are (digits, 1, 28, 28) and (digits, classes).
    """
    # Of each digit's logits the highest counts. Rows of one picture may differ in their number of
    # digits: the sum would favour many, the mean few; this is between them.
    best = max(candidates, key=lambda digits: model(digits).amax(dim=1).sum() / len(digits) ** 0.5)
    return best, model(best).softmax(dim=1)


def predict(model, patterns, output_dir):
    """Print each picture's digit, or row of digits, and plot the first hundred that were seen.

    Patterns are paths, or stand for some, as *.png does. Raise UserError, at the end, if any
    can't be read.
    """
    paths, readings, failed = [], [], 0
    for pattern in map(os.path.expanduser, patterns):
        paths += sorted(glob(pattern)) or [pattern]
    for path in paths:
        try:
            picture = read_picture(path)
            ink = find_ink(picture)
            candidates = find_candidates(ink)
        except ValueError as error:
            print(f"{path}: {error}", file=sys.stderr)
            failed += 1
            continue
        words = []
        for choice in filter(len, (candidates, find_rows(ink))):  # there may be no row
            images, probabilities = read_digits(model, choice)
            words.append(describe(probabilities))
            # Of the single digits that are misread, half are below this; of the others 1 in 50.
            if probabilities.amax(dim=1).min() < 0.9:
                words.append("unsure: see predictions.png")
            readings += [(Path(path).name, picture, *pair) for pair in zip(images, probabilities)]
        print(f"{path}: {' - '.join(words)}")
    if readings:
        save(output_dir / "predictions.png", plot_readings(readings[:100]))
        print(f"Saved predictions.png in {output_dir}")
    if failed:
        raise UserError(f"{failed} of {len(paths)} pictures can't be read: see the lines above.")


def describe(probabilities):
    """Return in words what probabilities (digits, classes) say: a digit, or a row of digits.

    A second choice follows a digit, unless it is rare.
    """
    shares, classes = probabilities.topk(2)
    words = "".join(map(str, classes[:, 0].tolist()))
    words += f" ({', '.join(map('{:.1%}'.format, shares[:, 0]))})"
    if len(classes) > 1:
        return f"or a row of digits: {words}"
    if shares[0, 1] > 0.01:
        words += f", or {classes[0, 1]} ({shares[0, 1]:.1%})"
    return words


# The pad: a window to write digits in.
def prepare_strokes(strokes):
    """Return strokes in MNIST's form, float32 (1, 1, 28, 28).

    A stroke is a list of points (x, y) in any unit, y downward.
    """
    strokes = list(map(torch.tensor, strokes))
    low, high = torch.cat(strokes).aminmax(dim=0)
    # All is drawn eight times too large, as center shrinks it. The pen is 20 pixels wide then, 2.5
    # at last: of 2 to 3.5, that was read best. At the border, there is room for its radius.
    radius = 10
    scale = 140 / (high - low).max()
    image = Image.new("L", (160, 160))
    draw = ImageDraw.Draw(image)
    for stroke in strokes:
        points = scale * (stroke - low) + radius
        draw.line(points.flatten().tolist(), fill=255, width=2 * radius)
        for box in torch.cat([points - radius, points + radius], dim=1).tolist():
            draw.ellipse(box, fill=255)
    return center(pil_to_tensor(image)[0] / 255)


def draw_pad(figure, model):
    """Turn a figure into a pad to write on, which is read when the pen is lifted.

    Beside it are what the network sees, and its probabilities.
    """
    # The layout that fits by itself, "constrained", would take longer than drawing.
    figure.subplots_adjust(left=0.02, bottom=0.16, right=0.98)
    pad, view, bars = figure.subplots(1, 3, width_ratios=(2, 1, 1))
    pad.set(title="write a digit", aspect="equal", xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[])
    pen = {"color": "black", "linewidth": 9}
    lines = pad.add_collection(LineCollection([], capstyle="round", **pen))
    strokes = []

    def show():
        lines.set_segments(strokes)
        for axes in (view, bars):
            axes.clear()
            axes.set_visible(bool(strokes))
        if strokes:
            images, probabilities = read_digits(model, [prepare_strokes(strokes)])
            plot_reading(view, bars, images[0], probabilities[0])
        figure.canvas.draw_idle()

    def on_lift(stroke):
        # A click, of a hand that trembles, may have brought the window to the front.
        if max(math.dist(point, stroke[0]) for point in stroke) > 0.02:
            strokes.append(stroke)
        show()

    def on_clear(event):
        strokes.clear()
        show()

    button = Button(figure.add_axes((0.17, 0.03, 0.12, 0.08)), "clear")
    button.on_clicked(on_clear)
    # The lasso draws below the pen, and calls on_lift. Kept nowhere, both would be gone.
    figure.widgets = button, LassoSelector(pad, on_lift, props=pen)
    show()


def open_pad(model):
    """Open a window with the pad; raise UserError where there can be none."""
    try:
        from matplotlib import pyplot  # only here, because it looks for a display

        pyplot.close("mnist_cnn")  # a notebook keeps an earlier one
        with pyplot.rc_context({"toolbar": "None"}):
            # Not wider than a notebook's cell in a window of 1,280 pixels.
            canvas = pyplot.figure("mnist_cnn", figsize=(8.4, 4.4)).canvas
        if type(canvas.new_timer()) is TimerBase:  # those with windows have one of their own
            raise ImportError("its back end has no windows")
    except Exception as error:  # a toolkit that isn't installed, or finds no display: any error
        raise UserError(
            f"No window ({error}): it needs a desktop and tkinter, or a browser: "
            "install tornado with pip, and set MPLBACKEND=webagg."
        ) from error
    # matplotlib's own keys and tools would zoom, or make an axis logarithmic. A notebook's widget
    # and a browser's page show a toolbar all the same.
    canvas.mpl_disconnect(canvas.manager.key_press_handler_id)
    canvas.toolbar_visible = False
    canvas.handle_toolbar_button = lambda event: None
    canvas.handle_dblclick = lambda event: None  # the page reports both presses, and then this one
    draw_pad(canvas.figure, model)
    pyplot.show(block=True)


# Files and the command line.
class UserError(Exception):
    """Something that the user can mend; its text, one sentence, says what and how."""


def save(path, result):
    """Save a figure or weights in a file, whole or not at all; raise UserError if that fails."""
    content = io.BytesIO()
    if isinstance(result, Figure):
        result.savefig(content, format="png", dpi=150, bbox_inches="tight")
    else:
        torch.save(result, content)
    part = path.with_suffix(f".{os.getpid()}.part")  # another run may save in this folder, too
    try:
        part.write_bytes(content.getvalue())
        part.replace(path)
    except OSError as error:
        raise UserError(f"Can't write {path} ({error}): use another --output-dir.") from error
    finally:
        with suppress(OSError):  # it has its own name now, or could not be made
            part.unlink()


def make_output_dir(folder):
    """Make a folder, if need be, and try to write in it: now, and not after the training.

    Raise UserError if that fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"Can't write in {folder} ({error}): use another --output-dir.") from error


def load_model(path):
    """Return the network with the weights that a training saved; raise UserError if it can't."""
    model = CNN()
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # there are none, they are damaged, or another network's
        raise UserError(
            f"Can't load {path} into CNN ({shorten(str(error), 200)}): train first, with CNN() "
            "itself (which model.compile() compiles) in run, or choose another --output-dir."
        ) from error
    return model.eval()


def parse_args(argv=None):
    """Return the flags of argv or else the command line; a wrong one ends with status 2."""
    if argv is None:
        # The flags of an editor or a notebook that was started, not this file, are not for it.
        argv = sys.argv[1:] if Path(sys.argv[0]).resolve() == script else []
    parser = argparse.ArgumentParser(
        description="Train a small CNN on MNIST, test it, and let it read digits of your own.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--epochs", type=int, default=EPOCHS, help="passes over the training images")
    add("--batch-size", type=int, default=BATCH_SIZE, help="images in one training step")
    add("--lr", type=float, default=LR, help="learning rate at the start")
    add("--seed", type=int, default=SEED, help="start of the random numbers")
    add("--log-interval", type=int, default=LOG_INTERVAL, help="batches between logged losses")
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    add("--device", choices=devices, default=DEVICE, help="where the network is trained")
    add("--data-dir", default=DATA_DIR, help="folder of MNIST")
    add("--output-dir", default=OUTPUT_DIR, help="folder of weights and plots")
    add("--validate", action="store_true", help="test on 10,000 held-out training images instead")
    add("--predict", nargs="+", metavar="IMAGE", help="read these pictures instead")
    add("--draw", action="store_true", help="open a pad to write digits on instead")
    args = parser.parse_args(map(str, argv))
    if min(args.epochs, args.batch_size, args.log_interval) < 1 or not 0 < args.lr < math.inf:
        parser.error("--epochs, --batch-size, --log-interval and --lr must be numbers above 0")
    # ~ is the user's own folder; in a constant, and in --data-dir=~/data, no shell has replaced it.
    args.data_dir = Path(args.data_dir).expanduser()
    args.output_dir = Path(args.output_dir).expanduser()
    return args


@style.context("default")  # plots look the same whatever the user's matplotlibrc says
def main(argv=None):
    """Do what the flags in argv, or else the command line, ask for.

    Return a training's accuracy in per cent.
    """
    args = parse_args(argv)
    # On Macs PyTorch uses NNPACK, a library that is nearly three times as slow as none.
    torch.backends.nnpack.set_flags(False)
    weights = args.output_dir / "mnist_cnn.pt"
    if args.predict:
        return predict(load_model(weights), args.predict, args.output_dir)
    if args.draw:
        return open_pad(load_model(weights))
    make_output_dir(args.output_dir)
    return run(args)


# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "torchvision>=0.19", "matplotlib>=3.8"]
# ///
if __name__ == "__main__":
    with suppress(AttributeError):  # a notebook's output has no settings
        # A name may have letters that a console lacks.
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    try:
        main()
    except UserError as error:
        sys.exit(" ".join(str(error).split()))
    except (KeyboardInterrupt, BrokenPipeError):  # Ctrl-C, or head, say, has read enough
        sys.stdout = None  # Python would try to print the rest, and complain
        sys.exit("Stopped before the end.")
