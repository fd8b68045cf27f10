"""Archives are unpacked whole or not at all, and what would write elsewhere is refused."""

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stages.test_data import refusal
from wmdd.datasets import archives as module
from wmdd.datasets.archives import unpack

FILES = {"things/a b.txt": b"one", "things/deep/-ü.txt": b"two" * 50_000, "things/empty": b""}
KINDS = ["x.tar", "x.tar.gz", "x.tgz", "x.zip"]


def make(path: Path, files: dict[str, bytes] = FILES) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
            for name, content in files.items():
                out.writestr(name, content)
        return path
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def only(folder: Path, *names: str) -> bool:
    return sorted(path.name for path in folder.iterdir()) == sorted(names)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(tmp_path: Path, kind: str) -> None:
    unpack(make(tmp_path / kind), tmp_path / "things")
    assert contents(tmp_path / "things") == {name.removeprefix("things/"): data for name, data in FILES.items()}
    assert only(tmp_path, kind, "things")


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_folder(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path / kind, {"other/file": b"1"})
    refusal(str(path), "no folder things", call=lambda: unpack(path, tmp_path / "things"))
    assert only(tmp_path, kind)


def test_what_killed_jobs_left_goes_once_the_folder_is_there(tmp_path: Path) -> None:
    (tmp_path / ".things.unpacking.abc/things").mkdir(parents=True)
    unpack(make(tmp_path / "x.zip"), tmp_path / "things")
    assert only(tmp_path, "x.zip", "things")


def test_another_job_may_have_been_faster(tmp_path: Path) -> None:
    path, folder = make(tmp_path / "x.zip"), tmp_path / "things"
    unpack(path, folder)
    (folder / "mark").touch()
    unpack(path, folder)
    assert (folder / "mark").exists()
    assert only(tmp_path, "x.zip", "things")


# What is refused


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["../escaped", "things/../../escaped", "/tmp/wmdd-escaped", "..\\escaped", "C:/escaped"]
)
def test_names_that_lead_elsewhere(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / "in").mkdir()
    path = make(tmp_path / "in" / kind, {"things/ok": b"1", name: b"2"})
    refusal(str(path), repr(name), "outside", call=lambda: unpack(path, tmp_path / "in/things"))
    assert only(tmp_path / "in", kind)
    assert only(tmp_path, "in")
    assert not Path("/tmp/wmdd-escaped").exists()


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (tarfile.SYMTYPE, "a link to '../../outside'"),
        (tarfile.LNKTYPE, "a link to '../../outside'"),
        (tarfile.CHRTYPE, "a device or pipe"),
        (tarfile.BLKTYPE, "a device or pipe"),
        (tarfile.FIFOTYPE, "a device or pipe"),
    ],
)
@pytest.mark.parametrize("suffix", ["x.tar", "x.tgz"])
def test_what_is_no_file_in_a_tar(tmp_path: Path, kind: bytes, says: str, suffix: str) -> None:
    path = make(tmp_path / suffix, {})
    with tarfile.open(path, "w:gz" if suffix == "x.tgz" else "w") as tar:
        member = tarfile.TarInfo("things/odd")
        member.type, member.linkname = kind, "../../outside"
        tar.addfile(member)
    refusal(str(path), "'things/odd'", says, call=lambda: unpack(path, tmp_path / "things"))
    assert only(tmp_path, suffix)


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_what_is_no_file_in_a_zip(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as out:
        member = zipfile.ZipInfo("things/odd")
        member.external_attr = (mode | 0o777) << 16
        out.writestr(member, "/etc/passwd")
    refusal(str(path), "'things/odd'", "a link or a device", call=lambda: unpack(path, tmp_path / "things"))
    assert only(tmp_path, "x.zip")


def test_a_file_below_what_was_a_file(tmp_path: Path) -> None:
    path = make(tmp_path / "x.tar", {"things/a": b"1", "things/a/b": b"2"})
    refusal(str(path), "cannot unpack", call=lambda: unpack(path, tmp_path / "things"))
    assert only(tmp_path, "x.tar")


# Damage


@pytest.mark.parametrize("blocks", [2, 3])
def test_a_tar_without_its_end(tmp_path: Path, blocks: int) -> None:
    """One that stops after a member, or in the header of the next, which `tarfile` takes for a whole one."""
    path = make(tmp_path / "x.tar", {"things/a": b"1", "things/b": b"2"})
    path.write_bytes(path.read_bytes()[: 512 * blocks - (100 if blocks == 3 else 0)])
    refusal(str(path), "is damaged at 'things/a'", call=lambda: unpack(path, tmp_path / "things"))
    assert only(tmp_path, "x.tar")


def test_a_header_that_is_damaged_is_not_the_end(tmp_path: Path) -> None:
    path = make(tmp_path / "x.tar", {"things/a": b"1", "things/b": b"2"})
    content = bytearray(path.read_bytes())
    content[1024] ^= 1
    path.write_bytes(content)
    refusal(str(path), "is damaged at 'things/a'", call=lambda: unpack(path, tmp_path / "things"))


def cut(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


def flipped(content: bytes) -> bytes:
    place = content.index(b"twotwo") if b"twotwo" in content else len(content) // 2
    return content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]


@pytest.mark.parametrize(
    ("kind", "damage"),
    [(kind, cut) for kind in KINDS]
    + [(kind, flipped) for kind in KINDS if kind != "x.tar"]
    + [("x.tgz", lambda _: b"junk")],
)
def test_damage(tmp_path: Path, kind: str, damage: Callable[[bytes], bytes]) -> None:
    path = make(tmp_path / kind)
    path.write_bytes(damage(path.read_bytes()))
    refusal(str(path), "is damaged", "run again", call=lambda: unpack(path, tmp_path / "things"))
    assert only(tmp_path, kind)


def test_damage_names_the_member(tmp_path: Path) -> None:
    path = make(tmp_path / "x.tar")
    path.write_bytes(cut(path.read_bytes()))
    refusal("at 'things/deep/-ü.txt'", call=lambda: unpack(path, tmp_path / "things"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / kind)
    whole = module.tarfile.copyfileobj if kind != "x.zip" else module.zipfile.shutil.copyfileobj  # type: ignore[attr-defined]

    def full(source: object, target: object, *rest: object, **options: object) -> None:
        whole(io.BytesIO(b"some"), target, *([4] if kind != "x.zip" else []))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tarfile.copyfileobj" if kind != "x.zip" else "shutil.copyfileobj", full)
    refusal("disk full", str(path), str(tmp_path / "things"), call=lambda: unpack(path, tmp_path / "things"))
    assert only(tmp_path, kind)


def test_no_such_folder_to_unpack_to(tmp_path: Path) -> None:
    path = make(tmp_path / "x.tar")
    refusal(str(path), "cannot unpack", call=lambda: unpack(path, tmp_path / "none/things"))
