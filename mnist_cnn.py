"""Train a small convolutional network (CNN) on MNIST, test it, and read your own digits with it.

    python mnist_cnn.py --epochs 5 --lr 1e-3
    python mnist_cnn.py --predict photo.png

After five epochs it reads 99.55 ± 0.04% of the test images right (mean and standard deviation of ten seeds), in
44 s on two cores of an AMD EPYC server. The story comes first, from constants to program; then what serves it.
"""

import argparse
import gzip
import io
import math
import signal
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import MNIST
from torchvision.datasets.utils import check_integrity
from torchvision.ops import masks_to_boxes
from torchvision.transforms.functional import pil_to_tensor, resize

# Each constant is the default of the flag of the same name (--epochs, --batch-size, ...).
EPOCHS = 5  # how often the training sees each training image
BATCH_SIZE = 100  # images in one training step
LR = 1e-3  # learning rate at the start; it falls to zero in a straight line
SEED = 0  # the same seed, CPU, number of threads and versions give the same result, to the last digit
LOG_INTERVAL = 20  # batches from one logged loss to the next
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where the network is trained
DATA_DIR = "data"  # beside this file; holds MNIST/raw with the four archives, or gets the download
OUTPUT_DIR = "outputs"  # beside this file; gets the weights and the pictures
VALIDATE = False  # hold out the last 10,000 training images and report on them, not on the test images
SHOW = False  # open the plots in a window at the end


class BatchedImages(Dataset):
    """Images and labels on one device. A DataLoader asks a dataset that has __getitems__ for a whole batch
    at once; to ask for image after image, as it does else, takes longer than to train on them.
    """

    def __init__(self, images, labels, device):
        self.images = images.unsqueeze(1).to(device)  # with a channel axis; uint8 takes a quarter of float32
        self.labels = labels.to(device)

    def __len__(self):
        return len(self.labels)

    def __getitems__(self, indices):
        """Return images, float32 of shape (N, 1, 28, 28) in [0, 1], and labels, int64 of shape (N,)."""
        # non_blocking: the loop goes on while the indices travel to the GPU.
        indices = torch.tensor(indices).to(self.labels.device, non_blocking=True)
        return self.images[indices].float() / 255, self.labels[indices]


def keep_batch(batch):
    """Return the batch as it is: a DataLoader's collate_fn stacks single images, and ours come stacked."""
    return batch


def make_loaders(data_dir, batch_size, device, validate=False):
    """Return the DataLoader of the training images, shuffled, and that of the test images, in order.

    To validate is to test on the last 10,000 training images, and to train on the other 50,000.
    """
    train_mnist, test_mnist = load_mnist(data_dir)
    images, labels = train_mnist.data, train_mnist.targets
    test_images, test_labels = test_mnist.data, test_mnist.targets
    if validate:
        images, test_images = images[:-10_000], images[-10_000:]
        labels, test_labels = labels[:-10_000], labels[-10_000:]
    train_set = BatchedImages(images, labels, device)
    test_set = BatchedImages(test_images, test_labels, device)
    train_loader = DataLoader(train_set, batch_size, shuffle=True, collate_fn=keep_batch)
    return train_loader, DataLoader(test_set, batch_size, collate_fn=keep_batch)


def block(channels_in, channels_out, kernel_size, padding=0, pool=True):
    """Return the layers of one block: convolution, max-pooling if wanted, batch norm, ReLU."""
    convolution = nn.Conv2d(channels_in, channels_out, kernel_size, padding=padding, bias=False)
    # Batch norm, which has a bias of its own, cancels the scale of these weights: the smaller they start, the
    # further a step of Adam turns them, and the faster they learn. Without batch norm, delete this line too.
    nn.init.normal_(convolution.weight, std=0.01)
    pooling = nn.MaxPool2d(2) if pool else nn.Identity()  # first: the rest has fewer pixels to work on
    return nn.Sequential(convolution, pooling, nn.BatchNorm2d(channels_out), nn.ReLU())


