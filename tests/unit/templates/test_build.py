"""Building is all or nothing: keys, locks, rests of interrupted builds, full disks. Packages are not fetched here."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import shutil
import stat
import tarfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloison.errors import BackendFailed, BadRequest, DiskFull
from cloison.templates import build, recipe
from cloison.templates.bases import KEPT
from cloison.templates.build import Image, ImageRequest, build_image, image_key

TREE = {"/usr/bin/tool": (stat.S_IFREG | 0o755, b"#!/bin/sh\n"), "/usr/bin/link": (stat.S_IFLNK | 0o777, b"tool")}
REQUEST = ImageRequest(mirror="http://mirror.example/debian", keyring="/etc/passwd")


async def fake_bootstrap(*, staging: Path, size_bytes: int, **_: Any) -> None:
    """What mmdebstrap leaves, without the packages."""
    with (staging / "root.raw").open("wb") as file:
        file.truncate(64 << 20)
        file.write(b"\x01" * 4096)
    (staging / "vmlinuz").write_bytes(b"kernel")
    (staging / "initrd").write_bytes(b"initrd")
    (staging / "packages").write_text("bash 5.2 amd64\n")
    (staging / "base.tar.zst").write_bytes(b"packages")


@pytest.fixture(autouse=True)
def bootstrap(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Awaitable[None]]], None]:
    def use(replacement: Callable[..., Awaitable[None]]) -> None:
        monkeypatch.setattr(build, "run_bootstrap", replacement)

    async def no_options() -> tuple[str, ...]:
        return ()

    monkeypatch.setattr(build, "find_host_acquire_options", no_options)
    use(fake_bootstrap)
    return use


def silent(what: str, fraction: float | None) -> None:
    pass


async def make(cache: Path, request: ImageRequest = REQUEST) -> Image:
    return await build_image(request, cache, silent, tree=TREE)


async def test_an_image_is_built_once(tmp_path: Path, bootstrap: Any) -> None:
    first = await make(tmp_path)
    bootstrap(never)
    assert await make(tmp_path) == first
    assert first.kernel.read_bytes() == b"kernel" and first.size_bytes == REQUEST.size_bytes
    assert first.disk.stat().st_mode & 0o222 == 0


@pytest.fixture
def from_base(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Builds from kept packages, each told by its archive."""
    used: list[Path] = []

    async def fake(base: Path, *, staging: Path, size_bytes: int, **_: Any) -> None:
        used.append(base)
        if base.read_bytes() != b"packages":
            (staging / "half").touch()
            raise BackendFailed("the archive is damaged")
        await fake_bootstrap(staging=staging, size_bytes=size_bytes)

    monkeypatch.setattr(build, "run_from_base", fake)
    return used


async def never(**_: Any) -> None:
    raise AssertionError("packages were fetched")


async def test_another_guest_tree_takes_the_packages_that_are_there(
    tmp_path: Path, bootstrap: Any, from_base: list[Path]
) -> None:
    first = await make(tmp_path)
    bootstrap(never)
    second = await build_image(REQUEST, tmp_path, silent, tree={"/usr/bin/tool": (0o755, b"newer")})
    assert second.key != first.key and len(from_base) == 1
    assert second.kernel.read_bytes() == b"kernel"
    assert not (second.directory / "base.tar.zst").exists()


async def test_other_packages_are_fetched(tmp_path: Path, bootstrap: Any, from_base: list[Path]) -> None:
    await make(tmp_path)
    await build_image(replace(REQUEST, include=("hello",)), tmp_path, silent, tree=TREE)
    assert from_base == []
    assert len(list((tmp_path / "bases").iterdir())) == 2


