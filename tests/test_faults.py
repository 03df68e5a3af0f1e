"""What goes wrong ends in one sentence, leaves earlier results as they are, and no half-written file behind."""

import io
import os
import re
import runpy
import shutil
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import pytest
import torch
from matplotlib import pyplot
from torchvision.datasets import MNIST, FashionMNIST
from torchvision.transforms.functional import to_pil_image

import mnist_cnn

from .conftest import FLAGS, ROOT, call, start_program
from .photographs import drawn

ARCHIVES = [name for name, _ in MNIST.resources]
UNPACKED = [name.removesuffix(".gz") for name in ARCHIVES]
WRONG_FLAGS = f"""--epochs 0,--epochs -3,--epochs 1.5,--batch-size 0,--batch-size 60001,--lr 0,--lr -1e-3,--lr nan,
--lr inf,--lr fast,--seed -1,--seed {2**64},--seed x,--log-interval 0,--device quantum,--device cuda:99,--device meta,
--device ,--predict,--epoch 3,--unknown 1,--draw --predict a.png"""
TRAP = b"cbuiltins\nexec\n(S'import mnist_cnn; mnist_cnn.trapped = True'\ntR."  # runs code where it is unpickled

@pytest.mark.parametrize("wrong", WRONG_FLAGS.replace("\n", "").split(","))
def test_wrong_flags(wrong, capsys):
    status, out, lines = call(capsys, *wrong.split(" "))
    assert (status, out) == (2, "") and wrong.split(" ")[0] in lines[-1]

@pytest.mark.parametrize("flag", ["--data-dir", "--output-dir"])
@pytest.mark.parametrize("where", ["file", "file/below", "x" * 300])
def test_folder_that_cannot_be(flag, where, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    status, out, (line,) = call(capsys, "--output-dir", tmp_path / "out", flag, tmp_path / where)
    assert (status, out) == (1, "") and str(tmp_path / where) in line

def test_closed_folder_is_found_before_the_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Path, "touch", lambda path: (path / "no").stat())  # to root, no folder is closed
    status, out, (line,) = call(capsys, "--output-dir", tmp_path)
    assert (status, out) == (1, "") and str(tmp_path) in line