class CNN(nn.Module):
    """A convolutional network that turns images into ten logits, one a digit."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            block(1, 16, kernel_size=5),  # 28 x 28 pixels -> 24 x 24, pooled to 12 x 12
            block(16, 32, kernel_size=3, padding=1),  # -> 12 x 12, pooled to 6 x 6
            block(32, 64, kernel_size=3, padding=1, pool=False),  # -> 6 x 6
            block(64, 64, kernel_size=3),  # -> 4 x 4, pooled to 2 x 2
            nn.Flatten(),
            nn.Dropout(0.1),  # against learning the training images by heart
            nn.Linear(64 * 2 * 2, 10),
        )

    def forward(self, images):
        """Return logits of shape (N, 10) for images of shape (N, 1, 28, 28) in [0, 1]. There is no softmax,
        because CrossEntropyLoss applies it; twice would keep the loss above 1.46.
        """
        return self.layers(images)


def augment(images, degrees=8, zoom=0.08, pixels=1):
    """Turn, scale and shift images, shape (N, 1, 28, 28), each at random, so that no image looks the same twice."""
    count, _, size, _ = images.shape
    angle, zoom_x, zoom_y, shift_x, shift_y = torch.empty(5, count, 1, 1, device=images.device).uniform_(-1, 1)
    angle, zoom_x, zoom_y = math.radians(degrees) * angle, 1 + zoom * zoom_x, 1 + zoom * zoom_y
    # grid_sample copies pixel (x, y) of the result, both from -1 to 1, from (from_x, from_y) of the image.
    x = (2 * torch.arange(size, device=images.device) + 1) / size - 1
    y = x[:, None]
    from_x = zoom_x * angle.cos() * x - zoom_y * angle.sin() * y + shift_x * 2 * pixels / size
    from_y = zoom_x * angle.sin() * x + zoom_y * angle.cos() * y + shift_y * 2 * pixels / size
    return F.grid_sample(images, torch.stack([from_x, from_y], dim=-1), align_corners=False)


def make_training(model, lr, steps):
    """Return the optimizer of a model, and the schedule that lowers its learning rate from lr to zero."""
    # 0.99 instead of Adam's usual 0.999: five epochs are too short for a memory of a thousand steps.
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.99), fused=True)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1, end_factor=0, total_iters=steps)
    return optimizer, scheduler


def train(model, loader, optimizer, scheduler, epoch, epochs, log_interval):
    """Train for one epoch and log its loss; return the loss of each batch, shape (batches,), on the CPU."""
    criterion = nn.CrossEntropyLoss()
    width = len(str(len(loader)))
    model.train()
    losses = []
    for batch, (images, labels) in enumerate(loader, start=1):
        images = augment(images)
        optimizer.zero_grad()
        logits = model(images)
        loss = criterion(logits, labels)
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.detach())  # not loss.item(), which waits for the GPU: only where a line is logged
        if batch % log_interval == 0:
            print(f"epoch {epoch}/{epochs}  batch {batch:>{width}}/{len(loader)}  loss {loss.item():.4f}", flush=True)
    return torch.stack(losses).cpu()


@torch.inference_mode()
def evaluate(model, loader):
    """Return the loss averaged over all images, how many are read right, and the probabilities (images, 10)."""
    model.eval()
    loss, correct, probabilities = 0, 0, []
    for images, labels in loader:
        logits = model(images)
        loss += F.cross_entropy(logits, labels, reduction="sum")  # the last batch may be smaller than the others
        correct += (logits.argmax(dim=1) == labels).sum()
        probabilities.append(logits.softmax(dim=1))
    return loss.item() / len(loader.dataset), correct.item(), torch.cat(probabilities)


def train_and_test(args):
    """Train, test, print and save as the flags say."""
    prepare_output_dir(args.output_dir)
    torch.manual_seed(args.seed)
    train_loader, test_loader = make_loaders(args.data_dir, args.batch_size, args.device, args.validate)
    model = CNN().to(args.device, memory_format=torch.channels_last)  # channels last in memory: faster on CPUs
    optimizer, scheduler = make_training(model, args.lr, steps=args.epochs * len(train_loader))
    split, use = ("validation", "validation") if args.validate else ("test", "testing")
    count = len(test_loader.dataset)
    print(f"device: {args.device}")
    print(f"images: {len(train_loader.dataset):,} for training, {count:,} for {use}")
    print(f"parameters: {sum(parameter.numel() for parameter in model.parameters()):,}", flush=True)

    losses, test_losses, accuracies = [], [], []
    for epoch in range(1, args.epochs + 1):
        start = time.perf_counter()
        losses.append(train(model, train_loader, optimizer, scheduler, epoch, args.epochs, args.log_interval))
        test_loss, correct, probabilities = evaluate(model, test_loader)
        if not math.isfinite(test_loss):
            raise UserError(f"The {split} loss is not finite after epoch {epoch}: lower --lr (nothing was saved).")
        test_losses.append(test_loss)
        accuracies.append(100 * correct / count)
        print(f"epoch {epoch}/{args.epochs}  training loss {losses[-1].mean():.4f}", end="  ")
        seconds = time.perf_counter() - start
        print(f"{split} loss {test_loss:.4f}  {split} accuracy {accuracies[-1]:.2f}%  {seconds:.1f} s", flush=True)
    print(f"{split.capitalize()}: average loss {test_loss:.4f}, accuracy {accuracies[-1]:.2f}% ({correct}/{count})")
    with whole_file(args.output_dir / "mnist_cnn.pt") as file:
        torch.save(model.state_dict(), file)
    if args.show:
        from matplotlib import pyplot  # only here, because it looks for a display
    new_figure = pyplot.figure if args.show else Figure
    curves, mistakes = new_figure(figsize=(10, 4), layout="constrained"), new_figure(layout="constrained")
    draw_loss_curves(curves, losses, test_losses, accuracies, split)
    draw_mistakes(mistakes, test_loader.dataset, probabilities.cpu(), split)
    for name, figure in (("loss_curves.png", curves), ("mistakes.png", mistakes)):
        with whole_file(args.output_dir / name) as file:
            figure.savefig(file, dpi=150)
    if args.show:
        pyplot.show()


def main(argv=None):
    """Run the program with the command line argv; return its exit status."""
    args = parse_args(argv)
    try:
        if args.predict:
            return predict(args.predict, args.output_dir)
        train_and_test(args)
        return 0
    except KeyboardInterrupt:
        message, status = "Stopped before the end.", 130
    except UserError as error:
        message, status = error, 1
    except OSError as error:
        message, status = f"Cannot use {error.filename or 'the output'} ({error.strerror}): choose another folder.", 1
    except RuntimeError as error:
        if "allocate" not in str(error):  # torch's word for it
            raise
        message, status = "There is not enough memory: lower --batch-size, or close other programs.", 1
    print(f"mnist_cnn.py: {message}", file=sys.stderr)
    return status


def draw_loss_curves(figure, losses, test_losses, accuracies, split):
    """Draw losses, one tensor of its batches an epoch, and test loss and accuracy (%), one number an epoch."""
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    epochs = range(1, len(losses) + 1)
    every = torch.cat(losses)
    seen = torch.arange(1, len(every) + 1) / len(losses[0])
    left.plot(seen.numpy(), every.numpy(), color="C0", alpha=0.4, linewidth=0.8, label="training, each batch")
    left.plot(epochs, [loss.mean().item() for loss in losses], "o-", color="C0", label="training, mean of the epoch")
    left.plot(epochs, test_losses, "o-", color="C1", label=f"{split}, after each epoch")
    left.set(xlabel="epoch", ylabel="cross-entropy loss", yscale="log")
    left.legend()
    right.plot(epochs, accuracies, "o-", color="C1")
    right.set(xlabel="epoch", ylabel=f"{split} accuracy (%)", ylim=(min(accuracies) - 0.1, 100))
    right.xaxis.get_major_locator().set_params(integer=True)


def draw_mistakes(figure, dataset, probabilities, split, most=100):
    """Draw the misread images of a BatchedImages, worst first, given their probabilities (N, 10)."""
    images, labels = dataset.images.cpu(), dataset.labels.cpu()
    probability, digit = probabilities.max(dim=1)
    wrong = (digit != labels).nonzero().flatten()
    worst = wrong[probability[wrong].argsort(descending=True)][:most].tolist()
    shown = f", the {most} worst of them here" if len(wrong) > most else ""
    figure.suptitle(f"{len(wrong)} of {len(labels):,} {split} images are misread{shown}")
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


def read_picture(path, side=1600):
    """Return a picture, shape (channels, H, W), values up to 1, upright, at most so many pixels a side."""
    try:
        with Image.open(path) as image:
            image.draft(None, (side, side))  # a JPEG can be decoded at a fraction of its size
            # RGBA would cut off what has 16 bits a pixel and more.
            image = image.convert("F" if image.mode.startswith(("I", "F")) else "RGBA")
            image.thumbnail((side, side))
        with suppress(Exception):  # where only the EXIF is damaged, the picture is read without it
            image = ImageOps.exif_transpose(image)
    except Exception as error:  # decoders of damaged pictures raise whatever they like
        reason = getattr(error, "strerror", None) or "it is no picture, or a damaged one"
        if isinstance(error, Image.DecompressionBombError):
            reason = "it is too large: shrink it"
        elif Path(path).suffix.lower() in (".heic", ".heif"):
            reason = "it is HEIC, the format of iPhones: save it as JPEG"
        raise UserError(f"cannot be read ({reason}); name a whole picture, such as a PNG or JPEG.") from error
    pixels = pil_to_tensor(image).nan_to_num()
    if len(pixels) == 1:
        return pixels / pixels.max().clamp(min=1)
    colour, opacity = pixels[:3] / 255, pixels[3:] / 255
    # A drawing on transparent paper may have any colour there, so that its ink is what is opaque.
    return opacity if opacity.mean() < 0.5 else colour * opacity + 1 - opacity


def grow(pixels, radius):
    """Return the largest value in a square of that radius around each pixel, shape (H, W)."""
    for size in ((2 * radius + 1, 1), (1, 2 * radius + 1)):  # rows, then columns: faster than both at once
        pixels = F.max_pool2d(pixels[None].float(), size, stride=1, padding=(size[0] // 2, size[1] // 2))[0]
    return pixels


def connected_parts(mask):
    """Number the connected parts of a mask of shape (H, W) from 1; 0 is what is False."""
    numbers = torch.arange(1, mask.numel() + 1).view(mask.shape) * mask
    while True:
        spread = (grow(numbers, 1) * mask).long()
        spread = F.pad(spread.flatten(), (1, 0))[spread]  # on to the number of that pixel: fewer rounds
        if spread.equal(numbers):
            return spread.unique(return_inverse=True)[1]
        numbers = spread


def rate(image, part, fills):
    """Rate from 0 to 1 how much a part, darker than the rest, looks like strokes on paper, which it fills or not."""
    y, x = part.nonzero().float().T
    share = (y.max() - y.min()) * (x.max() - x.min()) / part.numel()
    if fills and share < 0.9:
        return 0
    # Around ink, in light and in shadow, all is lighter by the same share; around a piece of table it is not.
    ink = -grow(-torch.where(part, image, 9), 6)
    contrast = ((image - ink) / image.clamp(min=0.4))[grow(part, 4) > grow(part, 2)]
    spread = (contrast - contrast.mean()).square().mean().sqrt()
    clear = (1 - 2 * spread / contrast.mean().clamp(min=1e-6)).clamp(min=0)
    # Area by spread: 1 to 3.5 for most digits, which are thin, 4.5 for a full triangle, 6 for a full square.
    fullness = len(y) / (y.var(correction=0) + x.var(correction=0) + 1)
    rating = clear**2 * (3.4 / fullness).clamp(max=1) ** 12
    border = torch.cat([part[0], part[-1], part[1:-1, 0], part[1:-1, -1]]).float().mean()
    if border > 0:  # a digit cut out tightly fills the picture, and covers less of its border than a table
        rating = rating * share**3 * (border < 0.45)
    return rating.item() if rating > 0.003 else 0  # less is no digit


def find_strokes(image, fills):
    """Return the best part's score, each pixel's depth of ink and part number, (H, W), each part's mass and rating."""
    # The paper: a grey-scale closing, which keeps the edges of shadows and sheets, but no strokes, unless too thick.
    paper = image.max() if fills else -grow(-grow(image, 24), 24)
    depth = (paper - image) / paper.clamp(min=0.4)
    parts = connected_parts(depth > 0.4 * depth.max())
    mass = torch.bincount(parts.flatten(), (depth * (parts > 0)).flatten())
    ratings = torch.zeros(len(mass))
    grain = (image[2:] - image[:-2]).abs().median().nan_to_num().clamp(min=0.006)
    if (paper - image).max() > 20 * grain:
        for number in mass.topk(min(20, len(mass))).indices:
            ratings[number] = rate(image, parts == number, fills)
    return (mass * ratings).max(), depth, parts, mass, ratings


