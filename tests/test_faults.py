"""What goes wrong ends in one sentence, leaves earlier results as they are, and no half-written file behind."""

import os
import shutil
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import matplotlib
import pytest
import torch
from torchvision.datasets import MNIST, FashionMNIST

import mnist_cnn

from .conftest import DATA, call, refusal, start_program

ARCHIVES = [name for name, _ in MNIST.resources]
UNPACKED = [name.removesuffix(".gz") for name in ARCHIVES]
WRONG_FLAGS = f"""--epochs 0,--epochs -3,--epochs 1.5,--batch-size 0,--batch-size 60001,--lr 0,--lr -1e-3,--lr nan,
--lr inf,--lr fast,--seed -1,--seed {2**64},--seed x,--log-interval 0,--device quantum,--device cuda:99,--device meta,
--device ,--predict,--epoch 3,--unknown 1,--draw --predict a.png"""


@pytest.mark.parametrize("wrong", WRONG_FLAGS.replace("\n", "").split(","))
def test_wrong_flags(wrong, capsys, monkeypatch):
    monkeypatch.setattr(mnist_cnn, "load_mnist", lambda data_dir: pytest.fail("data was read"))
    assert wrong.split(" ")[0] in refusal(capsys, *wrong.split(" "), status=2)[-1]


@pytest.fixture
def raw(tmp_path):
    """The folder of the four archives, not unpacked yet, in a data folder."""
    return shutil.copytree(DATA / "MNIST" / "raw", tmp_path / "data" / "MNIST" / "raw", ignore=lambda *_: UNPACKED)


@pytest.mark.parametrize("flag", ["--data-dir", "--output-dir"])
@pytest.mark.parametrize("where", ["file", "file/below", "x" * 300, "closed"])
def test_folder_that_cannot_be(flag, where, tmp_path, capsys):
    if where == "closed" and (os.name == "nt" or os.geteuid() == 0):
        pytest.skip("no folder is closed to this user")
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "closed").mkdir(mode=0o500)
    (said,) = refusal(capsys, "--output-dir", tmp_path / "out", flag, tmp_path / where)
    assert str(tmp_path / where) in said


def test_the_shell_sees_one_line_and_the_status(trained, tmp_path, capsys):
    """Also where there is no display, and where matplotlib was told to use a back end that opens no window."""
    runs = {start_program("--output-dir", tmp_path, "--predict", "a.png"): "train first"}
    here = {name: value for name, value in os.environ.items() if "DISPLAY" not in name and name != "MPLBACKEND"}
    if sys.platform == "linux":  # elsewhere there is always a display
        runs[start_program("--output-dir", trained[0], "--draw", env=here)] = "window"
    for process, words in runs.items():
        out, err = process.communicate()
        assert (process.returncode, out, err.count("\n")) == (1, "", 1) and words in err
    matplotlib.use("agg")
    assert "window" in "".join(refusal(capsys, "--output-dir", trained[0], "--draw"))


@pytest.mark.parametrize("index, kept, added", [(0, 0, 47040016), (1, 0.5, 0), (2, 0, 0)])
def test_damaged_data_is_unpacked_afresh(index, kept, added, mnist, raw):
    """Zeros instead of the content; half a file, as a killed run leaves it; an empty one. Two runs start at once."""
    good = (DATA / "MNIST" / "raw" / UNPACKED[index]).read_bytes()
    (raw / UNPACKED[index]).write_bytes(good[: int(kept * len(good))] + bytes(added))
    with ThreadPoolExecutor() as pool:
        runs = list(pool.map(mnist_cnn.load_mnist, [raw.parent.parent] * 2))
    assert all(a.data.equal(b.data) and a.targets.equal(b.targets) for run in runs for a, b in zip(run, mnist))
    assert (raw / UNPACKED[index]).read_bytes() == good
    assert sorted(os.listdir(raw)) == sorted(ARCHIVES + UNPACKED)


@pytest.mark.parametrize("content", [None, b"", b"<html>404</html>"])
def test_missing_or_damaged_data_and_no_network(content, raw, capsys, tmp_path, monkeypatch):
    (raw / ARCHIVES[2]).unlink()
    if content is not None:
        (raw / ARCHIVES[2]).write_bytes(content)
    for dataset in (MNIST, FashionMNIST):
        monkeypatch.setattr(dataset, "mirrors", ["http://127.0.0.1:9/"])  # this address refuses
        monkeypatch.setattr(mnist_cnn, "MNIST", dataset)
        (said,) = refusal(capsys, "--data-dir", tmp_path / "data", "--output-dir", tmp_path)
        assert str(tmp_path / "data" / dataset.__name__ / "raw") in said and all(name in said for name in ARCHIVES)


@pytest.fixture
def earlier(tmp_path):
    """A folder with the weights of an earlier run, which must be left as it is."""
    weights = tmp_path / "mnist_cnn.pt"
    weights.write_bytes(b"earlier")
    yield tmp_path
    assert os.listdir(tmp_path) == ["mnist_cnn.pt"] and weights.read_bytes() == b"earlier"


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
def test_interrupt(earlier):
    # A job in a shell's background ignores SIGINT, and so would what it starts.
    heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = start_program("--output-dir", earlier, **heed)
    while "batch" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130 and "batch 600" not in out  # at once, and not at the end of the epoch
    assert err.count("\n") == 1 and "Traceback" not in err


@pytest.mark.parametrize("name, function, error, words", [
    ("train", lambda *arguments: torch.tensor([2.0, float("nan")]), SystemExit, "not finite"),
    ("evaluate", lambda *arguments: (float("inf"), 5, torch.zeros(20, 10)), SystemExit, "not finite"),
    ("CNN", lambda: torch.nn.Linear(5, 10), RuntimeError, "shape"),  # a sentence would hide where an edit fails
    ("train", lambda *arguments: open("my_notes.txt"), FileNotFoundError, "my_notes.txt"),
])  # fmt: skip
def test_failure_in_the_training(name, function, error, words, small_mnist, earlier, monkeypatch):
    monkeypatch.setattr(mnist_cnn, name, function)
    with pytest.raises(error, match=words):
        call("--output-dir", earlier)
    with pytest.raises(TypeError):  # and a failure while a file is written
        mnist_cnn.save(earlier / "mnist_cnn.pt", lambda file: file.write(b"half") + "")


TRAP = b"cbuiltins\nexec\n(S'import mnist_cnn; mnist_cnn.trapped = True'\ntR."  # runs code where it is unpickled


def test_weights_that_cannot_be_used(tmp_path, capsys):
    weights, good = tmp_path / "mnist_cnn.pt", mnist_cnn.CNN().state_dict()
    torch.save(good, weights)
    half = weights.read_bytes()[: weights.stat().st_size // 2]
    larger = {name: torch.zeros(2, *values.shape) for name, values in good.items()}
    others = [(other, "") for other in (b"", b"something else", half, TRAP, 7, [1, 2], mnist_cnn.CNN())]
    for held, words in [*others, (larger, "size mismatch"), ({}, "Missing key")]:  # torch says what differs
        weights.write_bytes(held) if isinstance(held, bytes) else torch.save(held, weights)
        (line,) = refusal(capsys, "--output-dir", tmp_path, "--predict", "a.png")
        assert str(weights) in line and "train first" in line and words in line
    assert not hasattr(mnist_cnn, "trapped")
