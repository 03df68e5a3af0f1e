"""Train a small convolutional neural network (CNN) on MNIST's handwritten digits, test it, let it read your own.

Read from the top: constants, data, network, training, testing, program. A line says where the story ends.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import MNIST

# Mostly for the second half of the file: the command line, files, plots and pictures.
import argparse
import glob
import gzip
import math
import sys
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4
from matplotlib.figure import Figure
from matplotlib.widgets import LassoSelector
from PIL import Image, ImageDraw, ImageOps
from torchvision.datasets.utils import check_integrity
from torchvision.transforms.functional import pil_to_tensor, resize

# Each constant in capitals is the default of the flag of the same name (--epochs, --batch-size, ...).
EPOCHS = 5  # passes over the training images
BATCH_SIZE = 100  # images in one training step
LR = 1e-3  # learning rate at the start: how far a step changes the weights; it decays to zero
SEED = 0  # seed of the random numbers: on one CPU, the same seed gives the same result
LOG_INTERVAL = 20  # batches from one logged loss to the next
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where the network is trained
DATA_DIR = "data"  # beside this file; holds MNIST, or gets the download
OUTPUT_DIR = "outputs"  # beside this file; gets the weights and the plots
VALIDATE = False  # to choose between designs: test on 10,000 held-out training images, not on the test images
criterion = nn.CrossEntropyLoss()  # the loss, no flag; it applies softmax itself, so the network must not


def make_loaders(mnist, batch_size, device, validate=False):
    """Return DataLoaders for training and testing; a batch is N images (N, 1, 28, 28) in [0, 1] and labels (N,)."""
    # Most tutorials hand MNIST(transform=ToTensor()) to the DataLoader, which decodes each image again in each epoch
    # and nearly doubles its time. Here all images, uint8 (N, 28, 28), become float32 once, with one channel: grey.
    train_set, test_set = (
        TensorDataset(part.data.unsqueeze(1).to(device) / 255, part.targets.to(device)) for part in mnist
    )
    if validate:
        train_set, test_set = TensorDataset(*train_set[:-10_000]), TensorDataset(*train_set[-10_000:])
    return DataLoader(train_set, batch_size, shuffle=True), DataLoader(test_set, batch_size)


class CNN(nn.Module):
    """A convolutional network that turns images into logits: ten numbers, one per digit; the highest is its guess."""

    def __init__(self):
        super().__init__()
        # The comments give the shape of one image after the layer: channels x height x width. A convolution makes a
        # height of h into h - kernel_size + 1 + 2 * padding (a border of zeros); max-pooling halves it, and comes
        # first to leave batch norm and ReLU a quarter of the pixels. bias=False: batch norm adds its own bias.
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=5, bias=False),  # 16 x 24 x 24, from 1 x 28 x 28
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
            nn.Dropout(0.1),  # zeroes a tenth of the numbers at random in training: rely on none alone
            nn.Linear(64 * 2 * 2, 10),  # 10 logits
        )
        # Batch norm rescales what a convolution without bias returns, so the size of its weights does not matter to
        # the output. But a step is as long for small weights as for large: 0.01 (usual: 0.02 to 0.1) learns faster.
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d) and layer.bias is None:
                nn.init.normal_(layer.weight, std=0.01)

    def forward(self, images):
        """Return the logits, shape (N, 10), of images, shape (N, 1, 28, 28), in [0, 1]; model(images) calls this."""
        return self.layers(images)


def augment(images, scale=0.1, slant=0.2, shift=1):
    """Scale, slant and shift images (N, 1, 28, 28) at random, so that none comes twice; opposite slants are a turn."""
    limits = torch.tensor([[scale, slant, 2 * shift / 28], [slant, scale, 2 * shift / 28]])
    # A matrix per image says where its pixels come from, 28 pixels being 2 units; torch.eye(2, 3) changes nothing.
    matrices = torch.eye(2, 3) + limits * torch.empty(len(images), 2, 3).uniform_(-1, 1)
    grid = F.affine_grid(matrices.to(images.device), images.shape, align_corners=False)
    return F.grid_sample(images, grid, mode="bicubic", align_corners=False)  # the usual bilinear would blur strokes


def train(model, loader, optimizer, scheduler, epoch, epochs, log_interval):
    """Train for one epoch, log the loss, and return the loss of each batch, shape (batches,), on the CPU."""
    model.train()  # dropout on; batch norm measures mean and deviation
    losses = []
    for batch, (images, labels) in enumerate(loader, start=1):
        images = augment(images)
        optimizer.zero_grad()  # forget the last batch's gradients: backward adds to what is there
        logits = model(images)
        loss = criterion(logits, labels)
        loss.backward()  # stores in each weight its gradient: how the loss changes when the weight grows
        optimizer.step()  # change each weight a little, against its gradient
        scheduler.step()  # after the first 30% of the steps, lower the learning rate a little
        losses.append(loss.detach())  # the number alone; .item() would wait for a GPU in every step
        if batch % log_interval == 0:
            print(f"epoch {epoch}/{epochs}  batch {batch:3}/{len(loader)}  loss {loss.item():.4f}", flush=True)
    return torch.stack(losses).cpu()


@torch.inference_mode()  # no gradients are needed here
def evaluate(model, loader):
    """Return the loss averaged over all images, how many are right, and the probabilities, shape (images, 10)."""
    model.eval()  # dropout off; batch norm uses what it measured in training
    total_loss, correct, probabilities = 0, 0, []
    for images, labels in loader:
        logits = model(images)
        total_loss += criterion(logits, labels) * len(labels)  # a mean becomes a sum: the last batch may be smaller
        correct += (logits.argmax(dim=1) == labels).sum()
        probabilities.append(logits.softmax(dim=1))
    return total_loss.item() / len(loader.dataset), correct.item(), torch.cat(probabilities)


def main(argv=None):
    """Run the program as the flags in argv say; return the accuracy in per cent after a training, else None."""
    args = parse_args(argv)
    if args.predict or args.draw:
        model = or_exit(load_model, args.output_dir / "mnist_cnn.pt")  # where there are no weights, the program ends
        return open_pad(model) if args.draw else predict(model, args.predict, args.output_dir)
    mnist = or_exit(load_mnist, args.data_dir)  # its training and test set
    torch.manual_seed(args.seed)
    train_loader, test_loader = make_loaders(mnist, args.batch_size, args.device, args.validate)
    model = CNN().to(args.device, memory_format=torch.channels_last)  # this order in memory is faster on a CPU
    # Adam divides the mean of past gradients by the root of their mean square; with the usual 0.999 that root lags.
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, betas=(0.9, 0.99))
    steps = args.epochs * len(train_loader)  # the rate is lr times 1 for 30% of them, then decays linearly to 0
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (1 - step / steps) / 0.7))
    split, use = ("validation", "validation") if args.validate else ("test", "testing")
    count = len(test_loader.dataset)
    print(f"device: {args.device}")
    print(f"images: {len(train_loader.dataset):,} for training, {count:,} for {use}")
    print(f"parameters: {sum(parameter.numel() for parameter in model.parameters()):,}", flush=True)
    history = []
    for epoch in range(1, args.epochs + 1):
        start = time.perf_counter()
        losses = train(model, train_loader, optimizer, scheduler, epoch, args.epochs, args.log_interval)
        test_loss, correct, probabilities = evaluate(model, test_loader)
        train_loss, accuracy = losses.mean().item(), 100 * correct / count
        if not math.isfinite(train_loss + test_loss):
            sys.exit(f"mnist_cnn.py: The loss is not finite after epoch {epoch}: lower --lr (nothing was saved).")
        results = f"training loss {train_loss:.4f}  {split} loss {test_loss:.4f}  {split} accuracy {accuracy:.2f}%"
        print(f"epoch {epoch}/{args.epochs}  {results}  {time.perf_counter() - start:.1f} s", flush=True)
        history.append((losses, test_loss))
    print(f"{split.capitalize()}: average loss {test_loss:.4f}, accuracy {accuracy:.2f}% ({correct}/{count})")
    save(args.output_dir / "mnist_cnn.pt", lambda file: torch.save(model.state_dict(), file))
    save(args.output_dir / "loss_curves.png", plot_loss_curves(history, split).savefig)
    save(args.output_dir / "mistakes.png", plot_mistakes(*test_loader.dataset.tensors, probabilities, split).savefig)
    print(f"Saved mnist_cnn.pt, loss_curves.png and mistakes.png in {args.output_dir}")
    return accuracy


# THE STORY ENDS HERE. What follows serves it: plots, own digits, the pad, the command line, and checks of files.


def plot_loss_curves(history, split):
    """Return a figure of each epoch's losses, one per batch, and its test loss."""
    losses, test_losses = zip(*history)
    epochs, every = range(1, len(history) + 1), torch.cat(losses)
    axes = Figure(figsize=(8, 4), dpi=150, layout="constrained").subplots()
    axes.plot(torch.arange(1, len(every) + 1) / len(losses[0]), every, alpha=0.4, label="training, each batch")
    axes.plot(epochs, [loss.mean() for loss in losses], "o-", color="C0", label="training, mean of the epoch")
    axes.plot(epochs, test_losses, "o-", color="C1", label=f"{split}, after each epoch")
    axes.set(xlabel="epoch", ylabel="cross-entropy loss", yscale="log")
    axes.legend()
    return axes.figure


