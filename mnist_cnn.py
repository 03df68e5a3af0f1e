"""Train a small convolutional neural network (CNN) on MNIST's handwritten digits, test it, and let it read yours.

Read from the top: constants, data, network, training, testing, the run. A comment marks where the story ends."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import MNIST

# Mostly for what follows the story: plots, pictures, files and the command line.
import argparse
import errno
import glob
import io
import math
import sys
import time
from os.path import exists, expanduser
from pathlib import Path
from tempfile import TemporaryDirectory
from matplotlib.figure import Figure
from matplotlib.widgets import LassoSelector
from PIL import Image, ImageDraw, ImageOps
from torchvision.datasets.utils import check_integrity, extract_archive
from torchvision.transforms.functional import pil_to_tensor, resize

# Each constant in capitals is the default of a command-line flag: python mnist_cnn.py --epochs 3 --batch-size 64 ...
EPOCHS = 5  # passes over the training images
BATCH_SIZE = 100  # images in one training step
LR = 1e-3  # learning rate at the start: how far a step changes the weights; run lets it fall to zero
SEED = 0  # seed of the random numbers: on the same machine, the same seed gives the same result
LOG_INTERVAL = 20  # batches from one logged loss to the next
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where the network is trained
DATA_DIR = "data"  # beside this file; holds MNIST, or gets the download
OUTPUT_DIR = "outputs"  # beside this file; gets the weights and the plots
VALIDATE = False  # to choose between designs: test on 10,000 held-out training images, not on the test images
criterion = nn.CrossEntropyLoss()  # the loss; it turns logits into probabilities itself, by softmax


def make_loaders(mnist, batch_size, device, validate=False):
    """Return DataLoaders for training and testing; a batch is N images (N, 1, 28, 28) in [0, 1] and labels (N,)."""
    # train_images gets the shape (60000, 1, 28, 28): images, channels (1 for grey; unsqueeze adds it), rows, columns.
    # All are brought from 0..255 into [0, 1] at once: one by one, with ToTensor, would cost seconds in every epoch.
    train_data, test_data = mnist
    train_images, train_labels = train_data.data.unsqueeze(1).to(device) / 255, train_data.targets.to(device)
    test_images, test_labels = test_data.data.unsqueeze(1).to(device) / 255, test_data.targets.to(device)
    if validate:
        train_images, test_images = train_images[:-10_000], train_images[-10_000:]
        train_labels, test_labels = train_labels[:-10_000], train_labels[-10_000:]
    train_set, test_set = TensorDataset(train_images, train_labels), TensorDataset(test_images, test_labels)
    train_loader = DataLoader(train_set, batch_size, shuffle=True)  # other batches in each epoch: they teach more
    return train_loader, DataLoader(test_set, batch_size)


class CNN(nn.Module):
    """A convolutional network that turns images into logits: one number per digit; the highest marks its guess."""

    def __init__(self):
        super().__init__()
        # The comment beside a layer gives one image's shape after it, channels x height x width. A convolution looks
        # for patterns; a channel is a map of where one was found. Batch norm brings each map to mean 0 and deviation
        # 1, then scales it and adds a bias, both learned: so the convolutions need none. ReLU sets negatives to 0.
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=5, bias=False),  # 16 x 24 x 24: a window of 5 fits 24 times into 28
            nn.MaxPool2d(2),  # 16 x 12 x 12; placed here it saves time: the next two have a quarter of the work
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=3, padding=1, bias=False),  # 32 x 12 x 12: a border of zeros keeps the size
            nn.MaxPool2d(2),  # 32 x 6 x 6
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, kernel_size=3, bias=False),  # 64 x 4 x 4: without the border it shrinks by itself
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Conv2d(64, 64, kernel_size=3, bias=False),  # 64 x 2 x 2
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Flatten(),  # 256
            nn.Dropout(0.1),  # in training, zeroes a tenth at random, so that the network relies on no single one
            nn.Linear(64 * 2 * 2, 10),  # 10 logits
        )
        # Small first weights learn faster, because a step of the optimizer, Adam, is as long for small weights as for
        # large ones. Here they are about 0.01 (usual: 0.02 to 0.1), and batch norm rescales what comes out.
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d) and layer.bias is None:  # one with a bias has no batch norm to rescale it
                nn.init.normal_(layer.weight, std=0.01)

    def forward(self, images):
        """Return the logits (N, 10) of images (N, 1, 28, 28) with pixels of about 0 to 1; model(images) calls this."""
        return self.layers(images)


def augment(images, stretch=0.1, slant=0.2, shift=1):
    """Return images (N, 1, 28, 28) distorted at random, so that none is seen twice; some values leave [0, 1]."""
    # Each pixel (x, y) is looked up in the original at another place: (a * x + b * y + c, d * x + e * y + f). Every
    # image has six such numbers, [[a, b, c], [d, e, f]]. torch.eye(2, 3), with a = e = 1, would change nothing; what
    # is added, at random up to a limit, changes width and height by up to a tenth (a, e), slants rows and columns by
    # up to 1 in 5 (b, d), and moves the image by up to a pixel (c, f): 2 / 28, as x goes from -1 to 1.
    limits = torch.tensor([[stretch, slant, shift * 2 / 28], [slant, stretch, shift * 2 / 28]])
    matrices = torch.eye(2, 3) + limits * torch.empty(len(images), 2, 3).uniform_(-1, 1)
    grid = F.affine_grid(matrices.to(images.device), images.shape, align_corners=False)  # where to look
    return F.grid_sample(images, grid, mode="bicubic", align_corners=False)  # the usual bilinear would blur strokes


def train(model, loader, optimizer, scheduler, epoch, epochs, log_interval):
    """Train for one epoch, log the loss; return each batch's loss and accuracy in per cent, shape (batches,) each."""
    model.train()  # dropout on; batch norm measures each map's mean and deviation in the batch
    losses, accuracies = [], []
    for number, (images, labels) in enumerate(loader, start=1):
        images = augment(images)
        optimizer.zero_grad()  # forget the last batch's gradients: backward adds to what is there
        logits = model(images)
        loss = criterion(logits, labels)  # the batch's mean
        loss.backward()  # stores in each weight its gradient: how the loss changes when the weight grows
        optimizer.step()  # change each weight a little, against its gradient
        scheduler.step()  # set the learning rate of the next step
        losses.append(loss.detach())  # the number alone: PyTorch can free what backward needed
        accuracies.append(100 * (logits.argmax(dim=1) == labels).float().mean())  # argmax: the digit of the highest
        if number % log_interval == 0:
            print(f"epoch {epoch}/{epochs}  batch {number:3}/{len(loader)}  loss {loss.item():.4f}", flush=True)
    return torch.stack(losses).cpu(), torch.stack(accuracies).cpu()  # at the end, as .cpu() waits for a GPU to finish