@pytest.mark.parametrize("harm", ["damaged", "old"])
async def test_packages_that_are_damaged_or_old_are_fetched_anew(
    tmp_path: Path, from_base: list[Path], harm: str
) -> None:
    await make(tmp_path)
    (base,) = (tmp_path / "bases").iterdir()
    if harm == "damaged":
        base.write_bytes(b"x")
    else:
        os.utime(base, (1e9, 1e9))
    image = await build_image(REQUEST, tmp_path, silent, tree={})
    assert image.disk.exists() and base.read_bytes() == b"packages"
    assert len(from_base) == (1 if harm == "damaged" else 0)
    assert sorted(path.name for path in image.directory.iterdir()) == [
        "initrd",
        "manifest.json",
        "root.qcow2",
        "vmlinuz",
    ]


async def test_again_means_packages_too(tmp_path: Path, from_base: list[Path]) -> None:
    await make(tmp_path)
    await build_image(REQUEST, tmp_path, silent, tree=TREE, again=True)
    assert from_base == []


async def test_only_the_newest_packages_are_kept(tmp_path: Path, from_base: list[Path]) -> None:
    for package in "abcde":
        await build_image(replace(REQUEST, include=(package,)), tmp_path, silent, tree=TREE)
    assert len(list((tmp_path / "bases").iterdir())) == KEPT


async def test_an_image_may_be_built_again_in_its_place(tmp_path: Path, bootstrap: Any) -> None:
    first = await make(tmp_path)

    async def newer(*, staging: Path, **more: Any) -> None:
        await fake_bootstrap(staging=staging, **more)
        (staging / "vmlinuz").write_bytes(b"newer kernel")

    bootstrap(newer)
    assert (await build_image(REQUEST, tmp_path, silent, tree=TREE, again=True)).directory == first.directory
    assert (await make(tmp_path)).kernel.read_bytes() == b"newer kernel"


async def test_two_at_once_build_one(tmp_path: Path, bootstrap: Any) -> None:
    count = 0

    async def counting(**fields: Any) -> None:
        nonlocal count
        count += 1
        await asyncio.sleep(0.1)
        await fake_bootstrap(**fields)

    bootstrap(counting)
    one, two = await asyncio.gather(make(tmp_path), make(tmp_path))
    assert count == 1 and one == two


async def test_a_failed_build_leaves_nothing(tmp_path: Path, bootstrap: Any) -> None:
    async def failing(*, staging: Path, **_: Any) -> None:
        (staging / "root.raw").write_bytes(b"half")
        raise BackendFailed("no network")

    bootstrap(failing)
    with pytest.raises(BackendFailed, match="no network"):
        await make(tmp_path)
    assert [path.name for path in (tmp_path / "images").iterdir() if path.is_dir()] == []
    bootstrap(fake_bootstrap)
    await make(tmp_path)


async def test_a_cancelled_build_leaves_nothing(tmp_path: Path, bootstrap: Any) -> None:
    started = asyncio.Event()

    async def endless(**_: Any) -> None:
        started.set()
        await asyncio.sleep(100)

    bootstrap(endless)
    task = asyncio.create_task(make(tmp_path))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [path.name for path in (tmp_path / "images").iterdir() if path.is_dir()] == []


async def test_the_rests_of_a_killed_build_are_cleared_away(tmp_path: Path) -> None:
    rest = tmp_path / "images" / f".building-{image_key(REQUEST, TREE)}"
    (rest / "tmp/deep").mkdir(parents=True)
    (rest / "root.raw").write_bytes(b"half")
    image = await make(tmp_path)
    assert not rest.exists() and image.disk.stat().st_size > 4096


async def test_a_full_disk_is_said_with_what_is_needed(tmp_path: Path, bootstrap: Any) -> None:
    async def filling(**_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    bootstrap(filling)
    with pytest.raises(DiskFull, match=r"about \d+ MiB are needed"):
        await make(tmp_path)
    assert [path.name for path in (tmp_path / "images").iterdir() if path.is_dir()] == []


async def test_a_disk_too_small_is_said_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bootstrap: Any
) -> None:
    async def never(**_: Any) -> None:
        raise AssertionError("began")

    bootstrap(never)
    small = shutil.disk_usage(tmp_path)._replace(free=1 << 30)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: small)
    with pytest.raises(DiskFull, match="1024 MiB are free"):
        await make(tmp_path)


