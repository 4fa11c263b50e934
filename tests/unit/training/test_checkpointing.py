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
    REQUIRED_KEYS,
    AtomicCheckpointIO,
    checkpoint_to_resume,
    newest_checkpoint,
    remove_unfinished,
    require_checkpoint,
)

STATE = dict.fromkeys(REQUIRED_KEYS, 0)

WRITE = """
import sys, torch
from kiwi.training.checkpointing import REQUIRED_KEYS, AtomicCheckpointIO
state = dict.fromkeys(REQUIRED_KEYS, 0) | {"x": torch.ones(int(sys.argv[2]), 1024)}
print("ready", flush=True)
while True:
    AtomicCheckpointIO().save_checkpoint(state, sys.argv[1])
    print("saved", flush=True)
"""


@pytest.fixture
def checkpoint_io():
    return AtomicCheckpointIO()


def test_a_kill_while_writing_does_not_damage_the_last_checkpoint(checkpoint_io, tmp_path):
    file = tmp_path / "last.ckpt"
    checkpoint_io.save_checkpoint(STATE | {"x": torch.zeros(1)}, file)
    process = subprocess.Popen([sys.executable, "-c", WRITE, str(file), "20000"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 60
    while not (unfinished := list(tmp_path.glob(".*.ckpt"))) or unfinished[0].stat().st_size < 1_000_000:
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    process.wait()
    x = checkpoint_io.load_checkpoint(file)["x"]
    assert x.shape in ((1,), (20000, 1024))
    assert x.eq(x.ndim - 1).all()
    assert list(tmp_path.glob(".*.ckpt"))
    assert newest_checkpoint(tmp_path) == file
    remove_unfinished(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_full_disk_is_reported_and_the_last_checkpoint_is_not_changed(tmp_path):
    """A limit on the file size makes a write fail like a full disk."""
    good = tmp_path / "step000001.ckpt"
    code = (
        "import resource, signal, torch\n"
        "from pathlib import Path\n"
        "from kiwi.errors import TrainingError\n"
        "from kiwi.training.checkpointing import AtomicCheckpointIO\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "checkpoint_io = AtomicCheckpointIO()\n"
        f"checkpoint_io.save_checkpoint({{'x': torch.zeros(4)}}, {str(good)!r})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        f"    checkpoint_io.save_checkpoint({{'x': torch.zeros(100_000)}}, {str(tmp_path / 'step000002.ckpt')!r})\n"
        "except TrainingError as error:\n"
        "    print(error)\n"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "step000002.ckpt could not be written" in output
    assert "too large" in output
    assert f"last good checkpoint: {good}" in output
    assert [p.name for p in tmp_path.iterdir()] == [good.name]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000


def test_the_newest_undamaged_checkpoint_is_found(checkpoint_io, tmp_path):
    assert newest_checkpoint(tmp_path) is None
    for age, name in ((3, "step000001.ckpt"), (2, "step000002.ckpt")):
        checkpoint_io.save_checkpoint(STATE | {"x": torch.zeros(1)}, tmp_path / name)
        os.utime(tmp_path / name, (time.time() - 60 * age,) * 2)
    (tmp_path / ".step000003.abc.ckpt").write_bytes(b"half")
    (tmp_path / "step000003.ckpt").write_bytes(b"half")
    (tmp_path / "last.ckpt").symlink_to("step000001.ckpt.gone")
    assert newest_checkpoint(tmp_path) == tmp_path / "step000002.ckpt"
    (tmp_path / "last.ckpt").unlink()
    (tmp_path / "last.ckpt").symlink_to("step000002.ckpt")
    assert newest_checkpoint(tmp_path) == tmp_path / "last.ckpt"


def test_a_damaged_or_missing_checkpoint_is_rejected_and_the_error_names_the_newest_undamaged_one(
    checkpoint_io, tmp_path
):
    checkpoint_io.save_checkpoint(STATE | {"x": torch.zeros(1)}, tmp_path / "step000001.ckpt")
    (tmp_path / "last.ckpt").write_bytes((tmp_path / "step000001.ckpt").read_bytes()[:-30])
    for name, code in (("last.ckpt", "damaged-checkpoint"), ("gone.ckpt", "missing-file")):
        with pytest.raises(CheckpointError, match=r"step000001\.ckpt") as caught:
            require_checkpoint(tmp_path / name)
        assert caught.value.code == code


class Payload:
    def __reduce__(self):
        return (print, ("executed",))


def test_code_in_a_checkpoint_is_never_executed(checkpoint_io, tmp_path, capsys):
    torch.save({"x": Payload()}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, check=lambda error: error.code == "damaged-checkpoint"):
        checkpoint_io.load_checkpoint(tmp_path / "x.ckpt", weights_only=False)
    assert "executed" not in capsys.readouterr().out


def test_an_error_about_a_checkpoint_neither_advises_to_unpickle_nor_names_another_bad_one(checkpoint_io, tmp_path):
    for index, content in enumerate((STATE, {"x": Payload()}, {"y": Payload()}, [torch.zeros(1)])):
        torch.save(content, tmp_path / f"step{index}.ckpt")
        os.utime(tmp_path / f"step{index}.ckpt", (time.time() + index,) * 2)
    for index in (1, 2):
        with pytest.raises(CheckpointError) as caught:
            checkpoint_io.load_checkpoint(tmp_path / f"step{index}.ckpt")
        assert "step0.ckpt" in caught.value.fix
        assert not any(word in str(caught.value) for word in ("weights_only", "torch.", "step3", f"step{3 - index}"))


@pytest.mark.parametrize("content", [{"x": torch.zeros(1)}, [torch.zeros(1)]])
def test_a_torch_file_that_is_not_a_checkpoint_is_rejected(checkpoint_io, tmp_path, content):
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, check=lambda error: error.code == "not-a-checkpoint"):
        checkpoint_io.load_checkpoint(tmp_path / "x.ckpt")


def damage(path, place):
    """Damage the beginning (names and structure), the middle (a tensor) or the end (the index), or truncate it."""
    data = bytearray(path.read_bytes())
    offset = {"beginning": 200, "middle": len(data) // 2, "end": len(data) - 300}.get(place)
    if offset is None:
        del data[len(data) // 2 :]
    else:
        data[offset : offset + 100] = bytes(byte ^ 0xFF for byte in data[offset : offset + 100])
    path.write_bytes(data)


@pytest.mark.parametrize("place", ["beginning", "middle", "end", "cut"])
def test_a_damaged_checkpoint_is_skipped_with_a_warning_and_rejected_and_named(checkpoint_io, tmp_path, caplog, place):
    for age, name in ((3, "step000001.ckpt"), (2, "step000002.ckpt"), (1, "last.ckpt")):
        checkpoint_io.save_checkpoint(STATE | {"x": torch.rand(100_000)}, tmp_path / name)
        os.utime(tmp_path / name, (time.time() - 60 * age,) * 2)
    assert checkpoint_to_resume(tmp_path) == tmp_path / "last.ckpt"
    assert not caplog.records
    damage(tmp_path / "last.ckpt", place)
    assert checkpoint_to_resume(tmp_path) == tmp_path / "step000002.ckpt"
    damage(tmp_path / "step000002.ckpt", place)
    caplog.clear()
    assert checkpoint_to_resume(tmp_path) == tmp_path / "step000001.ckpt"
    (record,) = caplog.records
    assert {"last.ckpt", "step000002.ckpt"} <= set(record.getMessage().replace(",", "").split())
    for load in (checkpoint_io.load_checkpoint, require_checkpoint):
        with pytest.raises(CheckpointError, match=r"last\.ckpt is damaged.*step000001\.ckpt"):
            load(tmp_path / "last.ckpt")
    damage(tmp_path / "step000001.ckpt", place)
    with pytest.raises(CheckpointError, match=r"(step00000[12]\.ckpt.*){2}all damaged"):
        checkpoint_to_resume(tmp_path)