@torch.inference_mode()  # no gradients are needed here, so nothing is kept for them
def evaluate(model, loader):
    """Return the loss averaged over all images, how many are right, and the probabilities, shape (images, 10)."""
    model.eval()  # dropout off; batch norm uses what it measured in training
    total_loss, correct, probabilities = 0, 0, []
    for images, labels in loader:
        logits = model(images)
        total_loss += criterion(logits, labels) * len(labels)  # their sum, as the last batch may be smaller
        correct += (logits.argmax(dim=1) == labels).sum()
        probabilities.append(logits.softmax(dim=1))
    return total_loss.item() / len(loader.dataset), correct.item(), torch.cat(probabilities)


def run(args):
    """Train, test, and save the weights and plots; args has main's flags; return the accuracy in per cent."""
    train_loader, test_loader = make_loaders(load_mnist(args.data_dir), args.batch_size, args.device, args.validate)
    torch.manual_seed(args.seed)
    torch.backends.nnpack.set_flags(False)  # for Macs: PyTorch's use of NNPACK there is nearly three times as slow
    model = CNN().to(args.device, memory_format=torch.channels_last)  # channels stored last: faster on a CPU
    # Adam divides each gradient by its recent size, averaged over about 100 steps (0.99; the default 0.999: 1,000).
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, betas=(0.9, 0.99))
    steps = args.epochs * len(train_loader)  # the learning rate is lr for 30% of them, then falls linearly to 0
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (1 - step / steps) / 0.7))
    split, count = "validation" if args.validate else "test", len(test_loader.dataset)
    print(f"device: {args.device}")
    print(f"images: {len(train_loader.dataset):,} for training, {count:,} for the {split}")
    print(f"parameters: {sum(parameter.numel() for parameter in model.parameters()):,}", flush=True)
    history = []
    for epoch in range(1, args.epochs + 1):
        start = time.perf_counter()
        losses, accuracies = train(model, train_loader, optimizer, scheduler, epoch, args.epochs, args.log_interval)
        test_loss, correct, probabilities = evaluate(model, test_loader)
        train_loss, accuracy = losses.mean().item(), 100 * correct / count
        if not math.isfinite(train_loss + test_loss):
            sys.exit(f"mnist_cnn.py: The loss is not finite after epoch {epoch}: lower --lr (nothing was saved).")
        history.append((losses, accuracies, test_loss, accuracy))
        results = f"training loss {train_loss:.4f}, accuracy {accuracies.mean():.2f}%  "
        results += f"{split} loss {test_loss:.4f}, accuracy {accuracy:.2f}%  {time.perf_counter() - start:.1f} s"
        print(f"epoch {epoch}/{args.epochs}  {results}", flush=True)
    print(f"{split.capitalize()}: average loss {test_loss:.4f}, accuracy {accuracy:.2f}% ({correct}/{count})")
    saved = save(args.output_dir / "mnist_cnn.pt", model.state_dict())
    saved &= save(args.output_dir / "loss_curves.png", plot_curves(history, split))  # even if the one before failed
    saved &= save(args.output_dir / "mistakes.png", plot_mistakes(*test_loader.dataset.tensors, probabilities, split))
    if not saved:
        sys.exit(1)  # save has said why
    print(f"Saved mnist_cnn.pt, loss_curves.png and mistakes.png in {args.output_dir}", flush=True)
    return accuracy