def plot_mistakes(images, labels, probabilities, split, most=100):
    """Return a figure of the misclassified images, most confident first, by their probabilities (N, 10)."""
    probability, digit = probabilities.max(dim=1)
    wrong = (digit != labels).nonzero().flatten()
    worst = wrong[probability[wrong].argsort(descending=True)][:most]
    rows = math.ceil(len(worst) / 10) or 1
    figure = Figure(figsize=(11, 1.3 * rows + 0.6), dpi=150, layout="constrained")
    figure.suptitle(f"{len(wrong)} of {len(labels):,} {split} images are misclassified, the surest mistakes first")
    grid = figure.subplots(rows, 10, subplot_kw={"frame_on": False, "xticks": [], "yticks": []})
    for axes, index in zip(grid.flat, worst):
        axes.imshow(images[index, 0].cpu(), cmap="gray_r")
        axes.set_title(f"said {digit[index]} ({probability[index]:.0%})\nis {labels[index]}", fontsize=8)
    return figure


def plot_readings(readings):
    """Return a figure of pictures, what the network saw of them, and its probabilities, at most three a row."""
    across = min(3, len(readings))
    rows = math.ceil(len(readings) / across)
    figure = Figure(figsize=(4 * across, 1.8 * rows), dpi=150, layout="constrained")
    grid = figure.subplots(rows, 3 * across, squeeze=False, subplot_kw={"frame_on": False, "xticks": [], "yticks": []})
    for (left, middle, right), (name, picture, image, probabilities) in zip(grid.reshape(-1, 3), readings):
        left.imshow(picture.movedim(0, -1).clamp(0, 1), cmap="gray")
        middle.imshow(image[0], cmap="gray_r")
        middle.set_title(name, fontsize=8, parse_math=False)
        right.bar(range(10), probabilities, tick_label=range(10))
        right.set(ylim=(0, 1), frame_on=True)
    return figure