@pytest.fixture
def raw(tmp_path):
    """The folder of the four archives, not unpacked, in a data folder."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    return shutil.copytree(ROOT / "data" / "MNIST" / "raw", raw, ignore=lambda *_: UNPACKED)

def test_data_folder_is_only_read(mnist, raw):
    """Zeros beside the archives, half a file as a killed run leaves it, and empty ones; two runs start at once."""
    for name, content in zip(UNPACKED, (bytes(47040016), b"\0\0\x08", b"", b"")):
        (raw / name).write_bytes(content)
    raw.chmod(0o500)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in raw.iterdir()}
    with ThreadPoolExecutor() as pool:
        runs = list(pool.map(mnist_cnn.load_mnist, [raw.parent.parent] * 2))
    assert all(a.data.equal(b.data) and a.targets.equal(b.targets) for run in runs for a, b in zip(run, mnist))
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in raw.iterdir()}
    raw.chmod(0o700)  # so that it can be removed

@pytest.mark.parametrize("content", [None, b"", b"<html>404</html>"])
def test_missing_or_damaged_data_and_no_network(content, raw, capsys, tmp_path, monkeypatch):
    (raw / ARCHIVES[2]).unlink() if content is None else (raw / ARCHIVES[2]).write_bytes(content)
    for dataset in (MNIST, FashionMNIST):
        monkeypatch.setattr(dataset, "mirrors", ["http://127.0.0.1:9/"])  # this address refuses
        monkeypatch.setattr(mnist_cnn, "MNIST", dataset)
        status, _, (line,) = call(capsys, "--data-dir", tmp_path / "data", "--output-dir", tmp_path)
        assert status == 1 and str(tmp_path / "data" / dataset.__name__ / "raw") in line
        assert all(name in line for name in ARCHIVES)

@pytest.fixture
def earlier(tmp_path):
    """A folder with the weights of an earlier run, which must be left as they are, and alone but for pictures."""
    weights = tmp_path / "mnist_cnn.pt"
    torch.save(mnist_cnn.CNN().state_dict(), weights)
    content = weights.read_bytes()
    to_pil_image(drawn(7)).save(tmp_path / "7.png")
    yield tmp_path
    assert weights.read_bytes() == content and {path.suffix for path in tmp_path.iterdir()} == {".pt", ".png"}

@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
@pytest.mark.parametrize("status", [130, 1])
def test_stopped_by_ctrl_c_or_a_reader_that_has_enough(status, earlier):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background would ignore it
    with start_program("--output-dir", earlier, "--log-interval", 1) as process:
        while "batch" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT) if status == 130 else process.stdout.close()
        err = process.stderr.read()  # at once, and not at the end of the epoch, which would fill it
    assert process.returncode == status and err.count("mnist_cnn.py: ") == 1 and "Traceback" not in err

def test_names_that_the_output_cannot_show(earlier, monkeypatch):
    monkeypatch.chdir(earlier)
    names = ["七.png", *([os.fsdecode(b"\xff7.png")] if sys.platform == "linux" else [])]
    for name in names:
        shutil.copy("7.png", name)
    monkeypatch.setattr(sys, "argv", [str(ROOT / "mnist_cnn.py"), "--output-dir", ".", "--predict", *names])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
    runpy.run_path(sys.argv[0], run_name="__main__")  # as a user starts it, and five seconds faster
    assert len(re.findall(rb"\.png: \d \(", sys.stdout.buffer.getvalue())) == len(names)
    assert Path("predictions.png").exists()

def test_no_window(earlier, capsys, monkeypatch):
    """A back end without windows, and a toolkit that finds no display; the folder need not be open to writing."""
    for name in ("touch", "mkdir", "write_bytes"):
        monkeypatch.setattr(Path, name, lambda *arguments, **options: pytest.fail("the folder is written to"))
    matplotlib.use("agg")
    for figure in (pyplot.figure, lambda *arguments, **options: 1 / 0):
        monkeypatch.setattr(pyplot, "figure", figure)
        status, out, (line,) = call(capsys, "--output-dir", earlier, "--draw")
        assert (status, out) == (1, "") and "window" in line

def test_full_disk(earlier, capsys, monkeypatch):
    def write_half(path, content):
        os.truncate(path, 0) if path.exists() else path.touch()
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(Path, "write_bytes", write_half)
    status, out, (line,) = call(capsys, "--output-dir", earlier, "--predict", earlier / "7.png")
    assert status == 1 and out.startswith(f"{earlier / '7.png'}: ") and str(earlier / "predictions.png") in line
    assert mnist_cnn.save(earlier / "mnist_cnn.pt", {"weight": torch.zeros(9)}) is False

def test_one_file_that_cannot_be_written(small_mnist, tmp_path, capsys):
    (tmp_path / "loss_curves.png").mkdir()
    status, _, (line,) = call(capsys, "--output-dir", tmp_path)
    assert status == 1 and str(tmp_path / "loss_curves.png") in line
    assert sorted(os.listdir(tmp_path)) == ["loss_curves.png", "mistakes.png", "mnist_cnn.pt"]
    mnist_cnn.load_model(tmp_path / "mnist_cnn.pt")

@pytest.mark.parametrize("name, function, error, words", [
    ("evaluate", lambda *arguments: (float("inf"), 5, torch.zeros(20, 10)), SystemExit, "not finite"),
    ("CNN", lambda: torch.nn.Linear(5, 10), RuntimeError, "shape"),  # a sentence would hide where an edit fails
])  # fmt: skip
def test_failure_in_the_training(name, function, error, words, small_mnist, earlier, monkeypatch):
    monkeypatch.setattr(mnist_cnn, name, function)
    with pytest.raises(error, match=words):
        mnist_cnn.main([*FLAGS, "--output-dir", str(earlier)])

@pytest.mark.parametrize("held, words", [
    ("nothing", "No such file"), (b"", "damaged"), (b"something else", "damaged"), (TRAP, "damaged"),
    ([1, 2], "damaged"), (mnist_cnn.CNN(), "damaged"), ({}, "Missing key"), ({"a": torch.zeros(2)}, "Unexpected key"),
])  # fmt: skip
def test_weights_that_cannot_be_used(held, words, tmp_path, capsys):
    weights = tmp_path / "mnist_cnn.pt"
    if held != "nothing":
        weights.write_bytes(held) if isinstance(held, bytes) else torch.save(held, weights)
    status, out, (line,) = call(capsys, "--output-dir", tmp_path, "--predict", "a.png")
    assert (status, out) == (1, "") and str(weights) in line and "train first" in line and words in line
    assert not hasattr(mnist_cnn, "trapped")