# THE STORY ENDS HERE. What follows serves it, section by section; read what you need, and skip the rest.
# Plots: each function makes a figure of the story's results; nothing else depends on it.
def plot_curves(history, split):
    """Return a figure of the losses and accuracies that train and evaluate measured in each epoch."""
    losses, accuracies, test_losses, test_accuracies = zip(*history)
    figure = Figure(figsize=(8, 7), dpi=150, layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    for axes, batches, tests in ((upper, losses, test_losses), (lower, accuracies, test_accuracies)):
        parts = torch.cat(batches).chunk(150)  # more points would make a carpet, not a line
        epochs = [(index + 0.5) * len(parts[0]) / len(batches[0]) for index in range(len(parts))]
        axes.plot(epochs, [part.mean().item() for part in parts], label=f"training, mean of {len(parts[0])} batches")
        axes.plot(range(1, len(tests) + 1), tests, "o-", label=f"{split}, after each epoch")
    upper.set(ylabel="cross-entropy loss", yscale="log")
    upper.legend()
    lower.set(xlabel="epoch", ylabel="accuracy (%)", ylim=(min(test_accuracies) - 10, 100.5))  # not the start
    return figure

def plot_mistakes(images, labels, probabilities, split, most=100):
    """Return a figure of the misclassified images, most confident first, by their probabilities (N, 10)."""
    probability, digit = probabilities.max(dim=1)
    wrong = (digit != labels).nonzero().flatten()
    worst = wrong[probability[wrong].argsort(descending=True)][:most]
    rows = max(1, math.ceil(len(worst) / 10))
    figure = Figure(figsize=(11, 1.3 * rows + 0.6), dpi=150, layout="constrained")
    figure.suptitle(f"{len(wrong)} of {len(labels):,} {split} images are misclassified, the surest mistakes first")
    grid = figure.subplots(rows, 10, subplot_kw={"frame_on": False, "xticks": [], "yticks": []})
    for axes, index in zip(grid.flat, worst):
        axes.imshow(images[index, 0].cpu().numpy(), cmap="gray_r")
        axes.set_title(f"said {digit[index]} ({probability[index]:.0%})\nis {labels[index]}", fontsize=8)
    return figure

def plot_readings(readings):
    """Return a figure of pictures, what the network saw of each, and its probabilities, one picture a row."""
    figure = Figure(figsize=(5, 1.8 * len(readings)), dpi=150, layout="constrained")
    grid = figure.subplots(len(readings), 3, squeeze=False, subplot_kw={"frame_on": False, "xticks": [], "yticks": []})
    for (left, middle, right), (name, picture, image, probabilities) in zip(grid, readings):
        left.imshow(picture.movedim(0, -1).clamp(0, 1).numpy(), cmap="gray")
        middle.imshow(image[0].numpy(), cmap="gray_r")
        middle.set_title(name[:40].encode("ascii", "backslashreplace").decode(), fontsize=8, parse_math=False)
        right.bar(range(10), probabilities.tolist(), tick_label=range(10))
        right.set(ylim=(0, 1), frame_on=True)
    return figure

# Own digits: from a file to an image like MNIST's, which the network can read. Start with predict and prepare.
def read_picture(path):
    """Return a file's picture, float32 (channels, H, W) in [0, 1], upright; raise ValueError if it can't be read."""
    try:
        with Image.open(path) as image:
            image.draft(None, (800, 800))  # a JPEG can be decoded at a fraction of its size
            image = image.convert("F" if image.mode[0] in "IF" else "RGBA")  # F: more than 8 bits, and one channel
            image.thumbnail((800, 800))
            pixels = pil_to_tensor(ImageOps.exif_transpose(image))
    except Exception as error:  # decoders raise whatever they like
        raise ValueError(f"it can't be read ({error}); use an intact JPEG or PNG picture") from error
    if len(pixels) == 1:
        return (pixels / pixels.max().clamp(min=1)).nan_to_num().clamp(0, 1)
    colour, opacity = pixels[:3] / 255, pixels[3:] / 255
    return opacity if opacity.mean() < 0.5 else colour * opacity + 1 - opacity  # transparent paper: ink is opaque

def dilate(image, radius):
    """Return an image (H, W) with each pixel as bright as the brightest in a square around it: bright spots grow."""
    for _ in range(2):  # along the rows, then along the columns: much faster than all of the square at once
        image = F.max_pool1d(image[None], 2 * radius + 1, stride=1, padding=radius)[0].T
    return image

def spread(seeds, image):
    """Return an image (H, W) in which only what is connected to seeds, bright spots of it (H, W), is still bright."""
    flood = torch.minimum(dilate(seeds, 1), image)  # Vincent, "Morphological Grayscale Reconstruction ...", 1993
    while not flood.equal(seeds):  # like water, the seeds flow on to their neighbours, but not above the image
        seeds, flood = flood, torch.minimum(dilate(flood, 1), image)
    return flood

def find_ink(picture):
    """Return how much ink each pixel of a picture (channels, H, W) has, seen in two ways; raise ValueError if none."""
    scale = 128 / max(picture.shape[1:])  # enough for a digit, and quickly searched; sizes below are in its pixels
    picture = resize(picture, [max(2, round(scale * length)) for length in picture.shape[1:]])
    images = [picture.mean(dim=0), *picture]  # the one with most contrast is taken: yellow is dark in blue alone
    contrasts = [dilate(image, 2) + dilate(-image, 2) for image in images]  # highest minus lowest nearby
    contrast, image = max(zip(contrasts, images), key=lambda pair: pair[0].max())
    if contrast.max() < max(0.12, 4 * contrast.quantile(0.25)):  # shadows have less, and grain has it everywhere
        raise ValueError("the picture is empty: it must show a digit that is darker or lighter than its paper")
    # Ink is rare: where it is dark, a few pixels are far below the mean around them. The middle shows no table.
    down, across = image.shape[0] // 5, image.shape[1] // 5
    middle = slice(down, image.shape[0] - down), slice(across, image.shape[1] - across)
    mean = F.avg_pool2d(image[middle][None], 33, stride=1, padding=16, count_include_pad=False)[0]
    if (image[middle] - mean).pow(3).mean() < 0:  # the cube keeps the sign, and weighs large differences most
        image = -image
    # One way: ink is narrower than a square of 39 x 39 (a top-hat), and no table or shadow that touches the border.
    narrow = image - dilate(-dilate(-image, 19), 19)  # less what is left where bright spots shrink, and grow again
    border = narrow - F.pad(narrow[1:-1, 1:-1], [1] * 4)  # its outermost pixels alone
    narrow = narrow - spread(border, narrow)
    # The other, for a digit that touches the border: ink is unlike most of the border, and reaches the middle.
    unlike = (image - torch.cat([image[0], image[-1], image[:, 0], image[:, -1]]).median()).abs()
    return narrow, spread(F.pad(unlike[middle], (across, across, down, down)), unlike)

def cut_out(ink):
    """Return the digit in an image of ink (H, W), cut out, (h, w) in [0, 1]; None if there is no more than a speck."""
    threshold = ink.mean()
    for _ in range(20):  # halfway between the means of ink and paper: Ridler and Calvard, "Picture Thresholding", 1978
        threshold = (ink[ink > threshold].mean() + ink[ink <= threshold].mean()) / 2
    mask = ink > threshold
    near = dilate(mask.float(), 6)  # strokes with less than 12 pixels between them belong together
    density = F.avg_pool2d((ink * mask)[None], 21, stride=1, padding=10)[0] * near
    densest = near * (density == density.max())
    digit = mask & (spread(densest, near) > 0)  # all strokes that belong to where ink is densest
    rows, columns = digit.any(dim=1).nonzero().flatten(), digit.any(dim=0).nonzero().flatten()
    if max(len(rows), len(columns)) < 8:
        return None
    ink = (ink / ink[digit].mean()).clamp(max=1) * dilate(digit.float(), 1)  # by 1, for the grey levels of its edge
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]

