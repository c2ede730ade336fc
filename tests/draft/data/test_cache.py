"""Cached states: those of the running target, whole or refused, the same bytes however made."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sglang_dspark.cli import run_command
from sglang_dspark.draft.data.cache import main, plan_shards, write_cache
from sglang_dspark.draft.data.cached import Cached, CacheSettings, token_bytes
from sglang_dspark.draft.data.fingerprint import file_sha256, model_fingerprint
from sglang_dspark.draft.data.samples import Sample, training_samples
from sglang_dspark.draft.data.states import Online, check_vocabulary, usable
from sglang_dspark.draft.model.target import Target
from tests.draft.tiny_target import make_samples, make_target

LAYERS = (-1, 0, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = make_target(tmp_path_factory.mktemp("cache") / "target")
    make_samples(target, target.parent / "samples.jsonl")
    return target


@pytest.fixture(scope="module")
def cache(folder: Path) -> Path:
    main(arguments(folder, folder.parent / "cache"))
    return folder.parent / "cache"


def arguments(folder: Path, out: Path, **changes: str) -> list[str]:
    flags = {"--shard-tokens": "200", "--batch": "4", "--max-tokens": "128"} | changes
    flat = [text for pair in flags.items() for text in pair]
    layers = ["--layers", *map(str, LAYERS)]
    return [
        str(folder.parent / "samples.jsonl"), "--target", str(folder), "--out", str(out),
        *layers, *flat,
    ]  # fmt: skip


def pieces(folder: Path) -> tuple[Target, list[Sample], CacheSettings]:
    """What ``write_cache`` takes, for the settings of ``arguments``."""
    target = Target.from_pretrained(folder, capture=LAYERS, dtype=torch.float32)
    path = folder.parent / "samples.jsonl"
    samples = usable(training_samples(path), max_tokens=128, where=path)
    settings = CacheSettings(
        format="dspark-states-1",
        target=model_fingerprint(folder),
        samples=file_sha256(path),
        layers=LAYERS,
        hidden_size=64,
        dtype="float32",
        max_tokens=128,
        shard_tokens=200,
        batch=4,
    )
    return target, samples, settings


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def write(folder: Path, out: Path, **changes: Any) -> bool:
    target, samples, settings = pieces(folder)
    given: dict[str, Any] = {"announce": lambda _: None, "quiet": True} | changes
    return write_cache(out, target=target, samples=samples, settings=settings, **given)


@pytest.mark.law
def test_cached_and_online_batches_agree(folder: Path, cache: Path) -> None:
    target, samples, _ = pieces(folder)
    online = Online(target, samples, digest=file_sha256(folder.parent / "samples.jsonl"))
    cached = Cached(cache, target=model_fingerprint(folder), layers=LAYERS)
    assert list(cached.spans) == list(online.spans)
    assert cached.digest == online.digest
    assert len(cached.index.shards) > 2
    numbers = [len(samples) - 1, 0, 7]
    left, right = cached.batch(numbers), online.batch(numbers)
    for row, number in enumerate(numbers):
        end = cached.spans[number].tokens
        assert left.tokens_BS[row, :end].tolist() == list(samples[number].tokens)
        for name in ("tokens_BS", "captured_BSC", "hidden_BSD"):
            pair = [getattr(batch, name)[row, :end] for batch in (left, right)]
            assert torch.allclose(*pair, atol=1e-5), name


@pytest.mark.law
def test_the_announced_size_is_the_size_on_disk(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    write(folder, tmp_path / "c", announce=said.append)
    _, samples, settings = pieces(folder)
    predicted = sum(len(sample.tokens) for sample in samples) * token_bytes(settings)
    written = sum(path.stat().st_size for path in (tmp_path / "c").glob("*.safetensors"))
    assert predicted <= written <= 1.02 * predicted
    assert f"{predicted / 1e9:.3f} GB in" in said[0]
    assert token_bytes(settings) == 4 * 64 * 4 + 4


@pytest.mark.example
def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"the disk is too small: .* train online"):
        write(folder, tmp_path / "c", free_bytes=100_000)
    assert list((tmp_path / "c").iterdir()) == []


@pytest.mark.law
def test_a_cache_killed_anywhere_is_completed_to_the_same_bytes(
    folder: Path, cache: Path, tmp_path: Path
) -> None:
    whole = contents(cache)
    shards = sum(name.endswith(".safetensors") for name in whole)
    out = tmp_path / "c"
    for finished in range(shards):
        out.mkdir(exist_ok=True)
        for path in out.iterdir():
            path.unlink()
        (out / "settings.json").write_bytes(whole["settings.json"])
        for number in range(finished):
            for name in (f"shard-{number:05d}.safetensors", f"shard-{number:05d}.json"):
                (out / name).write_bytes(whole[name])
        # The kill came after a shard's file and before its record, or within the file.
        half = whole[f"shard-{finished:05d}.safetensors"]
        (out / f"shard-{finished:05d}.safetensors").write_bytes(half[: len(half) // 2])
        main(arguments(folder, out))
        assert contents(out) == whole


@pytest.mark.law
def test_several_processes_write_what_one_does(folder: Path, cache: Path, tmp_path: Path) -> None:
    assert write(folder, tmp_path / "c", rank=1, world=2) is False
    with pytest.raises(ValueError, match="incomplete; run cache again"):
        Cached(tmp_path / "c")
    assert write(folder, tmp_path / "c", rank=0, world=2) is True
    assert contents(tmp_path / "c") == contents(cache)


@pytest.mark.example
def test_a_cache_of_something_else_is_refused(folder: Path, cache: Path, tmp_path: Path) -> None:
    other = make_target(tmp_path / "target", seed=5)
    with pytest.raises(ValueError, match="made for another target"):
        Cached(cache, target=model_fingerprint(other))
    with pytest.raises(ValueError, match=r"has layers \[-1, 0, 2\], the drafter reads \[0, 1\]"):
        Cached(cache, layers=(0, 1))
    with pytest.raises(ValueError, match="begun with batch 4, now it is 5"):
        main(arguments(folder, cache, **{"--batch": "5"}))
    (tmp_path / "stray").mkdir()
    (tmp_path / "stray" / "shard-00000.safetensors").touch()
    with pytest.raises(ValueError, match="has shards but no settings"):
        write(folder, tmp_path / "stray")


@pytest.mark.example
def test_a_damaged_shard_is_found_when_it_is_read(folder: Path, tmp_path: Path) -> None:
    write(folder, tmp_path / "c")
    shard = tmp_path / "c" / "shard-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(bytes(data))
    cached = Cached(tmp_path / "c")
    first = len(cached.index.shards[0].spans)
    cached.batch([0])
    with pytest.raises(ValueError, match=r"shard-00001.safetensors: its checksum differs"):
        cached.batch([first])
    shard.write_bytes(bytes(data[:-1]))
    with pytest.raises(ValueError, match="missing or not"):
        Cached(tmp_path / "c")
    index = tmp_path / "c" / "index.json"
    value = json.loads(index.read_text())
    value["settings"]["format"] = "other"
    index.write_text(json.dumps(value))
    with pytest.raises(ValueError, match="format 'other'"):
        Cached(tmp_path / "c")


@pytest.mark.law
def test_shards_hold_every_sample_in_order() -> None:
    samples = [
        Sample(id=str(i), prompt=(1,), response=(2,) * (i % 7 + 1), finish="stop")
        for i in range(50)
    ]
    for shard_tokens in (1, 20, 10_000):
        shards = plan_shards(samples, shard_tokens=shard_tokens)
        assert [sample for shard in shards for sample in shard] == samples
        assert all(shards)
        sizes = [sum(len(s.tokens) for s in shard) for shard in shards]
        assert all(size >= shard_tokens for size in sizes[:-1])


@pytest.mark.example
def test_samples_are_cut_dropped_and_checked() -> None:
    long = Sample(id="a", prompt=(1, 2), response=(3, 4, 5, 6), finish="stop")
    short = dataclasses.replace(long, id="b", response=(3,))
    assert [s.response for s in usable([long, short], max_tokens=5, where="x")] == [(3, 4, 5)]
    with pytest.raises(ValueError, match="x: no sample has two answer tokens within max_tokens 3"):
        usable([long, short], max_tokens=3, where="x")
    with pytest.raises(ValueError, match=r"sample 'a' has token 6, .* ends at 5"):
        check_vocabulary([long], vocabulary=6, where="x")


@pytest.mark.example
def test_wrong_arguments_end_with_status_2(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(folder, tmp_path / "c", **{"--batch": "0"})
    assert run_command("cache", lambda: main(given)) == 2
    assert capsys.readouterr().err == "cache: --batch 0: give 1 or more\n"
    with pytest.raises(ValueError, match="either --layers or --drafter"):
        main([*arguments(folder, tmp_path / "c"), "--drafter", "config.json"])
