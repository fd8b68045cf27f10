"""Archives are unpacked whole or not at all, and nothing is written outside of the folder."""

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.stages.test_data import refusal
from wmdd.datasets.archives import unpack

FILES = {"things/a b.txt": b"one", "things/deep/-ü.txt": b"two" * 50_000, "things/empty": b""}
EVERY_KIND = pytest.mark.parametrize("kind", ["x.tar", "x.tar.gz", "x.tgz", "x.zip"])


def make(path: Path, files: dict[str, bytes] = FILES, odd: tarfile.TarInfo | None = None) -> Path:
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
        if odd:
            tar.addfile(odd)
    return path


def only(folder: Path, *names: str) -> bool:
    return sorted(path.name for path in folder.iterdir()) == sorted(names)


@EVERY_KIND
def test_every_kind_becomes_the_folder(tmp_path: Path, kind: str) -> None:
    (tmp_path / ".things.unpacking.abc/things").mkdir(parents=True)  # as killed jobs leave it
    path, folder = make(tmp_path / kind), tmp_path / "things"
    unpack(path, folder)
    contents = {
        path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    assert contents == FILES
    (folder / "mark").touch()
    unpack(path, folder)  # another job has been faster
    assert (folder / "mark").exists()
    assert only(tmp_path, kind, "things")


@EVERY_KIND
@pytest.mark.parametrize("name", ["../escaped", "things/../../escaped", "/tmp/wmdd-escaped"])
def test_nothing_is_written_elsewhere(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / "in").mkdir()
    path = make(tmp_path / "in" / kind, {"things/ok": b"1", name: b"2"})
    if kind == "x.zip" or name[0] == "/":  # the name is cut short
        unpack(path, tmp_path / "in/things")
    else:
        refusal(str(path), "not safe", "escaped", call=lambda: unpack(path, tmp_path / "in/things"))
        assert only(tmp_path / "in", kind)
    assert only(tmp_path, "in")
    assert not Path("/tmp/wmdd-escaped").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_that_lead_elsewhere_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    odd = tarfile.TarInfo("things/odd")
    odd.type, odd.linkname = kind, "../../outside"
    path = make(tmp_path / "x.tgz", odd=odd)
    refusal(str(path), "not safe", "things/odd", call=lambda: unpack(path, tmp_path / "things"))
    assert only(tmp_path, "x.tgz")


def test_a_link_in_a_zip_is_a_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as out:
        member = zipfile.ZipInfo("things/odd")
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        out.writestr(member, "/etc/passwd")
    unpack(tmp_path / "x.zip", tmp_path / "things")
    assert not (tmp_path / "things/odd").is_symlink()


@EVERY_KIND
def test_damage_is_one_line_that_names_the_archive(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path / kind)
    whole = path.read_bytes()
    for content in (whole[: len(whole) * 2 // 3], b"junk"):
        path.write_bytes(content)
        refusal(str(path), "is damaged", "run again", call=lambda: unpack(path, tmp_path / "things"))
    make(path, {"other/file": b"1"})
    refusal(str(path), "no folder things", call=lambda: unpack(path, tmp_path / "things"))
    assert only(tmp_path, kind)


@pytest.mark.parametrize("flip", [True, False])
def test_a_header_that_is_damaged_or_cut_short_is_not_the_end(tmp_path: Path, flip: bool) -> None:
    path = make(tmp_path / "x.tar", {"things/a": b"1", "things/b": b"2"})
    content = bytearray(path.read_bytes())
    content[1024] ^= 1
    path.write_bytes(content if flip else content[: 512 * 3 - 100])
    refusal(str(path), "is damaged", call=lambda: unpack(path, tmp_path / "things"))


@pytest.mark.parametrize("kind", ["x.tgz", "x.zip"])
def test_a_full_disk(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / kind)

    def full(source: object, target: io.BytesIO, *_: object, **__: object) -> None:
        target.write(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tarfile.copyfileobj" if kind == "x.tgz" else "shutil.copyfileobj", full)
    refusal("disk full", str(path), str(tmp_path / "things"), call=lambda: unpack(path, tmp_path / "things"))
    assert only(tmp_path, kind)


def test_a_place_that_can_not_be_written(tmp_path: Path) -> None:
    path = make(tmp_path / "x.tar", {"things/a": b"1", "things/a/b": b"2"})
    for folder in "things", "none/things":
        refusal(str(path), "cannot unpack", call=lambda folder=folder: unpack(path, tmp_path / folder))