def center(ink):
    """Return ink (h, w) as MNIST has it (1, 28, 28): 20 pixels high or wide, its centre of mass in the centre."""
    height, width = ink.shape  # LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998, III-A
    side = round(max(height, width) * 28 / 20)
    top = round(side / 2 - (ink.sum(dim=1) @ (torch.arange(height) + 0.5) / ink.sum()).item())  # half, less the mean y
    left = round(side / 2 - (ink.sum(dim=0) @ (torch.arange(width) + 0.5) / ink.sum()).item())
    image = resize(F.pad(ink[None], (left, side - width - left, top, side - height - top)), [28, 28])
    # Thin strokes turn grey when they are scaled down: brighten them to 0.6 on average (MNIST's own have 0.69).
    return (image * max(1, 0.6 / image[image > 0].mean().item())).clamp(max=1)

def prepare(picture):
    """Return a picture (channels, H, W) as two looks in MNIST's form (2, 1, 28, 28); raise ValueError if empty."""
    looks = [center(digit) for digit in map(cut_out, find_ink(picture)) if digit is not None]
    if not looks:
        raise ValueError("the picture is empty: it shows no more than specks")
    return torch.stack([looks[0], looks[-1]])  # the same twice, if one way found nothing

@torch.inference_mode()
def read_digit(model, looks):
    """Return the look that the network finds most like a digit, and its probabilities, (10,)."""
    logits = model(looks)
    best = logits.amax(dim=1).argmax()
    return looks[best], logits[best].softmax(dim=0)

