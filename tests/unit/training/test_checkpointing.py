import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch

from kiwi.errors import CheckpointError
from kiwi.training.checkpointing import (
    NEEDED,
    AtomicCheckpointIO,
    newest,
    newest_to_resume,
    remove_halves,
    require_checkpoint,
)

STATE = dict.fromkeys(NEEDED, 0)

WRITE = """
import sys, torch
from kiwi.training.checkpointing import NEEDED, AtomicCheckpointIO
state = dict.fromkeys(NEEDED, 0) | {"x": torch.ones(int(sys.argv[2]), 1024)}
print("ready", flush=True)
while True:
    AtomicCheckpointIO().save_checkpoint(state, sys.argv[1])
    print("saved", flush=True)
"""


@pytest.fixture
def io():
    return AtomicCheckpointIO()


def test_a_kill_in_the_middle_of_writing_leaves_the_last_good_one_whole(io, tmp_path):
    file = tmp_path / "last.ckpt"
    io.save_checkpoint(STATE | {"x": torch.zeros(1)}, file)
    process = subprocess.Popen([sys.executable, "-c", WRITE, str(file), "20000"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 60
    while not (halves := list(tmp_path.glob(".*.ckpt"))) or halves[0].stat().st_size < 1_000_000:
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = io.load_checkpoint(file)["x"]
    assert kept.shape in ((1,), (20000, 1024))
    assert kept.eq(kept.ndim - 1).all()
    assert list(tmp_path.glob(".*.ckpt"))
    assert newest(tmp_path) == file
    remove_halves(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_full_disk_is_told_and_the_last_good_one_stays(tmp_path):
    """A limit on the size of files fails a write as a full disk does."""
    good = tmp_path / "step000001.ckpt"
    code = (
        "import resource, signal, torch\n"
        "from pathlib import Path\n"
        "from kiwi.errors import TrainingError\n"
        "from kiwi.training.checkpointing import AtomicCheckpointIO\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "io = AtomicCheckpointIO()\n"
        f"io.save_checkpoint({{'x': torch.zeros(4)}}, {str(good)!r})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        f"    io.save_checkpoint({{'x': torch.zeros(100_000)}}, {str(tmp_path / 'step000002.ckpt')!r})\n"
        "except TrainingError as problem:\n"
        "    print(problem)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "step000002.ckpt could not be written" in told
    assert "too large" in told
    assert f"last good checkpoint: {good}" in told
    assert [p.name for p in tmp_path.iterdir()] == [good.name]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000


def test_the_newest_whole_checkpoint_is_found(io, tmp_path):
    assert newest(tmp_path) is None
    for age, name in ((3, "step000001.ckpt"), (2, "step000002.ckpt")):
        io.save_checkpoint(STATE | {"x": torch.zeros(1)}, tmp_path / name)
        os.utime(tmp_path / name, (time.time() - 60 * age,) * 2)
    (tmp_path / ".step000003.abc.ckpt").write_bytes(b"half")
    (tmp_path / "step000003.ckpt").write_bytes(b"half")
    (tmp_path / "last.ckpt").symlink_to("step000001.ckpt.gone")
    assert newest(tmp_path) == tmp_path / "step000002.ckpt"
    (tmp_path / "last.ckpt").unlink()
    (tmp_path / "last.ckpt").symlink_to("step000002.ckpt")
    assert newest(tmp_path) == tmp_path / "last.ckpt"


def test_a_damaged_or_missing_checkpoint_is_refused_and_the_newest_whole_one_named(io, tmp_path):
    io.save_checkpoint(STATE | {"x": torch.zeros(1)}, tmp_path / "step000001.ckpt")
    (tmp_path / "last.ckpt").write_bytes((tmp_path / "step000001.ckpt").read_bytes()[:-30])
    for name, told in (("last.ckpt", "damaged"), ("gone.ckpt", "there is no checkpoint")):
        with pytest.raises(CheckpointError, match=rf"{told}.*take .*step000001\.ckpt"):
            require_checkpoint(tmp_path / name)


class Payload:
    def __reduce__(self):
        return (print, ("executed",))


def test_code_in_a_checkpoint_is_never_executed(io, tmp_path, capsys):
    torch.save({"x": Payload()}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="more than tensors"):
        io.load_checkpoint(tmp_path / "x.ckpt", weights_only=False)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [{"x": torch.zeros(1)}, [torch.zeros(1)]])
def test_a_torch_file_that_is_no_checkpoint_is_refused(io, tmp_path, content):
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="is no checkpoint of a run"):
        io.load_checkpoint(tmp_path / "x.ckpt")


def damage(path, how):
    """The beginning (names and structure), the middle (a tensor), or the end (the table of contents) of a file."""
    data = bytearray(path.read_bytes())
    at = {"beginning": 200, "middle": len(data) // 2, "end": len(data) - 300}.get(how)
    if at is None:
        del data[len(data) // 2 :]
    else:
        data[at : at + 100] = bytes(byte ^ 0xFF for byte in data[at : at + 100])
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["beginning", "middle", "end", "cut"])
def test_a_damaged_checkpoint_is_passed_over_aloud_and_refused_when_it_is_named(io, tmp_path, caplog, how):
    for age, name in ((3, "step000001.ckpt"), (2, "step000002.ckpt"), (1, "last.ckpt")):
        io.save_checkpoint(STATE | {"x": torch.rand(100_000)}, tmp_path / name)
        os.utime(tmp_path / name, (time.time() - 60 * age,) * 2)
    assert newest_to_resume(tmp_path) == tmp_path / "last.ckpt"
    assert not caplog.records
    damage(tmp_path / "last.ckpt", how)
    assert newest_to_resume(tmp_path) == tmp_path / "step000002.ckpt"
    damage(tmp_path / "step000002.ckpt", how)
    caplog.clear()
    assert newest_to_resume(tmp_path) == tmp_path / "step000001.ckpt"
    (record,) = caplog.records
    assert {"last.ckpt", "step000002.ckpt"} <= set(record.getMessage().replace(",", "").split())
    for refuse in (io.load_checkpoint, require_checkpoint):
        with pytest.raises(CheckpointError, match=r"last\.ckpt is damaged.*take .*step000001\.ckpt"):
            refuse(tmp_path / "last.ckpt")
    damage(tmp_path / "step000001.ckpt", how)
    with pytest.raises(CheckpointError, match=r"can be read.*(step00000[12]\.ckpt.*){2}all damaged"):
        newest_to_resume(tmp_path)
