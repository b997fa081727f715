"""Schemas that come with the program, on small files of each publisher's exact layout, and on real ones."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from lain.cli import main
from lain.data.store import Store
from lain.formats.log.builtin import BUILTIN

RNG = np.random.default_rng
START = 1_495_000_000


def text(path: Path, lines: list[list[object]], separator: str = ",", header: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ([header] if header else []) + [separator.join(map(str, line)) for line in lines]
    path.write_text("\n".join(rows) + "\n", encoding="latin-1" if separator == "::" else "utf-8")


def ebnerd(folder: Path) -> None:
    rng = RNG(0)
    for part, week in (("train", 18), ("validation", 25)):
        (folder / part).mkdir(parents=True)
        begin = datetime(2023, 5, week, 7)
        rows = []
        for number in range(60):
            shown = rng.choice(40, size=5, replace=False) + 9_000_000
            rows.append({
                "impression_id": 1000 * week + number, "article_id": None if number % 3 else 9_000_001.0,
                "impression_time": begin + timedelta(seconds=int(rng.integers(6 * 86400))),
                "read_time": 3.5, "scroll_percentage": None, "device_type": 1 + number % 3,
                "article_ids_inview": shown.tolist(), "article_ids_clicked": shown[:1].tolist(),
                "user_id": 100 + number % 12, "is_sso_user": bool(number % 2), "gender": None,
                "postcode": 1.0,
                "age": None, "is_subscriber": False, "session_id": number, "next_read_time": 60.0,
                "next_scroll_percentage": 100.0,
            })  # fmt: skip
        kinds: dict[str, Any] = {
            "article_ids_inview": pl.List(pl.Int32),
            "device_type": pl.Int8,
            "gender": pl.Float64,
        }
        kinds |= {"age": pl.Float64, "scroll_percentage": pl.Float32}
        pl.DataFrame(rows, schema_overrides=kinds).write_parquet(folder / part / "behaviors.parquet")
        past = [begin - timedelta(days=days) for days in (9, 5, 2)]
        users = [100 + user for user in range(11)]  # one reader has no history
        pl.DataFrame({
            "user_id": pl.Series(users, dtype=pl.UInt32),
            "impression_time_fixed": [past] * 11,
            "scroll_percentage_fixed": [[100.0, None, 4.0]] * 11,
            "article_id_fixed": [[9_000_000 + user % 40, 9_000_007, 9_000_000 + week] for user in users],
            "read_time_fixed": [[1.0, 200.0, 7.0]] * 11,
        }).write_parquet(folder / part / "history.parquet")  # fmt: skip
    articles = np.arange(60) + 9_000_000
    pl.DataFrame({
        "article_id": articles, "title": "t", "subtitle": "s", "body": "b", "category": articles % 5,
        "subcategory": [[int(a) % 7, 3] for a in articles], "premium": articles % 2 == 0,
        "article_type": ["article_default"] * 60, "sentiment_label": ["Positive", "Negative"] * 30,
        "topics": [["Kendt", "Livsstil"][: int(a) % 3] for a in articles],
        "ner_clusters": [["Ebba"] for _ in articles],
        "total_inviews": 7, "total_pageviews": 5, "total_read_time": 9.0,
        "published_time": [datetime(2023, 5, 1)] * 60,
    }).write_parquet(folder / "articles.parquet")  # fmt: skip


def check_ebnerd(store: Store) -> None:
    assert sum(store.splits.values()) == 2 * 60 * 5
    train = store.split("train")
    assert set(np.unique(train.length)) <= {0, 3}
    assert (train.length == 3).any()
    users = pl.read_parquet(store.vocabularies["user_id"])["value"].to_list()
    items = ["", *pl.read_parquet(store.vocabularies["item_id"])["value"]]
    for name, last in (("train", "9000018"), ("test", "9000025")):
        split = store.split(name)
        assert split.start is not None
        for row in range(0, len(split), 7):
            user = users[split.user[row]]
            history = store.histories[int(split.user[row])][split.start[row] : split.end[row]]
            wanted = [] if user == "111" else [str(9_000_000 + int(user) % 40), "9000007", last]
            assert [items[i] for i in history] == wanted
    assert int((store.split("test").label == 1).sum()) == 60
    assert {f.name for f in store.features if f.source == "behaviour"} == {"dwell", "scroll", "gap", "time"}


def mind(folder: Path) -> None:
    rng = RNG(1)
    for part, day in (("MINDsmall_train", 11), ("MINDsmall_dev", 15)):
        rows: list[list[object]] = []
        for number in range(40):
            shown = [
                f"N{item}-{int(place == 0)}" for place, item in enumerate(rng.choice(30, 4, replace=False))
            ]
            seen = " ".join(f"N{item}" for item in range(number % 9 + 1)) if number % 9 else ""
            time = f"11/{day}/2019 {1 + number % 12}:0{number % 10}:58 {'AM' if number % 2 else 'PM'}"
            rows.append([number, f"U{number % 9}", time, seen, " ".join(shown)])
        text(folder / part / "behaviors.tsv", rows, "\t")
        news: list[list[object]] = [
            [f"N{n}", f"c{n % 4}", f"s{n % 6}", 'A "quoted title', "x", "u", "[]", "[]"] for n in range(30)
        ]
        text(folder / part / "news.tsv", news, "\t")


def check_mind(store: Store) -> None:
    assert sum(store.splits.values()) == 2 * 40 * 4
    test = store.split("test")
    assert int(test.label.sum()) == 40
    users = pl.read_parquet(store.vocabularies["user_id"])["value"].to_list()
    for row in range(len(test)):
        number = int(users[test.user[row]][1:])
        assert test.length[row] == (number + 1 if number else 0)
    assert len(store.histories.values) == sum(number + 1 for number in range(1, 9))  # each list once


def kuairand(folder: Path) -> None:
    rng = RNG(2)
    header = ("user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,"
              "is_hate,long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,"
              "tab")  # fmt: skip
    for name, day, count in (("4_08_to_4_21", 8, 80), ("4_22_to_5_08", 22, 160)):
        rows: list[list[object]] = []
        for _ in range(count):
            moment = (
                1_649_347_200_000
                + (day - 8) * 86_400_000
                + int(rng.integers((14 if day == 8 else 17) * 86_400_000))
            )
            click = int(rng.integers(2))
            rows.append([rng.integers(8), rng.integers(30), 20220408, 400, moment, click, 0, 0, 0, 0, 0,
                         click,
                         rng.integers(60_000), 15_000, 0, 0, 0, 0, rng.integers(3)])  # fmt: skip
        text(folder / "data" / f"log_standard_{name}_pure.csv", rows, header=header)
    text(folder / "data" / "log_random_4_22_to_5_08_pure.csv", [["not", "read"]], header="a,b")
    ranges = ",".join(f"{who}_user_num,{who}_user_num_range" for who in ("follow", "fans", "friend"))
    onehot = ",".join(f"onehot_feat{n}" for n in range(18))
    users: list[list[object]] = [
        [u, "full_active", 0, 0, 1, 5, '"(0,10]"', 312, '"[100,1k)"', 0, 0, 3624, "730+", *([1] * 18)]
        for u in range(8)
    ]
    text(folder / "data" / "user_features_pure.csv", users,
         header=f"user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,{ranges},register_days,"
         f"register_days_range,{onehot}")  # fmt: skip
    videos: list[list[object]] = [
        [v, v % 5, "NORMAL", "2022-04-09", "ShortImport", 1, 17200.0 + v, 720, 1280, 989206467, 4, '"12,65"']
        for v in range(30)
    ]
    text(folder / "data" / "video_features_basic_pure.csv", videos,
         header="video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,"
         "server_height,music_id,music_type,tag")  # fmt: skip


def check_kuairand(store: Store) -> None:
    assert sum(store.splits.values()) == 240 == len(store.histories.values)
    assert set(store.behaviours) == {"click", "long_view", "play_time", "tab", "gap", "time"}
    assert store.items["tag"][1:, :2].all()
    assert store.split("test").context["time"].min() >= 1_651_334_400  # 2022-05-01 in Beijing


def user_behavior(folder: Path) -> None:
    rng = RNG(3)
    rows: list[list[object]] = [
        [u, rng.integers(40), rng.integers(5), ["pv", "pv", "buy", "cart", "fav"][n % 5],
         1_511_539_200 + int(rng.integers(9 * 86_400))]
        for u in range(9) for n in range(20)
    ]  # fmt: skip
    rows += [
        [1, 2, 3, "pv", -1_000],
        [1, 2, 3, "pv", 2_037_187_200],
    ]  # broken timestamps, as in the real file
    text(folder / "UserBehavior.csv", rows)


def check_user_behavior(store: Store) -> None:
    assert len(store.histories.values) == 180
    labels = np.concatenate([store.split(name).label for name in store.splits])
    assert labels.sum() * 2 == len(labels) == 2 * 72
    for name in store.splits:
        split = store.split(name)
        clicked = {
            (u, t): i
            for u, t, i, y in zip(split.user, split.context["time"], split.item, split.label, strict=True)
            if y
        }
        for u, t, i, y in zip(split.user, split.context["time"], split.item, split.label, strict=True):
            assert y or clicked[u, t] != i


def taobao_ad(folder: Path) -> None:
    rng = RNG(4)
    base = 1_494_032_110
    rows = [[u, base + int(rng.integers(8 * 86_400)), 1 + int(rng.integers(12)), "430548_1007", 1 - c, c]
            for u in range(10) for c in (0, 1, 0, 0, 1)]  # fmt: skip
    rows += [[u, base + 7 * 86_400, 1, "430539_1007", u % 2, 1 - u % 2] for u in range(4)]
    text(
        folder / "raw_sample.csv", [list(r) for r in rows], header="user,time_stamp,adgroup_id,pid,nonclk,clk"
    )
    text(folder / "ad_feature.csv", [[a, a % 4, a % 3, a % 5, a % 6 or "NULL", 170.0 + a]
                                     for a in range(1, 13)],
         header="adgroup_id,cate_id,campaign_id,customer,brand,price")  # fmt: skip
    text(folder / "user_profile.csv", [[u, 0, 5, 2, 2, "", 3, 0, ""] for u in range(10)],
         header="userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,occupation,"
         "new_user_class_level ")  # fmt: skip
    logs: list[list[object]] = [[u, base - 100 * n, ["pv", "cart", "fav", "buy"][n % 4], n % 4, n % 6]
                                for u in range(10) for n in range(1, 6)]  # fmt: skip
    text(folder / "behavior_log.csv", logs, header="user,time_stamp,btag,cate,brand")


def check_taobao_ad(store: Store) -> None:
    assert len(store.histories.values) == 50
    assert (store.split("train").end == 5).all()
    history = store.histories[0]
    values = ["", "<oov>", None, *pl.read_parquet(store.vocabularies["cate_id"])["value"]]
    assert [values[c] for c in store.items["cate_id"][history]] == [
        "1",
        "0",
        "3",
        "2",
        "1",
    ]  # oldest is n = 5
    assert set(store.items["item"][history]) == {1}  # no id of their own
    assert store.items["price"][history].tolist() == [2] * 5


def taobao_ad_x1(folder: Path) -> None:
    header = ("clk,btag_his,cate_his,brand_his,userid,cms_segid,cms_group_id,final_gender_code,age_level,"
              "pvalue_level,shopping_level,occupation,new_user_class_level,adgroup_id,cate_id,campaign_id,"
              "customer,brand,price,pid,btag")  # fmt: skip
    for part, count in (("train", 200), ("test", 40)):
        rows: list[list[object]] = []
        for n in range(count):
            length = n % 5
            lists = ["^".join(str(1 + (k * m) % 7) for k in range(length)) for m in (1, 2, 3)]
            ad = n % 20
            rows.append(
                [
                    n % 2,
                    *lists,
                    n % 25,
                    n % 3,
                    1,
                    2,
                    3,
                    0,
                    3,
                    0,
                    0,
                    ad,
                    ad % 4,
                    ad % 3,
                    ad % 5,
                    ad % 6,
                    99.5,
                    "p",
                    1,
                ]
            )
        text(folder / f"{part}.csv", rows, header=header)


def check_taobao_ad_x1(store: Store) -> None:
    assert store.splits["test"] == 40
    lengths = np.concatenate([store.split(name).length for name in store.splits])
    assert np.bincount(lengths).tolist() == [48] * 5


def movielens_1m(folder: Path) -> None:
    rng = RNG(5)
    rows: list[list[object]] = [
        [u, m, 1 + int(rng.integers(5)), 978_300_760 + int(rng.integers(10_000))]
        for u in range(1, 9)
        for m in rng.choice(30, 12, replace=False) + 1
    ]
    text(folder / "ratings.dat", rows, "::")
    text(folder / "users.dat", [[u, "F", 1, 10, "48067"] for u in range(1, 9)], "::")
    text(folder / "movies.dat", [[m, "Misérables, Les (1995)", "Drama|Musical"] for m in range(1, 31)], "::")


def check_movielens_1m(store: Store) -> None:
    assert sum(store.splits.values()) == 96 == len(store.histories.values)
    assert store.items["genres"][1:].all()


def kuaivideo(folder: Path) -> None:
    header = "timestamp,user_id,item_id,is_click,is_like,is_follow,pos_items,neg_items"
    for part, begin, count in (("train", 0, 90), ("test", 90, 30)):
        rows: list[list[object]] = []
        for n in range(begin, begin + count):
            seen = [str(100 + k) for k in range(n // 6)]
            rows.append([n, n % 6, 100 + n // 6, n % 2, 0, 0, "^".join(seen), ""])
        text(folder / f"{part}.csv", rows, header=header)


def check_kuaivideo(store: Store) -> None:
    assert store.splits == {"train": 81, "valid": 9, "test": 30}
    assert len(store.histories.values) == 6 * 19  # histories that grow are stored once
    test = store.split("test")
    assert test.length.tolist() == [n // 6 for n in range(90, 120)]


def microvideo(folder: Path) -> None:
    header = "user_id,item_id,cate_id,is_click,timestamp,clicked_items,clicked_categories"
    for part, begin, count in (("train", 0, 100), ("test", 100, 20)):
        rows: list[list[object]] = []
        for n in range(begin, begin + count):
            seen = list(range(max(0, n // 5 - 3), n // 5))  # a window that moves on
            item = n // 5 if part == "train" else 1000 + n
            rows.append(
                [
                    n % 5,
                    item,
                    item % 3,
                    n % 2,
                    1_500_000_000 + n,
                    "^".join(map(str, seen)),
                    "^".join("0" for _ in seen),
                ]
            )
        text(folder / f"{part}.csv", rows, header=header)


def check_microvideo(store: Store) -> None:
    assert store.splits == {"train": 90, "valid": 10, "test": 20}
    train = store.split("train")
    assert train.start is not None
    assert train.length.tolist() == [min(3, n // 5) for n in range(90)]
    assert (train.start > 0).any()
    assert len(store.histories.values) == 5 * 23


LAYOUTS: dict[str, tuple[Callable[[Path], None], Callable[[Store], None]]] = {
    "ebnerd": (ebnerd, check_ebnerd),
    "ebnerd-week": (ebnerd, lambda store: None),
    "mind": (mind, check_mind),
    "kuairand-raw": (kuairand, check_kuairand),
    "taobao-user-behavior": (user_behavior, check_user_behavior),
    "taobao-ad": (taobao_ad, check_taobao_ad),
    "taobao-ad-x1": (taobao_ad_x1, check_taobao_ad_x1),
    "movielens-1m": (movielens_1m, check_movielens_1m),
    "kuaivideo-x1": (kuaivideo, check_kuaivideo),
    "microvideo-x1": (microvideo, check_microvideo),
}


def test_every_schema_has_a_layout() -> None:
    assert set(LAYOUTS) == set(BUILTIN)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_publishers_layout(tmp_path: Path, name: str) -> None:
    make, check = LAYOUTS[name]
    make(tmp_path / "source")
    result = CliRunner().invoke(main, ["prepare", name, str(tmp_path / "source"), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []
    store = Store.open(tmp_path / "out")
    store.verify()
    assert {"train", "valid", "test"} == set(store.splits)
    check(store)
    if name == "taobao-user-behavior":
        assert "drawn" in result.stderr
        assert "2 rows outside source.drop_times_outside were left out" in result.stderr


def test_ebnerd_demo(shared: Path, tmp_path: Path) -> None:
    """The publisher's own files; articles.parquet is not among them."""
    source = shared / "data" / "ctr" / "ebnerd-demo"
    if not source.is_dir():
        pytest.skip(f"no EB-NeRD data: {source} does not exist")
    result = CliRunner().invoke(main, ["prepare", "ebnerd", str(source), str(tmp_path / "out"), "--quiet"])
    assert result.exit_code == 0, result.output
    assert "articles.parquet: not there" in result.stderr
    store = Store.open(tmp_path / "out")
    assert store.splits["test"] == 304_915
    assert store.splits["train"] + store.splits["valid"] == 278_139
    assert int(store.split("test").label.sum()) == 25_444  # 25,505 clicks, 61 of them on the same item again
    longest = max(int(store.split(name).length.max()) for name in store.splits)
    assert longest == 1459