def has_neighbours(ink):
    """Say whether an image of ink (H, W) has parts of similar height side by side, like the digits of a number."""
    mask = ink > ink.max() / 3
    parts = mask.tensor_split((~mask.any(dim=0)).nonzero().flatten(), dim=1)  # between columns without ink
    heights = sorted(part.any(dim=1).sum() for part in parts)
    return len(heights) > 1 and heights[-2] > heights[-1] / 2

def predict(model, patterns, output_dir, most=100):
    """Print each picture's digit, and plot how the first were read; exit with status 1 if anything fails."""
    paths, readings, failed = [], [], False
    for pattern in patterns:  # Windows does not expand *.png; a name may itself have a star or brackets
        paths += [pattern] if exists(pattern) else sorted(glob.glob(pattern)) or [pattern]
    for path in paths:
        try:
            picture = read_picture(path)
            looks = prepare(picture)
        except ValueError as error:
            print(f"{path}: {error}", file=sys.stderr)
            failed = True
            continue
        image, probabilities = read_digit(model, looks)
        shares, digits = probabilities.topk(2)
        second_choice = f", or {digits[1]} ({shares[1]:.1%})" if shares[1] > 0.01 else ""
        hint = " - unsure: see predictions.png" if shares[0] < 0.5 else ""
        if all(has_neighbours(ink) for ink in find_ink(picture)):
            hint += " - more than one digit? cut them apart"
        print(f"{path}: {digits[0]} ({shares[0]:.1%}){second_choice}{hint}", flush=True)
        if len(readings) < most:
            readings.append((Path(path).name, picture, image, probabilities))
    saved = not readings or save(output_dir / "predictions.png", plot_readings(readings))
    if failed or not saved:
        sys.exit(1)

