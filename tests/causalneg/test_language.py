"""The language of a corpus: what is detected, how it is searched, and a Chinese set through the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from causalneg.cli import main
from causalneg.data import read_examples, write_dataset
from causalneg.data.schema import Document, Query
from causalneg.search import BM25, Collection
from causalneg.text.language import LANGUAGES, detect_language, find_language, split_signs
from common.errors import ConfigError
from tiny_retrieval import DOCUMENTS, TRAIN, causalneg, tiny_data

SAMPLES = {
    "english": "The cause of the disease is not known, and it was found that most of them recover with rest.",
    "german": "Die Ursache der Krankheit ist nicht bekannt, und das Fieber sinkt mit der Zeit von allein.",
    "french": "La cause de la maladie est inconnue, et les patients guérissent dans une semaine ou deux.",
    "spanish": "La causa de la enfermedad no se conoce, y los pacientes sanan con el tiempo y por una dieta.",
    "italian": "La causa della malattia non è nota, e il paziente guarisce nel tempo che serve per esso.",
    "portuguese": "A causa da doença não é conhecida, e os pacientes melhoram com o tempo em uma semana.",
    "dutch": "De oorzaak van de ziekte is niet bekend, en het herstel duurt voor velen een week of twee.",
    "swedish": "Orsaken till sjukdomen är inte känd, och de flesta blir friska av sig själva på en vecka.",
    "russian": "Причина болезни не известна, и многие пациенты выздоравливают на второй неделе, как и дети.",
    "greek": "Αιτία της νόσου δεν είναι γνωστή.",
    "arabic": "سبب المرض غير معروف حتى الآن.",
    "hindi": "रोग का कारण ज्ञात नहीं है।",
    "korean": "질병의 원인은 알려져 있지 않다.",
    "chinese": "这种病的原因尚不清楚,多数患者会康复。COVID-19",
    "japanese": "この病気の原因はまだ分かっていない。",
    "thai": "ยังไม่ทราบสาเหตุของโรค",
    "vietnamese": "Nguyên nhân của bệnh là không rõ và các bệnh nhân được chữa trong một tuần cho khỏe.",
}

FISH = {  # made up: each text has one subject, and words that it shares with others
    "d0": "狐狸住在山洞里,夜里出来找食物。",
    "d1": "猫头鹰住在谷仓里,白天睡觉。",
    "d2": "蜜蜂在蜂房里酿蜂蜜,夏天最忙。",
    "d3": "鳕鱼在北方的冷海里游泳。",
    "d4": "榆树长在小山的南坡上。",
    "d5": "橡树在公园里,秋天落叶。",
    "d6": "狐狸的毛在冬天变厚。",
    "d7": "蜂蜜在厨房里用来做蛋糕。",
}
ASKED = {
    "q0": ("狐狸夜里吃什么食物", "d0"), "q1": ("什么鸟住在谷仓里", "d1"), "q2": ("谁酿蜂蜜", "d2"),
    "q3": ("哪种鱼在冷海里", "d3"), "q4": ("榆树长在哪里", "d4"), "q5": ("什么树秋天落叶", "d5"),
}  # fmt: skip


@pytest.fixture(scope="module")
def chinese(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chinese") / "zoo"
    documents = [Document(id=id, text=text) for id, text in FISH.items()]
    queries = [Query(id=id, text=text) for id, (text, _) in ASKED.items()]
    judged = {id: {gold: 1} for id, (_, gold) in ASKED.items()}
    write_dataset(folder, documents, queries, {"train": judged, "test": judged})
    return folder


@pytest.mark.parametrize("name", SAMPLES)
def test_languages_are_detected(name: str) -> None:
    assert detect_language([SAMPLES[name]] * 3).language.name == name


def test_english_is_taken_where_nothing_speaks_for_another() -> None:
    for texts in (
        [],
        [""],
        ["12 345"],
        ["zinc finger nuclease"],
        ["Los Angeles de la Cruz, the city of film"],
    ):
        assert detect_language(texts).language.name == "english"
    mixed = [SAMPLES["english"]] * 6 + [SAMPLES["chinese"]]
    assert detect_language(mixed).language.name == "english"
    assert detect_language([d.content for d in DOCUMENTS]).language.name == "english"


def test_signs_are_split_into_characters_and_pairs() -> None:
    assert split_signs("爬华山 COVID a19") == ["爬", "华", "山", "爬华", "华山", "covid", "a19"]
    assert split_signs("山、x") == ["山"]
    with pytest.raises(ConfigError, match="language 'chinse' is not known; did you mean 'chinese'"):
        find_language("chinse")
    assert find_language("ZH") is LANGUAGES["chinese"]


def test_english_is_searched_as_ever() -> None:
    texts = [d.content for d in DOCUMENTS]
    plain, detected = BM25(texts), BM25.build(Collection(texts))
    asked = ["the red foxes of dens", "which owl is blue"]
    for one, other in zip(plain.search(asked, 5), detected.search(asked, 5), strict=True):
        assert one.tolist() == other.tolist()


def test_stems_and_stop_words_are_those_of_the_language() -> None:
    texts = ["Die Katzen schlafen.", "Der Hund bellt."]
    german = BM25.build(Collection(texts, language="de"))
    assert german.search(["die Katze", "die"], 1)[1].tolist() == [[0], [-1]]
    other = BM25.build(Collection(texts, language="other"))
    assert other.search(["die Katze", "Katze"], 1)[1].tolist() == [[0], [-1]]  # by "die", not by its stem
    hindi = BM25.build(Collection(["हिन्दी भाषा", "रोग"], language="hindi"))
    assert hindi.search(["हिन्दी", "ह"], 1)[1].tolist() == [[0], [-1]]  # vowel signs do not end a word


def test_scores_of_chinese_texts_are_those_of_the_formula() -> None:
    """By hand: two texts of one pair each; N = 2, n = 1, |d| = mean, f = 1."""
    import math

    found = BM25(["华山", "黄河"], signs=True, stem=None, stopwords=None).search(["华山"], 2)
    idf = math.log(1 + (2 - 1 + 0.5) / (1 + 0.5))
    assert found[1].tolist() == [[0, -1]]
    assert float(found[0][0, 0]) == pytest.approx(3 * idf / (1 + 0.9), rel=1e-6)  # 华, 山, 华山


def test_a_chinese_set_is_mined_evaluated_and_trained_on(chinese: Path, tmp_path: Path) -> None:
    evaluated = causalneg("evaluate", "--bm25", "--data", chinese, "--out", tmp_path, "--quiet")
    assert "the corpus reads as chinese: BM25 by characters and pairs of characters" in evaluated.stderr
    measured = json.loads((tmp_path / "eval" / "zoo-test" / "metrics.json").read_text())
    assert measured["metrics"]["ndcg@10"] > 0.95
    assert measured["retriever"] == {"search": "bm25", "language": "chinese"}
    mined = tmp_path / "mined.jsonl"
    causalneg("mine", chinese, mined, "--count", 2, "--quiet")
    negatives = {e.query.id: [n.document_id for n in e.negatives] for e in read_examples(mined)}
    assert all(negatives.values())
    assert negatives["q0"][0] == "d6"  # the other text on foxes
    config = tmp_path / "train.yaml"
    config.write_text(json.dumps({"data": str(chinese), "out": str(tmp_path / "runs")}))
    trained = causalneg("train", config, f"sets=[{{path: {mined}, count: 2}}]", *TRAIN)
    assert "trained is " in trained.stderr
    given = causalneg(
        "evaluate", "--bm25", "--data", chinese, "--out", tmp_path / "en", "--quiet", "--language", "english"
    )
    assert "queries match no document at all" in given.stderr


def test_rules_write_english_alone(chinese: Path, tmp_path: Path) -> None:
    mined = tmp_path / "mined.jsonl"
    causalneg("mine", chinese, mined, "--count", 1, "--quiet")
    refused = CliRunner().invoke(main, ["generate", str(chinese), str(mined), str(tmp_path / "out.jsonl")])
    assert refused.exit_code == 2
    assert "writer 'rules' writes English alone, and the corpus reads as chinese" in refused.stderr
    said = causalneg("verify", chinese, mined, tmp_path / "out.jsonl").stderr
    assert "the verifier's checks of names, dates, stems and function words are for English" in said
    english = tiny_data(tmp_path / "english")
    causalneg("mine", english, mined, "--count", 1, "--quiet")
    assert "for English" not in causalneg("verify", english, mined, tmp_path / "out.jsonl").stderr


def test_the_chinese_case_has_hits(shared: Path, tmp_path: Path) -> None:
    case = shared / "cases" / "retrieval" / "04-chinese-bm25" / "c05"
    causalneg("evaluate", "--bm25", "--data", case, "--out", tmp_path, "--quiet")
    (kept,) = tmp_path.rglob("metrics.json")
    assert json.loads(kept.read_text())["metrics"]["ndcg@10"] > 0.6
    mined = tmp_path / "x.jsonl"
    causalneg("mine", case, mined, "--count", 2, "--quiet")
    assert any(example.negatives for example in read_examples(mined))
