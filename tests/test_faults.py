"""What goes wrong ends in one sentence, and leaves no half-written file behind."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from matplotlib import pyplot
from torchvision.datasets import MNIST

import mnist_cnn

from .conftest import ROOT

ARCHIVES = [name for name, _ in MNIST.resources]
UNPACKED = [name.removesuffix(".gz") for name in ARCHIVES]


def sentence(capsys, before_training=False):
    """Return what the program said on stderr, which must be one line."""
    out, err = capsys.readouterr()
    assert not (before_training and "epoch" in out)
    assert err.count("\n") == 1 and "Traceback" not in err
    return err


@pytest.fixture
def data_dir(tmp_path):
    """A folder of the four archives, not unpacked yet."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ARCHIVES:
        shutil.copy(ROOT / "data" / "MNIST" / "raw" / name, raw)
    return tmp_path / "data"


@pytest.fixture
def offline(monkeypatch):
    """Let every address be refused, as behind a broken proxy."""
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])


@pytest.mark.parametrize(
    "flags",
    [
        "--epochs 0",
        "--epochs -3",
        "--epochs 1.5",
        "--batch-size 0",
        "--batch-size 60001",
        "--lr 0",
        "--lr -1e-3",
        "--lr nan",
        "--lr inf",
        "--lr fast",
        "--seed -1",
        f"--seed {2**64}",
        "--seed x",
        "--log-interval 0",
        "--device quantum",
        "--device cuda:99",
        "--device meta",
        "--device ",
        "--data-dir ",
        "--output-dir ",
        "--predict",
        "--predict ",
        "--epoch 3",
        "--unknown 1",
    ],
)
def test_wrong_flags(flags, capsys, monkeypatch):
    monkeypatch.setattr(mnist_cnn, "load_mnist", lambda data_dir: pytest.fail("data was read"))
    with pytest.raises(SystemExit) as stop:
        mnist_cnn.main(flags.split(" "))
    assert stop.value.code == 2
    assert flags.split(" ")[0] in sentence(capsys)


def test_show_without_a_display(capsys):
    pyplot.switch_backend("agg")  # what matplotlib falls back to
    with pytest.raises(SystemExit) as stop:
        mnist_cnn.main(["--show"])
    assert stop.value.code == 2
    assert "--show" in sentence(capsys)


def test_show_with_a_display(monkeypatch):
    pyplot.switch_backend("agg")
    monkeypatch.setattr(pyplot.get_current_fig_manager().canvas.__class__, "required_interactive_framework", "tk")
    assert mnist_cnn.can_show()


def test_edited_constants_are_checked_too(capsys, monkeypatch):
    monkeypatch.setattr(mnist_cnn, "EPOCHS", 0)
    with pytest.raises(SystemExit) as stop:
        mnist_cnn.main([])
    assert stop.value.code == 2
    assert "--epochs must be 1 or more" in sentence(capsys)