# The pad: a window to write digits in.
def prepare_strokes(strokes, pen_width=2.5):  # in pixels of 28 x 28; of 2 to 3.5, 2.5 was read best
    """Return strokes, lists of points (x, y), y downward, in any unit, in MNIST's form, float32 (1, 28, 28)."""
    strokes = [torch.tensor(stroke, dtype=torch.float64) for stroke in strokes]
    low, high = torch.cat(strokes).aminmax(dim=0)
    image, radius = Image.new("L", (160, 160)), 4 * pen_width  # eight times too large: center shrinks it
    scale = (160 - 2 * radius) / (high - low).max().clamp(min=1e-9)
    for stroke in strokes:
        points = [(x, y) for x, y in (scale * (stroke - low) + radius).tolist()]
        ImageDraw.Draw(image).line(points, fill=255, width=round(2 * radius))
        for x, y in points:
            ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return center(pil_to_tensor(image)[0] / 255)

def draw_pad(figure, model):
    """Turn a figure into a pad to write on with the left button, beside what the network sees and says of it."""
    pad, view, bars = figure.subplots(1, 3, width_ratios=(2, 1, 1), subplot_kw={"xticks": [], "yticks": []})
    pad.set(title="write a digit; c or a right click clears", xlim=(0, 1), ylim=(1, 0), aspect="equal")
    seen = view.imshow(torch.zeros(28, 28).numpy(), cmap="gray_r", vmin=0, vmax=1)
    strokes, pen = [], {"color": "black", "linewidth": 9, "marker": "o", "markersize": 8}
    (line,) = pad.plot([], [], **pen)
    lasso = LassoSelector(pad, strokes.append, props=pen, button=1)  # draws below the pen, and adds what it has drawn
    def update(event):
        image, probabilities, title = torch.zeros(1, 28, 28), torch.zeros(10), ""
        if event.name == "key_press_event" and event.key == "c" or getattr(event, "button", None) == 3:
            strokes.clear()
        if strokes:
            image, probabilities = read_digit(model, prepare_strokes(strokes)[None])
            title = f"{probabilities.argmax()} ({probabilities.max():.1%})"
        points = [point for stroke in strokes for point in [*stroke, (math.nan, math.nan)]]  # nan: a gap
        line.set_data([x for x, y in points], [y for x, y in points])
        seen.set_data(image[0].numpy())
        bars.clear()
        bars.bar(range(10), probabilities.tolist(), tick_label=range(10))
        bars.set(ylim=(0, 1), title=title)
        lasso.canvas.draw_idle()
    figure.canvas.mpl_connect("button_release_event", update)
    figure.canvas.mpl_connect("key_press_event", update)

def open_pad(model):
    """Open a window with the pad, or end the program with one sentence where there can be none."""
    try:
        from matplotlib import pyplot  # only here, because it looks for a display
        with pyplot.rc_context({"toolbar": "None"}):  # c is one of the toolbar's keys
            figure = pyplot.figure("mnist_cnn", figsize=(11, 5.5), layout="constrained")
        if not figure.canvas.required_interactive_framework:
            raise ImportError("its back end has no windows")
    except Exception as error:  # a toolkit that is not installed, or finds no display, raises whatever it likes
        sys.exit(f"mnist_cnn.py: No window: it needs a desktop and tkinter ({' '.join(str(error).split())}).")
    draw_pad(figure, model)
    pyplot.show(block=True)

# Files and the command line: whatever goes wrong here ends the program with one sentence.
def save(path, result):
    """Save a figure or weights, whole or not at all, and return True; where that fails, say why and return False."""
    content, part = io.BytesIO(), path.with_suffix(".part")
    if isinstance(result, Figure):
        result.savefig(content, format="png")  # also where a user's matplotlibrc says pdf
    else:
        torch.save(result, content)
    try:
        part.write_bytes(content.getvalue())
        part.replace(path)
    except OSError as error:
        print(f"mnist_cnn.py: Can't write {path} ({error.strerror}): use another --output-dir.", file=sys.stderr)
        if part.exists():
            part.unlink()
        return False
    return True

def load_mnist(data_dir):
    """Return MNIST's training and test set, downloaded if need be; end the program if there is none."""
    raw = Path(data_dir, MNIST.__name__, "raw")  # FashionMNIST may be imported as MNIST
    try:
        with TemporaryDirectory() as folder:
            if all(check_integrity(raw / name, md5) for name, md5 in MNIST.resources):
                # Unpacked elsewhere each time: beside them a killed run may have left half, or all may be read-only.
                data_dir, unpacked = folder, Path(folder, MNIST.__name__, "raw")
                unpacked.mkdir(parents=True)
                for name, _ in MNIST.resources:
                    extract_archive(raw / name, unpacked)
            return MNIST(data_dir, train=True, download=True), MNIST(data_dir, train=False)
    except Exception as error:  # torchvision raises whatever it likes
        names, reason = ", ".join(dict(MNIST.resources)), " ".join(str(error).split())
        sys.exit(f"mnist_cnn.py: Can't load {MNIST.__name__} ({reason}): put {names} in {raw}.")

