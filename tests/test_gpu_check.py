"""The check of a GPU, rehearsed on a CPU: every part runs, and one that fails leaves the others."""

import json
import pathlib

import pytest
from conftest import lines

import train
from experiments import gpu_check
from lib.errors import UserError


def train_here(out: pathlib.Path, *flags: str) -> list[dict]:
    """As gpu_check.train, in this process, which saves the imports."""
    train.main(["--out", str(out), *flags])
    return lines(out)


def test_update_and_decode():
    update = gpu_check.check_update(True)
    for name in ("plain", "checkpointing"):
        assert update[name]["skipped"] == 0 < update[name]["grad_norm"]
        assert 0 < update[name]["MFU"] and update[name]["planned GB"] > 0
    # Recomputation changes nothing, and bf16 is fp32 but for rounding.
    assert update["plain"]["grad_norm"] == pytest.approx(update["checkpointing"]["grad_norm"])
    assert update["gradient"]["cosine"] > 0.99
    assert set(update["kernels"]) == {"one row", "rows", "shared prefixes"}
    assert gpu_check.check_decode(True)["cuDNN off"]["tokens/s"] > 0


def test_runs_of_train_py(monkeypatch):
    monkeypatch.setattr(gpu_check, "train", train_here)
    tiny = gpu_check.check_tiny(True, "auto")
    assert set(tiny) == {"bfloat16", "float32"}
    one = gpu_check.check_one_gpu(True, "auto")
    assert one["steps"] == 3 and all(count > 0 for count in one["trained tokens"])
    assert one["planned GB"] > 0


def test_the_command(tmp_path, monkeypatch):
    """A part in a process of its own, and one that takes too long."""
    monkeypatch.setitem(gpu_check.LIMITS, "decode", 0.1)
    with pytest.raises(SystemExit) as stop:
        gpu_check.main(["--tiny", "--parts", "rank", "decode", "--out", str(tmp_path)])
    assert stop.value.code == 1
    parts = json.loads((tmp_path / "gpu_rehearsal.json").read_text())["parts"]
    assert "took longer" in parts["decode"]["failed"]
    for name in ("chunks of 64M logits", "chunks of 256M logits"):
        assert parts["rank"][name]["tokens"] > 0
    assert "## rank" in (tmp_path / "gpu_rehearsal.md").read_text()


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(gpu_check.torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU here; --tiny"):
        gpu_check.main([])
    with pytest.raises(UserError, match="--parts"):
        gpu_check.main(["--parts", "everything"])
    assert set(gpu_check.PARTS) == set(gpu_check.LIMITS)
