"""Train a small convolutional neural network (CNN) on MNIST, test it, and let it read your digits.

Read from the top: constants, data, network, training, testing, more images, the run. A comment
marks where the story ends. Most imports are for what comes after it: skip them. There are also
load_mnist, save and the plots, which the run calls.
"""

import argparse
import errno
import io
import math
import sys
import time
import warnings
from contextlib import contextmanager, suppress
from glob import glob
from os.path import exists, expanduser
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from matplotlib import style
from matplotlib.backend_bases import FigureManagerBase, MouseButton
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.widgets import LassoSelector
from PIL import Image, ImageDraw, ImageOps
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import MNIST
from torchvision.datasets.utils import check_integrity, extract_archive
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize, resized_crop

# Each constant in capitals is the default of a flag: python mnist_cnn.py --epochs 3 --batch-size 64
EPOCHS = 5  # passes over the training images
BATCH_SIZE = 100  # images in one training step
LR = 1e-3  # learning rate at the start: how far a step changes the weights; it falls to zero
SEED = 0  # start of the random numbers: on the same CPU, the same seed gives the same result
LOG_INTERVAL = 20  # batches from one logged loss to the next
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where the network is trained
DATA_DIR = "data"  # beside this file; holds MNIST, or gets the download
OUTPUT_DIR = "outputs"  # beside this file; gets the weights and the plots
VALIDATE = False  # to choose between designs: test on 10,000 held-out training images instead
criterion = nn.CrossEntropyLoss()  # the loss; it turns logits into probabilities itself, by softmax


def make_dataset(dataset, device):
    """Return one of torchvision's two sets as tensors: images in [0, 1], float32, and labels."""
    # data has the pixels of all images, (N, 28, 28), as whole numbers from 0 (paper) to 255.
    # PyTorch expects images, channels, rows, columns: unsqueeze adds the channels, 1 for grey.
    # to(device) moves a tensor to the GPU, if there is one: it has to be where the network is.
    images = dataset.data.unsqueeze(1).to(device) / 255
    return TensorDataset(images, dataset.targets.to(device))


def make_loaders(mnist, batch_size, device, validate=False):
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
        # fits 24 times into 28 pixels; padding, a border of zeros, would keep the size as it is.
        # (Digits have a margin of 4 pixels, so the first needs none; the last two shrink the maps.)
        # A pool keeps the highest of every 2 x 2 numbers.
        # Batch norm brings each map to mean 0 and deviation 1, then scales it and adds a bias, both
        # learned. With that bias, a convolution needs none of its own.
        # ReLU sets negatives to 0. In training, dropout zeroes a tenth at random, so that the
        # network relies on no single number.
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=5, bias=False),  # 16 x 24 x 24
            nn.MaxPool2d(2),  # 16 x 12 x 12
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=3, padding=1, bias=False),  # 32 x 12 x 12
            nn.MaxPool2d(2),  # 32 x 6 x 6
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, kernel_size=3, bias=False),  # 64 x 4 x 4
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Conv2d(64, 64, kernel_size=3, bias=False),  # 64 x 2 x 2
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Flatten(),  # 256
            nn.Dropout(0.1),
            nn.Linear(64 * 2 * 2, 10),  # 10 logits
        )
        # PyTorch has set the first weights at random, to about 0.02 to 0.1. Smaller ones learn a
        # little faster, as a training step is about as long for all, and so a larger share of a
        # small one. They do no harm where a batch norm follows, which rescales what comes out: as
        # it does after each convolution without a bias.
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d) and layer.bias is None:
                nn.init.normal_(layer.weight, std=0.01)

    def forward(self, images):
        """Return the logits (N, 10) of images (N, 1, 28, 28); model(images) calls this."""
        return self.layers(images)