async def test_old_images_make_room_for_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = await make(tmp_path)
    real = shutil.disk_usage

    def small_while_old_is_there(path: Path) -> Any:
        return real(path)._replace(free=(1 << 30) if old.disk.exists() else (1 << 34))

    monkeypatch.setattr(shutil, "disk_usage", small_while_old_is_there)
    new = await make(tmp_path, ImageRequest(mirror="http://other.example/", keyring="/etc/passwd"))
    assert new.disk.exists() and not old.directory.exists()


async def test_rests_of_other_builds_go_unless_they_still_run(tmp_path: Path) -> None:
    dead, alive = tmp_path / "images/.building-dead", tmp_path / "images/.building-alive"
    for rest in (dead, alive):
        rest.mkdir(parents=True)
    with (tmp_path / "images/.lock-alive").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        await make(tmp_path)
    assert alive.exists() and not dead.exists()


async def test_a_damaged_image_in_the_cache_is_named(tmp_path: Path) -> None:
    image = await make(tmp_path)
    image.kernel.unlink()
    with pytest.raises(BackendFailed, match=image.key):
        await make(tmp_path)


async def test_a_missing_keyring_is_said_with_its_package(tmp_path: Path) -> None:
    with pytest.raises(BackendFailed, match="debian-archive-keyring"):
        await make(tmp_path, ImageRequest(mirror="http://m/", keyring="/nonexistent"))


@pytest.mark.parametrize(
    "request_",
    [
        ImageRequest(distribution="plan9"),
        ImageRequest(size_bytes=1 << 20),
        ImageRequest(include=("a b",)),
        ImageRequest(include=("",)),
        ImageRequest(include=("--opt",)),
        ImageRequest(include=("x,y",)),
        ImageRequest(mirror="nonsense", keyring="/etc/passwd"),
        ImageRequest(mirror="http://m/", suite="a b", keyring="/etc/passwd"),
    ],
)
async def test_requests_that_cannot_be_meant_are_refused(tmp_path: Path, request_: ImageRequest) -> None:
    with pytest.raises(BadRequest):
        await make(tmp_path, request_)


def test_the_key_follows_every_input(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {
        image_key(REQUEST, TREE),
        image_key(ImageRequest(), TREE),
        image_key(ImageRequest(suite="sid"), TREE),
        image_key(ImageRequest(include=("vim",)), TREE),
        image_key(ImageRequest(size_bytes=20 << 30), TREE),
        image_key(REQUEST, {**TREE, "/usr/bin/tool": (stat.S_IFREG | 0o755, b"changed")}),
        image_key(REQUEST, {**TREE, "/usr/bin/tool": (stat.S_IFREG | 0o700, b"#!/bin/sh\n")}),
    }
    monkeypatch.setattr(recipe, "RECIPE_VERSION", 99)
    keys.add(image_key(REQUEST, TREE))
    assert len(keys) == 8
    assert image_key(ImageRequest(), TREE) == image_key(ImageRequest(suite="trixie"), TREE)


async def test_guest_files_arrive_with_modes_links_and_root_as_owner(tmp_path: Path, bootstrap: Any) -> None:
    seen: dict[str, tarfile.TarInfo] = {}

    async def looking(*, staging: Path, **fields: Any) -> None:
        with tarfile.open(staging / "guest.tar") as tar:
            seen.update({member.name: member for member in tar})
        await fake_bootstrap(staging=staging, **fields)

    bootstrap(looking)
    await make(tmp_path)
    assert seen["usr/bin/tool"].mode == 0o755 and seen["usr/bin/link"].linkname == "tool"
    assert {(member.uid, member.gid) for member in seen.values()} == {(0, 0)}
    assert {"etc/fstab", "usr/lib/cloison/make-initrd", ".cloison-build/configure"} <= set(seen)