def read_picture(path):
    """Return a file's picture, float32 (channels, H, W) up to 1, upright; raise ValueError if it can't be read."""
    try:
        with Image.open(path) as image:
            image.draft(None, (1600, 1600))  # a JPEG can be decoded at a fraction of its size
            image = image.convert("F" if image.mode[0] in "IF" else "RGBA")  # F: more than 8 bits a channel
            image.thumbnail((1600, 1600))
        with suppress(Exception):  # where only the EXIF is damaged, the picture is read without it
            image = ImageOps.exif_transpose(image)
    except Exception as error:  # decoders raise whatever they like
        raise ValueError(f"it can't be read ({error}); name a whole picture, and save HEIC as JPEG") from error
    pixels = pil_to_tensor(image)
    if len(pixels) == 1:
        return pixels / pixels.max().clamp(min=1)
    colour, opacity = pixels[:3] / 255, pixels[3:] / 255
    # Ink on transparent paper may have any colour: there, ink is what is opaque.
    return opacity if opacity.mean() < 0.5 else colour * opacity + 1 - opacity


def dilate(image, radius):
    """Return the highest value in a square of that radius around each pixel of an image (H, W)."""
    rows = F.max_pool2d(image[None], (1, 2 * radius + 1), stride=1, padding=(0, radius))  # in two steps: faster
    return F.max_pool2d(rows, (2 * radius + 1, 1), stride=1, padding=(radius, 0))[0]


def reconstruct(seeds, bounds):
    """Spread seeds under bounds, (H, W): Vincent, "Morphological Grayscale Reconstruction in Image Analysis", 1993."""
    spread = torch.minimum(dilate(seeds, 1), bounds)
    while not spread.equal(seeds):
        seeds, spread = spread, torch.minimum(dilate(spread, 1), bounds)
    return spread