def train(model, loader, optimizer, scheduler, epoch, epochs, log_interval):
    """Train for one epoch, and log the loss; epoch counts from 1 to epochs.

    Return each batch's loss, accuracy in per cent, and size, three tensors of shape (batches,).
    """
    # This trains nothing yet, but switches: dropout is on, and batch norm measures each map's mean
    # and deviation in the batch.
    model.train()
    losses, accuracies, sizes = [], [], []
    for number, (images, labels) in enumerate(loader, start=1):
        images = augment(images)  # distort each at random, so that none is seen twice
        optimizer.zero_grad()  # forget the last batch's gradients: backward adds to what is there
        logits = model(images)
        loss = criterion(logits, labels)  # the batch's mean
        # PyTorch has noted how the loss came from the weights. backward goes the same way back, and
        # stores beside each weight its gradient: how the loss changes when the weight grows. There
        # the optimizer finds it, which was given the weights when it was made, in run.
        loss.backward()
        optimizer.step()  # change each weight a little, against its gradient
        scheduler.step()  # set the learning rate of the next step
        losses.append(loss.detach())  # the number alone: PyTorch can free what backward needed
        guesses = logits.argmax(dim=1)  # of each image's ten logits, the place of the highest
        accuracies.append(100 * (guesses == labels).float().mean())
        sizes.append(len(labels))  # the last batch may be smaller
        if number % log_interval == 0:
            print(f"epoch {epoch}/{epochs}  batch {number:3}/{len(loader)}  loss {loss.item():.4f}")
    # Only now to the CPU, because .cpu() waits until a GPU has finished.
    return torch.stack(losses).cpu(), torch.stack(accuracies).cpu(), torch.tensor(sizes)


@torch.inference_mode()  # no gradients are needed here, so nothing is kept for them
def evaluate(model, loader):
    """Return the loss, averaged over N images, how many are right, and probabilities (N, 10)."""
    model.eval()  # a switch, too: dropout is off; batch norm uses what it measured in training
    total_loss, correct, probabilities = 0, 0, []
    for images, labels in loader:
        logits = model(images)
        total_loss += criterion(logits, labels) * len(labels)  # each image counts once
        correct += (logits.argmax(dim=1) == labels).sum()
        probabilities.append(logits.softmax(dim=1))
    return total_loss.item() / len(loader.dataset), correct.item(), torch.cat(probabilities)


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
    mnist = load_mnist(args.data_dir)
    train_loader, test_loader = make_loaders(mnist, args.batch_size, args.device, args.validate)
    torch.manual_seed(args.seed)
    # channels_last is the order of the numbers in memory with which a CPU is fastest.
    model = CNN().to(args.device, memory_format=torch.channels_last)
    # Plain gradient descent changes a weight by lr times its gradient. Adam divides the gradient by
    # its recent size, so that a step is about lr long, be the gradient small or large. The betas
    # say how far back it looks: about 10 steps for the gradient (0.9), 100 for its size (0.99; the
    # usual 0.999 stands for 1,000, a third of the run).
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, betas=(0.9, 0.99))
    steps = args.epochs * len(train_loader)

    def schedule(step):
        """Return the share of lr that is used: all, until 70% of the steps are left; 0 at last."""
        left = 1 - step / steps
        return min(1, left / 0.7)

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)

    split = "validation" if args.validate else "test"
    count = len(test_loader.dataset)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"device: {args.device}")
    print(f"images: {len(train_loader.dataset):,} for training, {count:,} for the {split}")
    print(f"parameters: {parameters:,}")

    history = []  # of each epoch, what plot_curves shows
    for epoch in range(1, args.epochs + 1):
        start = time.perf_counter()
        losses, accuracies, sizes = train(
            model, train_loader, optimizer, scheduler, epoch, args.epochs, args.log_interval
        )
        test_loss, correct, probabilities = evaluate(model, test_loader)
        accuracy = 100 * correct / count
        seconds = time.perf_counter() - start
        # Each image counts once: the last batch may be smaller.
        train_loss = (losses * sizes).sum() / sizes.sum()
        train_accuracy = (accuracies * sizes).sum() / sizes.sum()
        if not math.isfinite(train_loss + test_loss):
            raise UserError(
                f"The loss is not finite after epoch {epoch}: lower --lr (nothing was saved)."
            )
        history.append((losses, accuracies, test_loss, accuracy))
        trained = f"training loss {train_loss:.4f}, accuracy {train_accuracy:.2f}%"
        tested = f"loss {test_loss:.4f}, accuracy {accuracy:.2f}%"
        print(f"epoch {epoch}/{args.epochs}  {trained}  {split} {tested}  {seconds:.1f} s")

    print(f"{split.capitalize()}: average {tested} ({correct}/{count})")
    model.to(memory_format=torch.contiguous_format)  # the usual order, for other programs
    # A state_dict has the parameters, and batch norm's means and deviations, by their names.
    save(args.output_dir / "mnist_cnn.pt", model.state_dict())
    save(args.output_dir / "loss_curves.png", plot_curves(history, split))
    mistakes = plot_mistakes(test_loader.dataset, probabilities, split)
    save(args.output_dir / "mistakes.png", mistakes)
    print(f"Saved mnist_cnn.pt, loss_curves.png and mistakes.png in {args.output_dir}")
    return accuracy