def load_model(path):
    """Return the network with the weights that a training saved; end the program if there are none."""
    model = CNN()
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises whatever it likes for a damaged file
        reason = " ".join(str(error).split()) if isinstance(error, (RuntimeError, OSError)) else "it is damaged"
        sys.exit(f"mnist_cnn.py: {path} holds no weights of the CNN as it is now: train first ({reason})")
    return model.eval()

def parse_args(argv=None):
    """Return the flags of argv or else the command line, checked; a wrong one ends the program with status 2."""
    try:
        script = Path(__file__).resolve()  # not the link that it may have been started through
    except NameError:  # in a notebook's cell
        script = Path("cell")
    if argv is None and Path(sys.argv[0]).resolve() != script:
        argv = []  # an editor or a notebook was started, not this file: the flags are for them
    parser = argparse.ArgumentParser(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.description = "Train a small CNN on MNIST, test it, and let it read digits of your own."
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="passes over the training images")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help="images in one training step")
    parser.add_argument("--lr", type=float, default=LR, help="learning rate at the start")
    parser.add_argument("--seed", type=int, default=SEED, help="start of the random numbers")
    parser.add_argument("--log-interval", type=int, default=LOG_INTERVAL, help="batches between logged losses")
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    parser.add_argument("--device", choices=devices, default=DEVICE, help="where the network is trained")
    data_dir, output_dir = script.parent / expanduser(DATA_DIR), script.parent / expanduser(OUTPUT_DIR)
    parser.add_argument("--data-dir", type=expanduser, default=data_dir, help="folder of MNIST")
    parser.add_argument("--output-dir", type=expanduser, default=output_dir, help="folder of the weights and plots")
    parser.add_argument("--validate", default=VALIDATE, action=argparse.BooleanOptionalAction, help="hold out images")
    instead, unset = parser.add_mutually_exclusive_group(), argparse.SUPPRESS  # no default: not even in args
    instead.add_argument("--predict", nargs="+", metavar="IMAGE", default=unset, help="read these pictures instead")
    instead.add_argument("--draw", action="store_true", default=unset, help="open a pad to write digits on instead")
    args = parser.parse_args(argv)
    args.data_dir, args.output_dir = Path(args.data_dir), Path(args.output_dir)
    limits = dict(epochs=(1, 1e6), batch_size=(1, 6e4), lr=(1e-37, 1e37), log_interval=(1, 1e6), seed=(0, 2**64 - 1))
    for name, (least, most) in limits.items():
        if not least <= getattr(args, name) <= most:
            parser.error(f"argument --{name.replace('_', '-')}: must be from {least:g} to {most:g}")
    return args

def main(argv=None):
    """Do what the flags in argv, or else the command line, ask for; return a training's accuracy in per cent."""
    args = parse_args(argv)
    if "predict" in args or "draw" in args:
        model = load_model(args.output_dir / "mnist_cnn.pt")
        return predict(model, args.predict, args.output_dir) if "predict" in args else open_pad(model)
    try:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        (args.output_dir / "mnist_cnn.part").touch()
        (args.output_dir / "mnist_cnn.part").unlink(missing_ok=True)
    except OSError as error:  # now, and not after the training
        sys.exit(f"mnist_cnn.py: Can't write to {args.output_dir} ({error.strerror}): choose another --output-dir.")
    return run(args)

# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "torchvision>=0.19", "matplotlib>=3.8"]
# ///
if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):  # not in a notebook
        sys.stdout.reconfigure(errors="backslashreplace")  # a name may have letters that a console lacks
    try:
        main()
    except KeyboardInterrupt:
        print("mnist_cnn.py: Stopped before the end.", file=sys.stderr)
        sys.exit(130)
    except OSError as error:  # only of printing: to head, which has enough (EINVAL on Windows), or to a full disk
        if error.filename or error.errno not in (errno.EPIPE, errno.EINVAL, errno.ENOSPC):
            raise
        sys.stdout = None  # Python would try to print the rest, and complain
        sys.exit(f"mnist_cnn.py: Stopped before the end, as nothing more could be printed ({error.strerror}).")
