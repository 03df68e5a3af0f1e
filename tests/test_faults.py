"""What goes wrong ends in one sentence, and leaves no half-written file behind."""

import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torchvision.datasets import MNIST

import mnist_cnn

from .conftest import DATA, ROOT, flags

ARCHIVES = [name for name, _ in MNIST.resources]
UNPACKED = [name.removesuffix(".gz") for name in ARCHIVES]


def sentence(capsys, before_training=False):
    """Return what the program said on stderr, which must be one line."""
    out, err = capsys.readouterr()
    assert not (before_training and "images:" in out)
    assert err.count("\n") == 1 and "Traceback" not in err
    return err


@pytest.fixture
def data_dir(tmp_path):
    """A folder of the four archives, not unpacked yet."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ARCHIVES:
        shutil.copy(DATA / "MNIST" / "raw" / name, raw)
    return tmp_path / "data"


@pytest.fixture
def offline(monkeypatch):
    """Let every address be refused, as behind a broken proxy."""
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])


WRONG_FLAGS = f"""--epochs 0,--epochs -3,--epochs 1.5,--batch-size 0,--batch-size 60001,--lr 0,--lr -1e-3,--lr nan,
--lr inf,--lr fast,--seed -1,--seed {2**64},--seed x,--log-interval 0,--device quantum,--device cuda:99,--device meta,
--device hpu,--device ,--predict,--epoch 3,--unknown 1"""


@pytest.mark.parametrize("wrong", WRONG_FLAGS.replace("\n", "").split(","))
def test_wrong_flags(wrong, capsys, monkeypatch):
    monkeypatch.setattr(mnist_cnn, "load_mnist", lambda data_dir: pytest.fail("data was read"))
    with pytest.raises(SystemExit) as stop:
        mnist_cnn.main(wrong.split(" "))
    assert stop.value.code == 2
    assert wrong.split(" ")[0] in capsys.readouterr().err.splitlines()[-1]


def test_edited_constants_are_checked_too(capsys, monkeypatch):
    monkeypatch.setattr(mnist_cnn, "EPOCHS", 0)
    with pytest.raises(SystemExit) as stop:
        mnist_cnn.main([])
    assert stop.value.code == 2
    assert "--epochs" in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture(scope="module")
def unpacked_dir(tmp_path_factory):
    """A folder of the archives and of what is unpacked from them."""
    folder = tmp_path_factory.mktemp("unpacked")
    shutil.copytree(DATA, folder, dirs_exist_ok=True)
    mnist_cnn.load_mnist(folder)
    return folder


@pytest.mark.parametrize("name, kept, added", [(0, 0, 47040016), (1, 0.5, 0), (2, 0, 0), (3, 0, 10008)])
def test_damaged_data_is_unpacked_afresh(name, kept, added, mnist, unpacked_dir):
    file = unpacked_dir / "MNIST" / "raw" / UNPACKED[name]
    good = file.read_bytes()
    file.write_bytes(good[: int(kept * len(good))] + bytes(added))
    again = mnist_cnn.load_mnist(unpacked_dir)
    assert file.read_bytes() == good
    assert all(torch.equal(a.data, b.data) and torch.equal(a.targets, b.targets) for a, b in zip(again, mnist))


def run_main(tmp_path, *more):
    """Run the program in this process, with an output folder of its own; return its exit status."""
    return mnist_cnn.main(flags("--output-dir", tmp_path / "out", *more))


@pytest.mark.parametrize(
    "index, archive, unpacked", [(0, None, None), (1, b"", None), (2, b"<html>404</html>", None), (3, None, b"other")]
)
def test_missing_or_damaged_data_and_no_network(index, archive, unpacked, data_dir, capsys, offline, tmp_path):
    raw = data_dir / "MNIST" / "raw"
    (raw / ARCHIVES[index]).unlink()
    for name, content in ((ARCHIVES[index], archive), (UNPACKED[index], unpacked)):
        if content is not None:
            (raw / name).write_bytes(content)
    assert run_main(tmp_path, "--data-dir", data_dir) == 1
    assert f"put the official {ARCHIVES[index]} in {raw}" in sentence(capsys)
    if unpacked:
        assert (raw / UNPACKED[index]).read_bytes() == unpacked


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
    with ThreadPoolExecutor() as pool:
        runs = list(pool.map(mnist_cnn.load_mnist, [data_dir, data_dir]))
    assert [[len(split) for split in run] for run in runs] == [[60_000, 10_000]] * 2
    assert sorted(os.listdir(data_dir / "MNIST" / "raw")) == sorted(ARCHIVES + UNPACKED)


@pytest.fixture
def started(tmp_path):
    """The program, started with an output folder that holds earlier weights, and after its first line."""
    (tmp_path / "mnist_cnn.pt").write_bytes(b"earlier")
    command = [sys.executable, "mnist_cnn.py", *flags("--output-dir", tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A job in a shell's background ignores SIGINT, and so would what it starts.
    heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)} if os.name == "posix" else {}
    with subprocess.Popen(command, cwd=ROOT, **pipes, **heed) as run:
        run.stdout.readline()
        yield run
    assert os.listdir(tmp_path) == ["mnist_cnn.pt"] and (tmp_path / "mnist_cnn.pt").read_bytes() == b"earlier"


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
def test_interrupt(started):
    while "batch" not in started.stdout.readline():
        assert started.poll() is None
    started.send_signal(signal.SIGINT)
    out, err = started.communicate()
    assert started.returncode == 130
    assert "batch 600" not in out  # at once, and not at the end of the epoch
    assert "Stopped" in err and err.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="pipes end in another way there")
def test_nobody_reads_on(started):
    started.stdout.close()
    assert started.stderr.read() == ""
    assert started.wait() != 0


@pytest.mark.parametrize("wrong", ["--lr 1e30", "--lr 1e30 --batch-size 60000"])
def test_loss_that_is_not_finite(wrong, small_mnist, tmp_path, capsys):
    assert run_main(tmp_path, *wrong.split()) == 1
    said = sentence(capsys)
    assert "not finite" in said and "--lr" in said
    assert os.listdir(tmp_path / "out") == []


def test_not_enough_memory(small_mnist, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(mnist_cnn, "train", lambda *arguments: torch.empty(2**55))
    assert run_main(tmp_path) == 1
    said = sentence(capsys)
    assert "not enough memory" in said and "--batch-size" in said


def test_an_edit_that_does_not_fit_shows_its_traceback(small_mnist, tmp_path, monkeypatch):
    monkeypatch.setattr(mnist_cnn, "CNN", lambda: torch.nn.Linear(5, 10))
    with pytest.raises(RuntimeError, match="shape"):
        run_main(tmp_path)


@pytest.mark.parametrize("flag", ["--data-dir", "--output-dir"])
@pytest.mark.parametrize("where", ["file", "file/below", "x" * 300, "/dev/null/below"])
def test_folder_that_cannot_be(flag, where, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    assert run_main(tmp_path, flag, tmp_path / where) == 1
    assert str(tmp_path / where) in sentence(capsys, before_training=True)


@pytest.mark.parametrize("name", ["mnist_cnn.pt", "loss_curves.png", "mistakes.png"])
def test_result_that_cannot_be_replaced(name, tmp_path, capsys):
    (tmp_path / "out" / name).mkdir(parents=True)
    assert run_main(tmp_path) == 1
    assert str(tmp_path / "out" / name) in sentence(capsys, before_training=True)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="no folder is closed to this user")
@pytest.mark.parametrize("mode", [0o500, 0o600, 0o000])
@pytest.mark.parametrize("flag", ["--data-dir", "--output-dir"])
def test_closed_folder(flag, mode, data_dir, tmp_path, capsys):
    folder = {"--data-dir": data_dir / "MNIST" / "raw", "--output-dir": tmp_path / "out"}[flag]
    folder.mkdir(exist_ok=True)
    folder.chmod(mode)
    assert run_main(tmp_path, "--data-dir", data_dir) == 1
    folder.chmod(0o700)
    assert str(folder) in sentence(capsys, before_training=True)


@pytest.mark.skipif(os.name == "nt", reason="the limit on a file's size that stands for a full disk is POSIX")
@pytest.mark.parametrize("room", [1000, 50_000])
def test_full_disk(room, tmp_path, small_mnist, capsys):
    import resource

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mistakes.png").write_bytes(b"earlier")
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, most))
    try:
        status = run_main(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert status == 1
    assert "Cannot write" in sentence(capsys)
    assert os.listdir(tmp_path / "out") == ["mistakes.png"]
    assert (tmp_path / "out" / "mistakes.png").read_bytes() == b"earlier"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a file that is always full")
def test_output_that_cannot_be_printed(small_mnist, tmp_path, capsys, monkeypatch):
    full = open("/dev/full", "w")
    monkeypatch.setattr(sys, "stdout", full)
    assert run_main(tmp_path) == 1
    with pytest.raises(OSError):
        full.close()
    assert "No space left" in sentence(capsys)
    assert os.listdir(tmp_path / "out") == []