def otsu_threshold(values):
    """Return what separates low from high values best: Otsu, "A Threshold Selection Method ...", 1979."""
    values = values.flatten().double().sort().values
    count = torch.arange(1, len(values) + 1)
    low_mean, high_mean = values.cumsum(0) / count, (values.flip(0).cumsum(0) / count).flip(0)
    return values[(count[:-1] * count[:-1].flip(0) * (high_mean[1:] - low_mean[:-1]) ** 2).argmax()]


def find_ink(image):
    """Return how much ink each pixel of an image (H, W) may have, seen in two ways, (H, W) each."""
    radius, half = round(0.15 * max(image.shape)), max(image.shape) // 8  # of squares that no stroke fills
    margin = [image.shape[axis] // 5 for axis in (1, 1, 0, 0)]  # left, right, top, bottom: may show the table
    # Ink is rare: where it is dark, the middle, less its local mean, has a negative skewness.
    middle = F.pad(image, [-length for length in margin])
    local_mean = F.avg_pool2d(middle[None], 2 * half + 1, 1, half, count_include_pad=False)[0]
    bright = image if (middle - local_mean).pow(3).mean() > 0 else 1 - image
    # One way: ink is too narrow for the square (a top-hat), and is no table, frame or shadow from the border.
    narrow = bright - dilate(-dilate(-bright, radius), radius)
    narrow -= reconstruct(narrow - F.pad(F.pad(narrow, [-1] * 4), [1] * 4), narrow)
    # The other, for a digit that touches the border: ink is unlike most of the border, and reaches the middle.
    unlike = (image - torch.cat([image[[0, -1]].flatten(), image[:, [0, -1]].flatten()]).median()).abs()
    return narrow, reconstruct(F.pad(F.pad(unlike, [-length for length in margin]), margin), unlike)


def cut_out(ink):
    """Return the digit's box, (h, w), from 0 to 1, in an image of ink (H, W); None if there is none."""
    mask = ink > otsu_threshold(ink)
    near = dilate(mask.float(), max(ink.shape) // 20)  # strokes with a gap of a tenth between them belong together
    numbers = torch.arange(1.0, near.numel() + 1).view(near.shape) * near
    parts = reconstruct(numbers, numbers.max() * near).long() * mask  # each connected component gets its highest
    digit = parts == torch.bincount(parts.flatten(), (ink * mask).flatten()).argmax()  # the component with most ink
    (top, left), (bottom, right) = (corner.tolist() for corner in digit.nonzero().aminmax(dim=0))
    if not mask.any() or max(right - left, bottom - top) < max(ink.shape) / 20:  # nothing, or a speck
        return None
    ink = (ink / ink[digit].mean()).clamp(max=1) * dilate(digit.float(), 1)  # with the grey levels of its edge
    return ink[top : bottom + 1, left : right + 1]


def center(ink):
    """Return ink (h, w) in MNIST's form (1, 28, 28): LeCun et al., "Gradient-Based Learning ...", 1998, III-A."""
    height, width = ink.shape
    side = round(max(height, width) * 28 / 20)
    top = round(side / 2 - ((ink.sum(dim=1) @ (torch.arange(height) + 0.5)) / ink.sum()).item())
    left = round(side / 2 - ((ink.sum(dim=0) @ (torch.arange(width) + 0.5)) / ink.sum()).item())
    image = resize(F.pad(ink[None], (left, side - width - left, top, side - height - top)), [28, 28])
    # Thin strokes turn grey when they are scaled down: brighten them to 0.6 on average (MNIST's own have 0.69).
    return (image * max(1, 0.6 / image[image > 0].mean().item())).clamp(max=1)


def prepare(picture):
    """Return a picture (channels, H, W) as two looks in MNIST's form (2, 1, 28, 28); raise ValueError if empty."""
    scale = 128 / max(picture.shape[1:])  # enough for a digit, and quickly searched
    image = resize(picture, [max(2, round(scale * length)) for length in picture.shape[1:]]).mean(dim=0)
    contrast = (dilate(image, 2) + dilate(-image, 2)).max()
    digits = [cut_out(ink) for ink in find_ink(image)] if contrast > 0.15 else []  # grain and shadows have less
    looks = [center(digit) for digit in digits if digit is not None]
    if not looks:
        raise ValueError("the picture is empty: it must show a digit that is darker or lighter than its paper")
    return torch.stack([looks[0], looks[-1]])


@torch.inference_mode()
def read_digit(model, looks):
    """Return the look that the network takes for a digit more than the others, and its probabilities, (10,)."""
    logits = model(looks)
    best = logits.amax(dim=1).argmax()
    return looks[best], logits[best].softmax(dim=0)


def predict(model, patterns, output_dir):
    """Print each picture's digit, and plot how it was read; expand *.png, as Windows does not; exit 1 if any fails."""
    paths = [path for name in patterns for path in glob.glob(glob.escape(name)) or sorted(glob.glob(name)) or [name]]
    readings = []
    for path in paths:
        try:
            looks = prepare(picture := read_picture(path))
        except ValueError as error:
            print(f"{path}: {error}", file=sys.stderr)
            continue
        image, probabilities = read_digit(model, looks)
        (first, second), (digit, other) = (values.tolist() for values in probabilities.topk(2))
        second_choice = f", or {other} ({second:.1%})" if second > 0.01 else ""
        hint = " - unsure: see predictions.png" if first < 0.5 else ""
        print(f"{path}: {digit} ({first:.1%}){second_choice}{hint}", flush=True)
        step = 1 + max(picture.shape) // 400
        readings.append((Path(path).name, picture[:, ::step, ::step].clone(), image, probabilities))
    if readings:
        save(output_dir / "predictions.png", plot_readings(readings[:100]).savefig)
    if len(readings) < len(paths):
        sys.exit(1)


def prepare_strokes(strokes, pen_width=2.5):  # in pixels of 28 x 28; of 2 to 3.5, 2.5 is read best
    """Return strokes, lists of points (x, y), y downward, in any unit, in MNIST's form, float32 (1, 28, 28)."""
    strokes = [torch.tensor(stroke, dtype=torch.float64) for stroke in strokes]
    low, high = torch.cat(strokes).aminmax(dim=0)
    image, radius = Image.new("L", (160, 160)), 4 * pen_width  # eight times too large: center shrinks it
    scale = (160 - 2 * radius) / (high - low).max().clamp(min=1e-9)
    for stroke in strokes:
        # Less 1e-6, so that rounding errors do not decide whether a half is rounded up or down.
        points = [tuple(point) for point in (scale * (stroke - low) + radius - 1e-6).round().tolist()]
        ImageDraw.Draw(image).line(points, fill=255, width=round(2 * radius))
        for x, y in points:
            ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return center(pil_to_tensor(image)[0] / 255)


def draw_pad(figure, model):
    """Make a figure a pad to write on with the left button, beside what the network sees, and says of it."""
    pad, view, bars = figure.subplots(1, 3, width_ratios=(2, 1, 1), subplot_kw={"xticks": [], "yticks": []})
    pad.set(title="write a digit; c or a right click clears", xlim=(0, 1), ylim=(1, 0), aspect="equal")
    seen = view.imshow(torch.zeros(28, 28), cmap="gray_r", vmin=0, vmax=1)
    strokes, pen = [], {"color": "black", "linewidth": 9, "marker": "o", "markersize": 8}
    (line,) = pad.plot([], [], **pen)
    lasso = LassoSelector(pad, strokes.append, props=pen, button=1)  # to draw all each time would lose points

    def read(event=None):
        written, gap = strokes + [lasso.verts] * bool(lasso.verts), (math.nan, math.nan)
        line.set_data(*zip(gap, *(point for stroke in written for point in [*stroke, gap])))
        image, probabilities = torch.zeros(1, 28, 28), torch.zeros(10)
        if written:
            image, probabilities = read_digit(model, prepare_strokes(written)[None])
        seen.set_data(image[0])
        bars.clear()
        bars.bar(range(10), probabilities, tick_label=range(10))
        bars.bar(probabilities.argmax(), probabilities.max())  # in another colour
        bars.set(ylim=(0, 1), title=f"{probabilities.argmax()} ({probabilities.max():.1%})" if written else "")
        figure.canvas.draw_idle()

    timer = figure.canvas.new_timer(200, [(read, (), {})])  # milliseconds for which the pen has rested
    timer.single_shot = True
    figure.canvas.mpl_connect("motion_notify_event", lambda event: timer.start())
    figure.canvas.mpl_connect("button_release_event", read)
    figure.canvas.mpl_connect("button_press_event", lambda event: read(strokes.clear()) if event.button == 3 else None)
    figure.canvas.mpl_connect("key_press_event", lambda event: read(strokes.clear()) if event.key == "c" else None)
    read()


def open_pad(model):
    """Open a window with the pad, or end the program with one sentence where there can be none."""
    with suppress(ImportError):  # of a back end that is not installed, or finds no display
        from matplotlib import pyplot  # only here, because it looks for a display
        with pyplot.rc_context({"toolbar": "None"}):  # c is one of the toolbar's keys
            figure = pyplot.figure("mnist_cnn", figsize=(11, 5.5), layout="constrained")
        if figure.canvas.required_interactive_framework:
            draw_pad(figure, model)
            return pyplot.show(block=True)
    sys.exit("mnist_cnn.py: No window can be opened: use a desktop, not a notebook; Debian needs python3-tk.")


def parse_args(argv=None):
    """Return the command line's flags, checked; a wrong one ends the program with exit status 2."""
    here = Path(globals().get("__file__", "")).parent  # a notebook's cell has no file, and no command line
    parser = argparse.ArgumentParser(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="passes over the training images")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help="images in one training step")
    parser.add_argument("--lr", type=float, default=LR, help="learning rate at the start")
    parser.add_argument("--seed", type=int, default=SEED, help="start of the random numbers")
    parser.add_argument("--log-interval", type=int, default=LOG_INTERVAL, help="batches between logged losses")
    gpus = ["cuda"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    devices = ["cpu"] + gpus * torch.cuda.is_available()  # Apple's mps has no bicubic grid_sample in older versions
    parser.add_argument("--device", choices=devices, default=DEVICE, help="where the network is trained")
    parser.add_argument("--data-dir", type=Path, default=here / DATA_DIR, help="folder of MNIST")
    parser.add_argument("--output-dir", type=Path, default=here / OUTPUT_DIR, help="folder of the weights and plots")
    parser.add_argument("--validate", default=VALIDATE, action=argparse.BooleanOptionalAction, help="hold out images")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--predict", nargs="+", metavar="IMAGE", help="read these pictures instead")
    instead.add_argument("--draw", action="store_true", help="open a pad to write digits on instead")
    args = parser.parse_args(argv if "__file__" in globals() else argv or [])
    limits = {"epochs": (1, 1e6), "batch_size": (1, 60_000), "lr": (1e-37, 1e37), "seed": (0, 2**64 - 1)}
    for name, (least, most) in {**limits, "log_interval": (1, 1e6)}.items():
        if not least <= getattr(args, name) <= most:
            parser.error(f"argument --{name.replace('_', '-')}: must be from {least:g} to {most:g}")
    try:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        (probe := args.output_dir / uuid4().hex).touch()
        probe.unlink()
    except OSError as error:  # now, and not after the training
        sys.exit(f"mnist_cnn.py: Can't write to {args.output_dir} ({error.strerror}): choose another --output-dir.")
    return args


def or_exit(function, *arguments):
    """Return what function(*arguments) returns; its ValueError ends the program with its sentence and status 1."""
    try:
        return function(*arguments)
    except ValueError as error:
        sys.exit("mnist_cnn.py: " + " ".join(str(error).split()))  # torch's own messages have many lines


def load_mnist(data_dir):
    """Return MNIST's training and test set, unpacked or downloaded; raise ValueError where there is none."""
    raw = Path(data_dir, MNIST.__name__, "raw")  # FashionMNIST may be imported as MNIST
    try:
        raw.mkdir(parents=True, exist_ok=True)
        # torchvision checks the archives, but not what it has unpacked, of which a killed run may have left half.
        for name in (name for name, md5 in MNIST.resources if check_integrity(raw / name, md5)):
            content, unpacked = gzip.decompress((raw / name).read_bytes()), raw / name.removesuffix(".gz")
            if not unpacked.exists() or unpacked.read_bytes() != content:
                save(unpacked, lambda file: file.write(content))
        return MNIST(data_dir, train=True, download=True), MNIST(data_dir, train=False)
    except Exception as error:  # torchvision raises whatever it likes
        raise ValueError(f"No {MNIST.__name__}: put {', '.join(dict(MNIST.resources))} in {raw} ({error})") from error


def load_model(path):
    """Return the network with the weights that a training saved; raise ValueError where that can't be done."""
    model = CNN()
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises whatever it likes for a damaged file
        reason = error if isinstance(error, (RuntimeError, OSError)) else "it is damaged"
        raise ValueError(f"{path} holds no weights of the CNN as it is now: train first ({reason})") from error
    return model.eval()


def save(path, write):
    """Let write(file) fill a file beside path, which then replaces path: it appears whole or not at all."""
    part = path.with_name(uuid4().hex)  # tempfile would retry for ever where Windows lets nobody write
    try:
        with part.open("xb") as file:
            write(file)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("mnist_cnn.py: Stopped before the end.", file=sys.stderr)
        sys.exit(130)