# THE STORY ENDS HERE. What follows serves it, section by section: read what you need.


# Plots: each function shows results, and changes none.
def plot_curves(history, split):
    """Return a figure of what train and evaluate measured in each epoch: losses and accuracies."""
    losses, accuracies, test_losses, test_accuracies = zip(*history)
    figure = Figure(figsize=(8, 7), dpi=150, layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    plot_curve(upper, losses, test_losses, split)
    plot_curve(lower, accuracies, test_accuracies, split)
    upper.set(ylabel="cross-entropy loss", yscale="log")
    upper.legend()
    # The limits leave out how training started.
    lower.set(xlabel="epoch", ylabel="accuracy (%)", ylim=(min(test_accuracies) - 10, 100.5))
    return figure


def plot_curve(axes, batches, tests, split):
    """Plot what was measured in each epoch: in training, a tensor (batches,), and after it."""
    values = torch.cat(batches)
    epochs = torch.arange(0.5, len(values)) / len(batches[0])  # when each was measured
    parts = values.chunk(150)  # more points would make a carpet, not a line
    means = [part.mean().item() for part in parts]
    centers = [part.mean().item() for part in epochs.chunk(150)]
    axes.plot(centers, means, label=f"training, mean of {len(parts[0])} batches")
    axes.plot(range(1, len(tests) + 1), tests, "o-", label=f"{split}, after each epoch")


def plot_mistakes(dataset, probabilities, split, limit=100):
    """Return a figure of the misclassified images, the most confident first.

    dataset has the images (N, 1, 28, 28) and labels (N,); probabilities are (N, 10).
    """
    images, labels = dataset.tensors
    confidences, guesses = probabilities.max(dim=1)
    wrong = (guesses != labels).nonzero().flatten()
    order = confidences[wrong].argsort(descending=True)
    worst = wrong[order][:limit]
    rows = max(1, math.ceil(len(worst) / 10))
    figure = Figure(figsize=(11, 1.3 * rows + 0.6), dpi=150, layout="constrained")
    figure.suptitle(
        f"{len(wrong)} of {len(labels):,} {split} images are misclassified, "
        "the surest mistakes first"
    )
    grid = figure.subplots(rows, 10, subplot_kw={"frame_on": False, "xticks": [], "yticks": []})
    for axes, index in zip(grid.flat, worst):
        axes.imshow(images[index, 0].cpu().numpy(), cmap="gray_r")
        title = f"said {guesses[index]} ({confidences[index]:.0%})\nis {labels[index]}"
        axes.set_title(title, fontsize=8)
    return figure


def plot_readings(readings):
    """Return a figure with a row for each reading that predict made.

    A reading is a name, a picture (channels, H, W), what the network saw of it (1, 28, 28), and
    its ten probabilities.
    """
    rows = len(readings)
    figure = Figure(figsize=(5, 1.8 * rows), dpi=150)
    # The layout that fits by itself, "constrained", would take a third of the plot's time.
    margin = 0.2 / rows
    figure.subplots_adjust(left=0.01, right=0.99, bottom=margin, top=1 - margin, wspace=0.4)
    grid = figure.subplots(rows, 3, squeeze=False)
    for (left, middle, right), reading in zip(grid, readings):
        name, picture, image, probabilities = reading
        left.imshow(picture.movedim(0, -1).clamp(0, 1).numpy(), cmap="gray")
        left.set(xticks=[], yticks=[])
        plot_reading(middle, right, image, probabilities)
        # Fonts lack some letters.
        middle.set_title(ascii(name[:40]), fontsize=8, parse_math=False)
    return figure


def plot_reading(left, right, image, probabilities):
    """Plot what the network saw, (1, 28, 28), and its probabilities, (10,), on two axes.

    They are empty, or show an earlier reading.
    """
    for artist in [*left.images, *right.containers]:
        artist.remove()  # axes.clear would make new ticks, too, and take five times as long
    left.imshow(image[0].numpy(), cmap="gray_r", vmin=0, vmax=1)
    left.set(xticks=[], yticks=[])
    right.bar(range(10), probabilities.tolist(), tick_label=range(10), color="C0")
    right.set(ylim=(0, 1))


# Own digits: from a file to an image like MNIST's, which the network can read. read_picture opens
# the file; find_ink makes it small and looks for ink, in two ways in each channel; cut_out keeps
# one digit; center gives it MNIST's form. All that is found is a candidate; read_digit lets the
# network choose. predict, at the end, does all of it.
def read_picture(path):
    """Return a file's picture, float32 (channels, H, W) in [0, 1], upright, of at most 800 pixels.

    It has one channel, grey, or four: red, green and blue on white paper, and opacity. Raise
    ValueError if it can't be read.
    """
    try:
        # What Pillow warns of, damaged EXIF data beside a picture, doesn't matter here.
        with warnings.catch_warnings(record=True), Image.open(path) as image:
            image.draft(None, (600, 600))  # a large JPEG is decoded at a fraction of its size
            mode = "F" if image.mode[0] in "IF" else "RGBA"  # F: one channel, more than 8 bits
            image = image.convert(mode)
            image.thumbnail((800, 800))
            with suppress(Exception):  # where its turn can't be read, a picture stays as it lies
                image = ImageOps.exif_transpose(image)
            pixels = pil_to_tensor(image)
    except Exception as error:  # decoders raise whatever they like
        raise ValueError(f"it can't be read ({error}); use an intact JPEG or PNG file") from error
    if len(pixels) == 1:
        pixels = pixels.nan_to_num()
        return (pixels / pixels.max().clamp(min=1)).clamp(0, 1)
    colour, opacity = (pixels / 255).split([3, 1])
    return torch.cat([colour * opacity + (1 - opacity), opacity])


def shrink(picture, longest):
    """Return a picture (channels, H, W) resized, with so many pixels on its longer side."""
    scale = longest / max(picture.shape[1:])
    return resize(picture, [max(2, round(scale * length)) for length in picture.shape[1:]])


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


def get_middle(images):
    """Return the middle of images (N, H, W): without a fifth of it on each side."""
    return center_crop(images, [length - 2 * (length // 5) for length in images.shape[1:]])


def brighten_ink(images):
    """Return images (N, H, W) in [0, 1] with bright ink, each itself or its negative in [-1, 0]."""
    # Ink is rare: where it is dark, a few pixels are far below the mean around them.
    middle = get_middle(images)  # shows no table
    # The cube keeps the sign, and large differences count.
    skewness = add_up((middle - average(middle, 16, pad=False)).pow(3))
    return images.copysign(skewness)  # negative where ink is dark


def find_narrow(images):
    """Return what is bright in images (N, H, W), narrower than 39 pixels, and not at the border."""
    # Opening an image takes away what is too narrow for a square; the top-hat is what it took.
    top_hat = images - dilate(erode(images, 19), 19)
    inner = F.pad(F.pad(top_hat, [-1] * 4), [1] * 4)  # with a border of zeros
    at_border = reconstruct(top_hat - inner, top_hat)
    return top_hat - at_border  # without tables and shadows


def find_unlike(images):
    """Return what is unlike the paper in images (N, H, W), and reaches the middle.

    So a digit is found that touches the border.
    """
    # The left and right edge: a digit cut out tightly covers more of the other two.
    paper = images[..., [0, -1]].flatten(1).median(dim=1).values
    unlike = (images - paper[:, None, None]).abs()
    in_middle = center_crop(get_middle(unlike), unlike.shape[1:])  # fills up with zeros
    return reconstruct(in_middle, unlike)


def find_ink(picture):
    """Return how much ink each pixel of a picture (channels, H, W) has, as images (N, h, w).

    Each channel is seen in two ways, as the network can tell later which shows a digit.
    """
    # 128 pixels are enough for a digit; sizes in the search are in such pixels. A grey picture has
    # one channel, be it three times.
    images = shrink(picture, 128).unique(dim=0)
    contrast = (dilate(images, 2) - erode(images, 2)).flatten(1)
    grain = 4 * contrast.quantile(0.25, dim=1)  # is everywhere, ink is not
    images = images[contrast.amax(dim=1) > grain.clamp(min=0.01)]
    return torch.cat([find_narrow(brighten_ink(images)), find_unlike(images)])


def cut_out(ink, radius):
    """Return images of ink (N, H, W), each with one digit alone, in [0, 1].

    Strokes with up to 2 * radius pixels between them belong together.
    """
    # The strokes' level: the mean, in which a pixel counts by the square of its ink.
    level = add_up(ink.pow(3)) / add_up(ink.square())
    mask = (ink > level / 2).float()
    near = dilate(mask, radius)
    density = average(ink * mask, 10) * near
    densest = near * (density == density.amax(dim=(1, 2), keepdim=True))
    digits = mask * reconstruct(densest, near)  # all strokes of where ink is densest
    # They are dilated by 1, for the grey levels of their edges.
    return dilate(digits, 1) * (ink / level).clamp(max=1)


def center(ink):
    """Return an image of a digit's ink (H, W) in [0, 1] as MNIST has it, (1, 28, 28).

    It is 20 pixels high or wide, and its centre of mass is in the centre. LeCun et al.,
    "Gradient-Based Learning Applied to Document Recognition", 1998, III-A.
    """
    places, mass = ink.nonzero(), ink[ink > 0]
    low, high = places.aminmax(dim=0)
    size = (high - low).max().item()  # its grey edge counts half
    side = round(size * 28 / 20)
    center_of_mass = mass @ (places + 0.5) / mass.sum()
    top, left = (center_of_mass - side / 2).round().int().tolist()
    image = resized_crop(ink[None], top, left, side, side, [28, 28])
    # Thin strokes turn grey when they are scaled down: brighten them to 0.6 on average, or nearly
    # what MNIST's own have, 0.69.
    mean = image[image > 0].mean().clamp(max=0.6)
    return (image * 0.6 / mean).clamp(max=1)


def find_candidates(ink):
    """Return what may be a digit in images of ink (N, H, W), in MNIST's form (M, 1, 28, 28).

    Raise ValueError if nothing may.
    """
    candidates = [
        center(digit)
        for radius in (6, 1)  # 6 joins broken strokes, 1 leaves a frame out
        for digit in cut_out(ink, radius)
        if (digit > 0).sum() >= 36  # less, with its edge, is a speck; no ink at all is NaN
    ]
    # What is filled is no digit, but a note on a desk: a square has 0.51, MNIST at most 0.33.
    candidates = [image for image in candidates if image.mean() < 0.38]
    if not candidates:
        raise ValueError(
            "the picture is empty: it must show a digit darker or lighter than its paper"
        )
    return torch.stack(candidates)


def prepare(picture):
    """Return what may be a digit in a picture (channels, H, W), in MNIST's form (N, 1, 28, 28).

    Raise ValueError if it is empty.
    """
    return find_candidates(find_ink(picture))


@torch.inference_mode()
def read_digit(model, candidates):
    """Return the candidate that the network finds most like a digit, and its probabilities."""
    logits = model(candidates)
    best = logits.amax(dim=1).argmax()
    return candidates[best], logits[best].softmax(dim=0)


def has_neighbours(ink):
    """Say whether an image of ink (H, W) has parts of similar height side by side."""
    mask = ink > ink.max() / 3
    gaps = (~mask.any(dim=0)).nonzero().flatten()  # columns without ink
    parts = mask.tensor_split(gaps, dim=1)
    heights = torch.stack([part.any(dim=1).sum() for part in parts])
    return (heights > heights.max() / 2).sum() > 1


def find_files(patterns):
    """Return the paths that patterns such as *.png stand for; Windows leaves that to programs."""
    paths = []
    for pattern in patterns:
        # A name may itself have a star or brackets.
        found = [] if exists(pattern) else sorted(glob(pattern))
        paths += found or [pattern]
    return paths


def predict(model, patterns, output_dir, limit=100):
    """Print each picture's digit, and plot how the first were read.

    Raise UserError, at the end, if any can't be read.
    """
    paths = find_files(patterns)
    readings, failed = [], 0
    for path in paths:
        try:
            picture = read_picture(path)
            ink = find_ink(picture)
            candidates = find_candidates(ink)
        except ValueError as error:
            print(f"{path}: {error}", file=sys.stderr)
            failed += 1
            continue
        image, probabilities = read_digit(model, candidates)
        reading = describe(probabilities)
        if probabilities.max() < 0.9:  # as of half of what is misread, but 1 in 50 read right
            reading += " - unsure: see predictions.png"
        votes = [has_neighbours(image) for image in ink]
        if sum(votes) > len(votes) / 2:
            reading += " - more than one digit? cut them apart"
        print(f"{path}: {reading}")
        if len(readings) < limit:
            readings.append((Path(path).name, shrink(picture, 250), image, probabilities))
    if readings:
        save(output_dir / "predictions.png", plot_readings(readings))
        print(f"Saved predictions.png in {output_dir}")
    if failed:
        raise UserError(f"{failed} of {len(paths)} pictures can't be read: see the lines above.")


def describe(probabilities):
    """Return in words what ten probabilities say: the digit, and perhaps a second choice."""
    (first, second), (digit, other) = probabilities.topk(2)
    words = f"{digit} ({first:.1%})"
    if second > 0.01:
        words += f", or {other} ({second:.1%})"
    return words


# The pad: a window to write digits in.
def prepare_strokes(strokes, pen_width=2.5):
    """Return strokes in MNIST's form, float32 (1, 28, 28).

    A stroke is a list of points (x, y) in any unit, y downward; pen_width is in pixels of 28 x 28
    (of 2 to 3.5, 2.5 was read best).
    """
    strokes = [torch.tensor(stroke) for stroke in strokes]
    low, high = torch.cat(strokes).aminmax(dim=0)
    radius = 4 * pen_width  # all is drawn eight times too large: center shrinks it
    scale = (160 - 2 * radius) / (high - low).max().clamp(min=1e-9)
    image = Image.new("L", (160, 160))
    draw = ImageDraw.Draw(image)
    for stroke in strokes:
        points = scale * (stroke - low) + radius
        draw.line(points.flatten().tolist(), fill=255, width=round(2 * radius))
        for x, y in points.tolist():
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return center(pil_to_tensor(image)[0] / 255)


def is_click(stroke):
    """Say whether a stroke, points (x, y) on a pad of width 1, is a click of a hand that trembles.

    One may have brought the window to the front.
    """
    return all(math.dist(point, stroke[0]) < 0.02 for point in stroke)


def draw_pad(figure, model):
    """Turn a figure into a pad to write on with the left button.

    Beside it are what the network sees, and its probabilities.
    """
    # The layout that fits by itself, "constrained", would take longer than drawing.
    figure.subplots_adjust(left=0.02, bottom=0.08, right=0.98)
    pad, view, bars = figure.subplots(1, 3, width_ratios=(2, 1, 1))
    pad.set(
        title="write a digit; c or a right click clears",
        aspect="equal",
        xlim=(0, 1),
        ylim=(1, 0),
        xticks=[],
        yticks=[],
    )
    pen = {"color": "black", "linewidth": 9}
    lines = pad.add_collection(LineCollection([], capstyle="round", **pen))
    # Drawing all takes a tenth of a second, and a window passes over what the pen does meanwhile:
    # so wait until it rests for 200 ms, or is lifted.
    timer = figure.canvas.new_timer(200)
    strokes = []

    def show(*_):
        timer.stop()
        written = [stroke for stroke in strokes if not is_click(stroke)]
        image, probabilities = torch.zeros(1, 28, 28), torch.zeros(10)
        if written:
            image, probabilities = read_digit(model, prepare_strokes(written)[None])
        plot_reading(view, bars, image, probabilities)
        bars.set_title(describe(probabilities) if written else "")
        lines.set_segments(written)
        figure.canvas.draw_idle()

    # Draws below the pen, and calls show when it is lifted.
    lasso = LassoSelector(pad, show, props=pen, button=MouseButton.LEFT)

    def clear():
        strokes.clear()
        show()

    def on_press(event):
        if event.button == MouseButton.RIGHT:
            clear()
        elif lasso.verts:
            strokes.append(lasso.verts)  # the list that grows while the stroke is written

    def on_key(event):
        if event.key in ("c", "C"):  # C where Caps Lock is on
            clear()

    def on_motion(event):
        if lasso.verts:
            timer.start()

    timer.add_callback(show)
    figure.canvas.mpl_connect("button_press_event", on_press)
    figure.canvas.mpl_connect("key_press_event", on_key)
    figure.canvas.mpl_connect("motion_notify_event", on_motion)
    show()


def open_pad(model):
    """Open a window with the pad; raise UserError where there can be none."""
    try:
        from matplotlib import pyplot  # only here, because it looks for a display

        pyplot.close("mnist_cnn")  # a notebook keeps an earlier one
        with pyplot.rc_context({"toolbar": "None"}):
            # Not wider than a notebook's cell in a window of 1,280 pixels.
            canvas = pyplot.figure("mnist_cnn", figsize=(8.4, 4.4)).canvas
        if type(canvas.manager) is FigureManagerBase:
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


# Files and the command line: whatever goes wrong here ends the program with one sentence.
class UserError(Exception):
    """Something that the user can mend; its text, one sentence, says what and how."""


@contextmanager
def explain(failure, advice):
    """Turn an error of the file system into a UserError, within a with statement."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{failure} ({error.strerror}): {advice}.") from error


def save(path, result):
    """Save a figure or weights in a file, whole or not at all; raise UserError if that fails."""
    content = io.BytesIO()
    if isinstance(result, Figure):
        result.savefig(content, format="png")
    else:
        torch.save(result, content)
    part = path.with_suffix(".part")
    try:
        with explain(f"Can't write {path}", "use another --output-dir"):
            part.write_bytes(content.getvalue())
    except BaseException:  # Ctrl-C, too
        with suppress(OSError):  # there may be none, or the whole disk is read-only
            part.unlink()
        raise
    # Windows refuses it while another program, such as a virus scanner, has the file open.
    with explain(f"Can't rename {part}, which is whole, to {path.name}", "rename it yourself"):
        part.replace(path)


def make_output_dir(folder):
    """Make a folder, if need be, and try to write in it: now, and not after the training.

    Raise UserError if that fails.
    """
    trial = folder / "mnist_cnn.trial"
    with explain(f"Can't write to {folder}", "choose another --output-dir"):
        folder.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink(missing_ok=True)  # another run may have been faster


def load_mnist(data_dir):
    """Return MNIST's training and test set, downloaded if need be; raise UserError if it can't."""
    name = MNIST.__name__  # another set may be imported as MNIST
    if name not in ("MNIST", "FashionMNIST", "KMNIST"):
        raise UserError(f"{name} has another form: import MNIST, FashionMNIST or KMNIST as MNIST.")
    raw = Path(data_dir, name, "raw")
    try:
        with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            if all(check_integrity(raw / archive, md5) for archive, md5 in MNIST.resources):
                # Unpacked elsewhere each time: beside the archives a killed run may have left half
                # a file, or the folder may be read-only.
                unpacked = Path(folder, name, "raw")
                unpacked.mkdir(parents=True)
                for archive, _ in MNIST.resources:
                    extract_archive(raw / archive, unpacked)
                data_dir = folder
            return MNIST(data_dir, train=True, download=True), MNIST(data_dir, train=False)
    except Exception as error:  # torchvision raises whatever it likes
        archives = ", ".join(archive for archive, _ in MNIST.resources)
        raise UserError(f"Can't load {name} ({error}): put {archives} in {raw}.") from error


def load_model(path):
    """Return the network with the weights that a training saved; raise UserError if it can't."""
    model = CNN()
    with explain(f"Can't read {path}", "train first, or choose another --output-dir"):
        content = io.BytesIO(Path(path).read_bytes())
    try:
        model.load_state_dict(torch.load(content, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises whatever it likes for a damaged file
        raise UserError(f"{path} has no weights of the CNN as it is now: train first.") from error
    return model.eval()


def expand_path(path, beside=""):
    """Return a folder's path, in which ~ is the user's own; a relative one is beside another."""
    return Path(beside, expanduser(path))


def parse_args(argv=None):
    """Return the flags of argv or else the command line; a wrong one ends with status 2."""
    # A notebook's cell has no file. The script may have been started through a link to it.
    script = Path(globals().get("__file__", "cell")).resolve()
    if argv is None and Path(sys.argv[0]).resolve() != script:
        argv = []  # an editor or a notebook was started, not this file: the flags are for them
    parser = argparse.ArgumentParser(
        description="Train a small CNN on MNIST, test it, and let it read digits of your own.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--epochs", type=int, default=EPOCHS, help="passes over the training images")
    add("--batch-size", type=int, default=BATCH_SIZE, help="images in one training step")
    add("--lr", type=float, default=LR, help="learning rate at the start")
    add("--seed", type=int, default=SEED, help="start of the random numbers")
    add("--log-interval", type=int, default=LOG_INTERVAL, help="batches between logged losses")
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    add("--device", default=DEVICE, help="where the network is trained, cpu or cuda")
    data_dir = expand_path(DATA_DIR, script.parent)
    output_dir = expand_path(OUTPUT_DIR, script.parent)
    add("--data-dir", type=expand_path, default=data_dir, help="folder of MNIST")
    add("--output-dir", type=expand_path, default=output_dir, help="folder of weights and plots")
    switch = argparse.BooleanOptionalAction
    add("--validate", action=switch, default=VALIDATE, help="test on held-out training images")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--predict", nargs="+", metavar="IMAGE", help="read these pictures instead")
    group.add_argument("--draw", action="store_true", help="open a pad to write digits on instead")
    args = parser.parse_args(argv)
    if min(args.epochs, args.batch_size, args.log_interval) < 1:
        parser.error("--epochs, --batch-size and --log-interval must be at least 1")
    if not 0 < args.lr < math.inf:
        parser.error("--lr must be a number above 0")
    if not isinstance(args.seed, int) or not 0 <= args.seed < 2**64:
        parser.error("--seed must be a whole number from 0 to 2**64 - 1")
    if args.device not in devices:
        parser.error(f"--device must be one of {devices}: torch finds no other that it can be")
    return args


def stop(sentence, status=1):
    """End the program with a sentence on stderr, in one line."""
    print("mnist_cnn.py:", *str(sentence).split(), file=sys.stderr)
    sys.exit(status)


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
    if hasattr(sys.stdout, "reconfigure"):  # not in a notebook
        # A name may have letters that a console lacks.
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    try:
        main()
    except UserError as error:
        stop(error)
    except KeyboardInterrupt:
        stop("Stopped before the end.", status=130)
    except OSError as error:
        # What prints to head, say, which has read enough; on Windows it gets EINVAL.
        if error.filename or error.errno not in (errno.EPIPE, errno.EINVAL):
            raise
        sys.stdout = None  # Python would try to print the rest, and complain
        stop("Stopped before the end, as nothing reads what is printed.")