def find_digit(picture, side=160):
    """Return the digit of a picture (channels, H, W), cut out, ink 1 on paper 0; and whether there are more."""
    scale = side / max(picture.shape[1:])
    small = resize(picture, [math.ceil(length * scale) for length in picture.shape[1:]])
    channel = small[small.flatten(1).std(dim=1, correction=0).argmax()]  # red ink shows in blue light
    channel = F.avg_pool2d(channel[None], 3, stride=1, padding=1, count_include_pad=False)[0]
    tries = []
    for fills in (False, True):  # where hardly anything is found, it may be a digit cut out tightly
        tries += [find_strokes(image, fills) for image in (channel, 1 - channel)]  # dark ink, light ink
        score, depth, parts, mass, ratings = max(tries, key=lambda strokes: strokes[0])
        if score > 1:
            break
    if score < 0.01:  # a speck
        raise UserError("is empty; there must be a digit darker or lighter than its paper.")
    first = (mass * ratings).argmax()
    left, top, right, bottom = masks_to_boxes((parts == first)[None])[0].int().tolist()
    reach = int(0.3 * max(bottom - top, right - left)) + 1
    near = parts[max(0, top - reach) : bottom + reach, max(0, left - reach) : right + reach]
    at_edge = min(top, left) == 0 or bottom == len(parts) - 1 or right == len(parts[0]) - 1  # cut out: all is ink
    joined = near[((mass > 0.04 * mass[first]) & ((ratings > 0.01) | at_edge))[near]]
    digit = torch.isin(parts, joined) | (parts == first)
    several = ((mass > 0.3 * mass[first]) & (ratings > 0.1))[parts[~digit]].any().item()
    left, top, right, bottom = masks_to_boxes(digit[None])[0].int().tolist()
    if max(bottom - top, right - left) < side / 4 and scale < 1:  # small: look closer
        top, left = (max(0, int((start - side // 10) / scale)) for start in (top, left))
        bottom, right = (int((end + side // 10) / scale) for end in (bottom, right))
        return find_digit(picture[:, top:bottom, left:right])[0], several
    ink = ((depth / depth[digit].quantile(0.8) - 0.12) / 0.88).clamp(0, 1) * grow(digit, 2)
    left, top, right, bottom = masks_to_boxes(ink[None] > 0.05)[0].int().tolist()
    return ink[top : bottom + 1, left : right + 1], several


def prepare(picture):
    """Bring a picture (channels, H, W) into MNIST's own form (1, 28, 28), ink 1 on paper 0; see find_digit.

    The digit is scaled, its aspect kept, to fit a box of 20 x 20, and its centre of mass placed in the
    centre, as in LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998, III-A.
    """
    ink, several = find_digit(picture)
    height, width = (max(1, round(20 * length / max(ink.shape))) for length in ink.shape)
    ink = resize(ink[None], [height, width])[0]
    centre_y = (ink.sum(dim=1) * (torch.arange(height) + 0.5)).sum() / ink.sum()
    centre_x = (ink.sum(dim=0) * (torch.arange(width) + 0.5)).sum() / ink.sum()
    top = min(max(round(14 - centre_y.item()), 0), 28 - height)
    left = min(max(round(14 - centre_x.item()), 0), 28 - width)
    return F.pad(ink[None] / ink.max(), (left, 28 - width - left, top, 28 - height - top)), several


@torch.inference_mode()
def predict(paths, output_dir):
    """Print what digit each picture shows, and draw how it was read; return 1 if one can't be read, else 0."""
    model, status = load_model(output_dir / "mnist_cnn.pt"), 0
    rows = math.ceil(min(len(paths), 100) / 3)
    figure = Figure(figsize=(12, 1.8 * rows))
    figure.subplots_adjust(hspace=0.6)
    for path in paths:
        try:
            picture = read_picture(path)
            image, several = prepare(picture)
        except UserError as error:
            print(f"{path} {error}", file=sys.stderr)
            status = 1
            continue
        probabilities = model(image[None]).softmax(dim=1)[0]
        (first, second), (digit, other) = (both.tolist() for both in probabilities.topk(2))
        second_choice = f", or {other} ({second:.1%})" if second > 0.01 else ""
        hint = " - more than one digit?" if several else " - unsure: see predictions.png" if first < 0.5 else ""
        print(f"{path}: {digit} ({first:.1%}){second_choice}{hint}", flush=True)
        if len(figure.axes) < 300:
            draw_reading(figure, rows, Path(path).name, picture, image, probabilities)
    if figure.axes:
        with whole_file(output_dir / "predictions.png") as file:
            figure.savefig(file, dpi=150, bbox_inches="tight")
    return status


def draw_reading(figure, rows, name, picture, image, probabilities):
    """Add to a figure, three a row, a picture, what the network saw of it, and the probabilities."""
    left, middle, right = (figure.add_subplot(rows, 9, len(figure.axes) + 1) for _ in range(3))
    step = math.ceil(max(picture.shape) / 150)
    left.imshow(picture[:, ::step, ::step].movedim(0, -1).clamp(0, 1).numpy(), cmap="gray")
    left.set_axis_off()
    middle.imshow(image[0].numpy(), cmap="gray_r")
    middle.set_title(name, fontsize=8)
    middle.set_axis_off()
    right.bar(range(10), probabilities.numpy(), tick_label=range(10))
    right.set(ylim=(0, 1), yticks=[])
    right.tick_params(labelsize=7)


def between(kind, least, most):
    """Return a function that turns a text into a number, int or float, from least to most."""

    def number(text):
        if least <= kind(text) <= most:
            return kind(text)
        raise argparse.ArgumentTypeError(f"must be from {least} to {most}, not {text}")

    return number


def parse_args(argv=None):
    """Return the command line's flags, checked; a wrong one ends the program with exit status 2."""
    parser = argparse.ArgumentParser(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.description = "Train a small CNN on MNIST and test it, or read your own digits with it."
    for flag, default, kind, text in (
        ("--epochs", EPOCHS, between(int, 1, 10**6), "passes over the training images"),
        ("--batch-size", BATCH_SIZE, between(int, 1, 60_000), "images in one step"),
        ("--lr", LR, between(float, 1e-38, 1e38), "learning rate at the start"),
        ("--seed", SEED, between(int, 0, 2**64 - 1), "start of the random numbers"),
        ("--log-interval", LOG_INTERVAL, between(int, 1, 10**6), "batches between logged losses"),
        ("--data-dir", Path(__file__).parent / DATA_DIR, Path, "folder of MNIST"),
        ("--output-dir", Path(__file__).parent / OUTPUT_DIR, Path, "folder of the weights and pictures"),
    ):
        # str: argparse checks a default that is a text, and so an edited constant, like a flag.
        parser.add_argument(flag, default=str(default), type=kind, help=text)
    gpus = ["cuda"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    devices = ["cpu"] + gpus * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    parser.add_argument("--device", default=DEVICE, choices=devices, help="where the network is trained")
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--validate", action=switch, default=VALIDATE, help="test on held-out training images")
    parser.add_argument("--show", action=switch, default=SHOW, help="open the plots in a window")
    parser.add_argument("--predict", nargs="+", metavar="IMAGE", help="read these pictures instead")
    return parser.parse_args(argv)


class UserError(Exception):
    """A fault that its user can mend; the message says how."""


def load_mnist(data_dir):
    """Return MNIST's training and test set; unpack the archives in data_dir/MNIST/raw, or download them."""
    raw = Path(data_dir, "MNIST", "raw")
    raw.mkdir(parents=True, exist_ok=True)
    for name, md5 in MNIST.resources:
        archive, unpacked = raw / name, raw / name.removesuffix(".gz")
        if check_integrity(archive, md5):  # torchvision checks its archives, but not what it reads
            content = gzip.decompress(archive.read_bytes())
            if not unpacked.exists() or unpacked.read_bytes() != content:
                with whole_file(unpacked) as file:
                    file.write(content)
    try:
        return MNIST(data_dir, train=True, download=True), MNIST(data_dir, train=False)
    except (OSError, RuntimeError, ValueError, TypeError, AssertionError, KeyError) as error:
        bad = ", ".join(name for name, md5 in MNIST.resources if not check_integrity(raw / name, md5))
        raise UserError(f"No MNIST ({' '.join(str(error).split())}): put the official {bad} in {raw}.") from error


def load_model(path):
    """Return the network with the weights that a run saved; raise UserError where they can't be used."""
    if not path.exists():
        raise UserError(f"There are no weights in {path} yet: train first, without --predict.")
    content = io.BytesIO(path.read_bytes())
    model = CNN()
    try:
        # map_location: the run may have had a GPU that this machine lacks.
        model.load_state_dict(torch.load(content, map_location="cpu", weights_only=True))
    except Exception as error:  # a damaged file makes torch raise whatever it likes
        raise UserError(f"{path} is damaged or holds another network's weights: train again.") from error
    if not all(weights.isfinite().all() for weights in model.state_dict().values()):
        raise UserError(f"{path} holds weights that are not finite: train again.")
    return model.eval()


@contextmanager
def whole_file(path):
    """Open a file for writing bytes that appears whole or not at all, whatever stops the program."""
    content = io.BytesIO()  # first, because torch.save does not say why it could not write
    yield content
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            part = Path(folder, path.name)
            part.write_bytes(content.getvalue())
            part.replace(path)
    except OSError as error:
        raise UserError(f"Cannot write {path} ({error.strerror}): make room, or choose another folder.") from error


def prepare_output_dir(output_dir):
    """Make the folder, and find out now, not after the training, whether results can be written."""
    output_dir.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryDirectory(dir=output_dir).cleanup()
    for name in ("mnist_cnn.pt", "loss_curves.png", "mistakes.png"):
        if (output_dir / name).is_dir():
            raise UserError(f"{output_dir / name} is a folder: move it, or choose another --output-dir.")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # a picture's name may hold what cannot be printed
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end quietly where nobody reads on, as after "| head"
    sys.exit(main())