def cut(good):
    return good[: len(good) // 2]


def empty(good):
    return b""


def other(good):
    return bytes(len(good))


@pytest.mark.parametrize(
    "name, damage",
    [*((name, cut) for name in UNPACKED), (UNPACKED[0], other), (UNPACKED[3], other), (UNPACKED[2], empty)],
)
def test_damaged_data_is_unpacked_afresh(name, damage, mnist):
    file = ROOT / "data" / "MNIST" / "raw" / name
    good = file.read_bytes()
    file.write_bytes(damage(good))
    again = mnist_cnn.load_mnist(ROOT / "data")
    assert file.read_bytes() == good
    assert all(torch.equal(a.data, b.data) and torch.equal(a.targets, b.targets) for a, b in zip(again, mnist))


@pytest.mark.parametrize("name", UNPACKED)
def test_damaged_data_without_its_archive(name, data_dir, capsys, offline):
    file = data_dir / "MNIST" / "raw" / name
    file.with_name(name + ".gz").unlink()
    file.write_bytes(b"something else")
    assert mnist_cnn.main(["--data-dir", str(data_dir), "--output-dir", str(data_dir / "out")]) == 1
    assert str(file) in sentence(capsys)
    assert file.read_bytes() == b"something else"


@pytest.mark.parametrize(
    "name, content", [*zip(ARCHIVES, [None, b"", b"<html>404</html>", None]), (ARCHIVES[0], b"cut")]
)
def test_missing_or_damaged_archive_and_no_network(name, content, data_dir, capsys, offline):
    raw = data_dir / "MNIST" / "raw"
    (raw / name).unlink()
    if content is not None:
        (raw / name).write_bytes(content)
    assert mnist_cnn.main(["--data-dir", str(data_dir), "--output-dir", str(data_dir / "out")]) == 1
    said = sentence(capsys)
    assert f"{name} is missing or damaged in {raw}" in said
    assert all(archive in said for archive in ARCHIVES)
    assert not (raw / name.removesuffix(".gz")).exists()


def test_killed_while_unpacking(data_dir):
    raw = data_dir / "MNIST" / "raw"
    load = [sys.executable, "-c", f"import mnist_cnn; mnist_cnn.load_mnist({str(data_dir)!r})"]
    process = subprocess.Popen(load, cwd=ROOT)
    while not any(path.suffix != ".gz" for path in raw.iterdir()):
        assert process.poll() is None
    process.kill()
    process.wait()
    assert not all((raw / name).exists() for name in UNPACKED)
    (raw / UNPACKED[-1]).write_bytes(b"cut sho")  # as torchvision leaves it when it is killed
    assert [len(split) for split in mnist_cnn.load_mnist(data_dir)] == [60_000, 10_000]


def test_two_first_runs_at_once(data_dir):
    load = [sys.executable, "-c", f"import mnist_cnn; mnist_cnn.load_mnist({str(data_dir)!r})"]
    runs = [subprocess.Popen(load, cwd=ROOT) for _ in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    assert sorted(os.listdir(data_dir / "MNIST" / "raw")) == sorted(ARCHIVES + UNPACKED)


def test_interrupt(tmp_path):
    earlier = tmp_path / "mnist_cnn.pt"
    earlier.write_bytes(b"earlier")
    command = [sys.executable, "mnist_cnn.py", "--output-dir", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        while "batch" not in run.stdout.readline():
            assert run.poll() is None
        run.send_signal(signal.SIGINT)
        out, err = run.communicate()
    assert run.returncode == 130
    assert "batch 600" not in out  # at once, and not at the end of the epoch
    assert err.startswith("Stopped after epoch 0 of 5") and err.count("\n") == 1
    assert os.listdir(tmp_path) == ["mnist_cnn.pt"] and earlier.read_bytes() == b"earlier"


def test_loss_that_is_not_finite(small_mnist, tmp_path, capsys):
    assert mnist_cnn.main(["--lr", "1e38", "--output-dir", str(tmp_path)]) == 1
    said = sentence(capsys)
    assert "no longer finite" in said and "--lr" in said
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("flag", ["--data-dir", "--output-dir"])
@pytest.mark.parametrize("where", ["file", "file/below", "x" * 300, "/dev/null/below"])
def test_folder_that_cannot_be(flag, where, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    flags = {"--data-dir": str(ROOT / "data"), "--output-dir": str(tmp_path / "out"), flag: str(tmp_path / where)}
    assert mnist_cnn.main([part for item in flags.items() for part in item]) == 1
    said = sentence(capsys)
    assert str(tmp_path / where) in said and flag in said
    assert (tmp_path / "file").read_text() == "not a folder"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="no folder is read-only to this user")
@pytest.mark.parametrize("flag", ["--data-dir", "--output-dir"])
def test_read_only_folder(flag, data_dir, tmp_path, capsys):
    folder = {"--data-dir": data_dir / "MNIST" / "raw", "--output-dir": tmp_path / "out"}[flag]
    folder.mkdir(exist_ok=True)
    folder.chmod(0o500)
    assert mnist_cnn.main(["--data-dir", str(data_dir), "--output-dir", str(tmp_path / "out")]) == 1
    assert str(folder) in sentence(capsys)


@pytest.mark.skipif(os.name == "nt", reason="the limit on a file's size that stands for a full disk is POSIX")
@pytest.mark.parametrize("room", [1000, 50_000])
def test_full_disk(room, tmp_path, small_mnist, capsys, monkeypatch):
    import resource

    (tmp_path / "mnist_cnn.pt").write_bytes(b"earlier")
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    if room > 1000:  # the disk fills up after the look at it
        monkeypatch.setattr(mnist_cnn, "prepare_output_dir", lambda folder: None)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, most))
    try:
        status = mnist_cnn.main(["--epochs", "1", "--output-dir", str(tmp_path)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert status == 1
    assert "Cannot write" in sentence(capsys, before_training=room == 1000)
    assert os.listdir(tmp_path) == ["mnist_cnn.pt"]
    assert (tmp_path / "mnist_cnn.pt").read_bytes() == b"earlier"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a file that is always full")
def test_output_that_cannot_be_printed(small_mnist, tmp_path, capsys, monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        status = mnist_cnn.main(["--epochs", "1", "--output-dir", str(tmp_path)])
    assert status == 1
    assert "No space left" in sentence(capsys)
    assert os.listdir(tmp_path) == []


def test_interrupt_while_reading_pictures(tmp_path, capsys, monkeypatch):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(mnist_cnn, "load_model", interrupted)
    assert mnist_cnn.main(["--output-dir", str(tmp_path), "--predict", "a.png"]) == 130
    assert sentence(capsys) == "Stopped.\n"
