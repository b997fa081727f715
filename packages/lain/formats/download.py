"""Public data sets from where their publishers keep them, checked by their MD5 before they are used.

The sum pins the content, whatever an address or a branch of a repository says later.
"""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import urllib.request
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common.cli import report
from common.errors import BackendError, ConfigError, DataError
from common.files import atomic_folder, scratch_folder

_TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class Published:
    """Where a data set is.

    Args:
        files: Names of the files that the format reads, for those who fetch them by hand.
        page: The page to fetch them from by hand.
        address: Address of an archive; empty: there is none to fetch without a login or a licence to accept.
        repository: Instead of an address: a data set on the Hugging Face hub ...
        archive: ... and the archive in it.
        md5: Sums, by name; of the archive, or of files in it.
    """

    files: str
    page: str
    address: str = ""
    repository: str = ""
    archive: str = ""
    md5: Mapping[str, str] = field(default_factory=dict)


def _reczoo(name: str, train: str, test: str) -> Published:
    return Published(
        files="train.csv, test.csv",
        page=f"https://huggingface.co/datasets/reczoo/{name}",
        repository=f"reczoo/{name}",
        archive=f"{name}.zip",
        md5={"train.csv": train, "test.csv": test},
    )


_GROUPLENS = "https://files.grouplens.org/datasets/movielens"
_ZENODO = "https://zenodo.org/records/10439422"
_EBNERD = Published(
    "train/ and validation/ (behaviors.parquet, history.parquet), articles.parquet", "https://recsys.eb.dk"
)

PUBLISHED: dict[str, Published] = {
    "movielens": Published(
        "ratings.csv, movies.csv", "https://grouplens.org/datasets/movielens/20m", f"{_GROUPLENS}/ml-20m.zip",
        md5={"ml-20m.zip": "cd245b17a1ae2cc31bb14903e1204af3"},
    ),
    "movielens-1m": Published(
        "ratings.dat, users.dat, movies.dat", "https://grouplens.org/datasets/movielens/1m",
        f"{_GROUPLENS}/ml-1m.zip", md5={"ml-1m.zip": "c4d9eecfca2ab87c1945afe126590906"},
    ),
    "kuairand-raw": Published(
        "log_standard_*.csv, user_features_*.csv, video_features_basic_*.csv", _ZENODO,
        f"{_ZENODO}/files/KuaiRand-Pure.tar.gz",
        md5={"KuaiRand-Pure.tar.gz": "0820331067a3784d9691136f772b35a7"},
    ),
    "kuaivideo-x1": _reczoo(
        "KuaiVideo_x1", "16f13734411532cc313caf2180bfcd56", "ba26c01caaf6c65c272af11aa451fc7a"
    ),
    "microvideo-x1": _reczoo(
        "MicroVideo1.7M_x1", "936e6612714c887e76226a60829b4e0a", "9417a18304fb62411ac27c26c5e0de56"
    ),
    "taobao-ad-x1": _reczoo(
        "TaobaoAd_x1", "eaabfc8629f23519b04593e26c7522fc", "f5ae6197e52385496d46e2867c1c8da1"
    ),
    "ebnerd": _EBNERD,
    "ebnerd-week": _EBNERD,
    "mind": Published("MINDsmall_train/ and MINDsmall_dev/ (behaviors.tsv, news.tsv)", "https://msnews.github.io"),
    "taobao-user-behavior": Published("UserBehavior.csv", "https://tianchi.aliyun.com/dataset/649"),
    "taobao-ad": Published(
        "raw_sample.csv, ad_feature.csv, user_profile.csv, behavior_log.csv", "https://tianchi.aliyun.com/dataset/56"
    ),
}  # fmt: skip
"""Every format whose data can be fetched, or of which it is known where they are."""


def download(format: str, folder: Path) -> None:
    """Fetch a public data set into a folder, unless the folder holds something already.

    Args:
        format: Its format.
        folder: Where its files go.

    Raises:
        ConfigError: Nothing is known of such a data set, or it must be fetched by hand.
        BackendError: The network or the address does not answer.
        DataError: What came is not what was published.
    """
    if format not in PUBLISHED:
        raise ConfigError(f"--download: {format} is not a public data set; there are {', '.join(PUBLISHED)}")
    what = PUBLISHED[format]
    if folder.is_dir() and any(folder.iterdir()):
        report(f"note: {folder} is there already, nothing was fetched")
        return
    by_hand = f"fetch {what.files} from {what.page} by hand and put them into {folder}"
    if not what.address and not what.repository:
        raise ConfigError(f"--download: {format} needs a login or a licence to accept; {by_hand}")
    with scratch_folder(folder) as scratch:
        try:
            archive = _fetch(what, scratch)
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise BackendError(
                f"{what.address or what.repository}: cannot be fetched ({reason}); {by_hand}"
            ) from error
        unpacked = scratch / "unpacked"
        _check(archive, what.md5.get(archive.name), archive.name)
        _unpack(archive, unpacked)
        content = _content(unpacked)
        for name, wanted in what.md5.items():
            if name != archive.name:
                _check(content / name, wanted, f"{archive.name}: {name}")
        with atomic_folder(folder) as made:
            for entry in content.iterdir():
                shutil.move(entry, made / entry.name)


def _fetch(what: Published, scratch: Path) -> Path:
    if what.repository:
        from huggingface_hub import hf_hub_download

        found = hf_hub_download(what.repository, what.archive, repo_type="dataset", local_dir=scratch / "hub")
        return Path(found)
    path = scratch / what.address.rpartition("/")[2]
    with urllib.request.urlopen(what.address, timeout=_TIMEOUT_SECONDS) as answer, path.open("wb") as file:
        shutil.copyfileobj(answer, file)
    return path


def _check(path: Path, wanted: str | None, name: str) -> None:
    if wanted is None:
        return
    digest = hashlib.md5(usedforsecurity=False)
    if path.is_file():
        with path.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    if digest.hexdigest() != wanted:
        raise DataError(
            f"{name}: is not what was published (MD5 {digest.hexdigest()}, not {wanted}); get it again"
        )


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack; nothing can be written outside the folder."""
    folder.mkdir()
    try:
        if archive.name.endswith(".zip"):
            with zipfile.ZipFile(archive) as packed:
                packed.extractall(folder)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise DataError(f"{archive.name}: damaged or cut off ({error}); get it again") from error


def _content(folder: Path) -> Path:
    """The folder with the files: archives often hold one folder and nothing else."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith((".", "__"))]
    return _content(entries[0]) if len(entries) == 1 and entries[0].is_dir() else folder
