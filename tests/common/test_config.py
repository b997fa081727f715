"""Configs: every type, every mistake at once, exact copies through YAML."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from common.config import config_hash, load, read_yaml, save, to_dict, to_yaml
from common.errors import ConfigError


@dataclass(kw_only=True)
class Optimiser:
    lr: float = 1e-3
    name: Literal["adam", "sgd"] = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    steps: int | None = None

    def __post_init__(self) -> None:
        mistakes = []
        if self.lr <= 0:
            mistakes.append(f"lr: must be above 0, got {self.lr}")
        if self.name == "sgd" and self.steps is None:
            mistakes.append("sgd needs steps")
        ConfigError.raise_if(mistakes)


@dataclass(kw_only=True)
class Layer:
    width: int
    switch: Literal["on", "off"] = "off"


@dataclass(kw_only=True)
class Settings:
    data: Path
    name: str = "run"
    shuffle: bool = True
    hidden: list[int] = field(default_factory=lambda: [64, 32])
    buckets: tuple[tuple[int, int | None], ...] = ((0, 50), (50, None))
    limit: int | Literal["all"] = "all"
    weights: dict[str, float] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)
    optimiser: Optimiser = field(default_factory=Optimiser)
    layer: Layer | None = None
    anything: Any = None


def mistakes(path: Path | None, *overrides: str, base: dict[str, Any] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(Settings, path, overrides, base)
    return list(caught.value.messages)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


def test_every_type(file: Path) -> None:
    file.write_text(
        "data: some/where\nname: 2024\nshuffle: false\nhidden: [128, 1e2]\nbuckets: [[0, 100], [100, null]]\n"
        "limit: 5\nweights: {a: 1, b: 1e-3}\nlayers:\n  one: {width: 3, switch: on}\n"
        "optimiser: {lr: 1e-4, name: sgd, betas: [0.5, 1], steps: 10}\nlayer: {width: 7}\nanything: [1, x]\n"
    )
    config = load(Settings, file)
    assert config == Settings(
        data=Path("some/where"),
        name="2024",
        shuffle=False,
        hidden=[128, 100],
        buckets=((0, 100), (100, None)),
        limit=5,
        weights={"a": 1.0, "b": 0.001},
        layers={"one": Layer(width=3, switch="on")},
        optimiser=Optimiser(lr=1e-4, name="sgd", betas=(0.5, 1.0), steps=10),
        layer=Layer(width=7),
        anything=[1, "x"],
    )
    assert isinstance(config.weights["a"], float)


def test_overrides_win_over_file_and_file_over_base(file: Path) -> None:
    file.write_text("data: from-file\noptimiser:\n  lr: 0.1\n")
    config = load(
        Settings,
        file,
        ["optimiser.lr=1e-2", "hidden=[1, 2]", "name=a=b", "buckets[0][1]=7"],
        base={
            "data": "from-base",
            "shuffle": False,
            "optimiser": {"lr": 5.0, "steps": 3},
            "buckets": [[0, 1], [1, None]],
        },
    )
    assert (config.data, config.shuffle) == (Path("from-file"), False)
    assert config.optimiser == Optimiser(lr=0.01, steps=3)
    assert (config.hidden, config.name, config.buckets) == ([1, 2], "a=b", ((0, 7), (1, None)))


def test_interpolation(file: Path) -> None:
    file.write_text("data: x/${name}\nname: a\n")
    assert load(Settings, file, ["name=b"]).data == Path("x/b")
    file.write_text("data: ${nam}\n")
    assert mistakes(file) == [f"{file}: data: Interpolation key 'nam' not found"]


def test_two_mistakes_at_once_are_both_shown_with_the_nearest_name(file: Path) -> None:
    file.write_text("data: x\nhiden: [1]\noptimiser: {name: adan}\n")
    assert mistakes(file) == [
        f"{file}: hiden: unknown key; did you mean 'hidden'?",
        f"{file}: optimiser.name: 'adan' is not one of 'adam', 'sgd'; did you mean 'adam'?",
    ]


def test_all_kinds_of_mistakes_at_once(file: Path) -> None:
    file.write_text(
        "name: 1.5\nshuffle: off\nhidden: 3\nbuckets: [[0, 1, 2]]\nlimit: many\nweights: {a: b}\nlr: 1\n"
        "layers: {one: {}}\noptimiser: {lr: -1, steps: 2.5}\nlayer: 3\n"
    )
    assert mistakes(file, "shufle=true", "novalue", "anything=[1", "optimiser.betas=[.nan, 1]") == [
        "command line: 'novalue' is not of the form key=value",
        "command line: anything: line 1, column 3: not valid YAML: "
        "expected ',' or ']', but got '<stream end>'",
        f"{file}: lr: unknown key; did you mean 'optimiser.lr'?",
        "command line: shufle: unknown key; did you mean 'shuffle'?",
        f"{file}: data: missing; give a path",
        f"{file}: name: expected text, got 1.5; put it in quotes",
        f"{file}: shuffle: expected true or false, got 'off'",
        f"{file}: hidden: expected a list, got 3",
        f"{file}: buckets[0]: expected 2 values, got [0, 1, 2]",
        f"{file}: limit: expected a whole number or one of 'all', got 'many'",
        f"{file}: weights.a: expected a number, got 'b'",
        f"{file}: layers.one.width: missing; give a whole number",
        "command line: optimiser.betas[0]: expected a number, got nan",
        f"{file}: optimiser.steps: expected a whole number or null, got 2.5",
        f"{file}: optimiser.lr: must be above 0, got -1.0",
        f"{file}: layer: expected keys and values, got 3",
    ]


def test_a_message_of_post_init_keeps_the_path(file: Path) -> None:
    file.write_text("data: x\noptimiser: {name: sgd, lr: 0}\n")
    assert mistakes(file) == [
        f"{file}: optimiser.lr: must be above 0, got 0.0",
        f"{file}: optimiser: sgd needs steps",
    ]
    assert mistakes(None, "data=x", "optimiser.lr=0") == [
        "command line: optimiser.lr: must be above 0, got 0.0"
    ]


def test_duplicate_keys_are_mistakes_beside_others(file: Path) -> None:
    file.write_text("data: x\nname: a\noptimiser:\n  lr: 1\n  lr: 2\nname: b\nhiden: 1\n")
    assert mistakes(file) == [
        f"{file}: optimiser.lr: the key stands here twice (again on line 5); keep one",
        f"{file}: name: the key stands here twice (again on line 6); keep one",
        f"{file}: hiden: unknown key; did you mean 'hidden'?",
    ]


def test_a_value_left_open_is_asked_for(file: Path) -> None:
    file.write_text("data: ???\n")
    assert mistakes(file) == [f"{file}: data: a value is needed here"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1", "line 1, column 6: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("- 1\n- 2\n", "expected `key: value` lines, got [1, 2]"),
        ("just text", "expected `key: value` lines, got 'just text'"),
        ("data: !!python/object/apply:os.getcwd []", "not valid YAML: could not determine a constructor"),
        ("a: &b [*b]", "not valid YAML"),
    ],
)
def test_a_file_that_holds_no_config(file: Path, content: str, message: str) -> None:
    file.write_text(content)
    assert any(message in line and line.startswith(str(file)) for line in mistakes(file))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    assert mistakes(missing, "data=x") == [f"{missing}: there is no such config file"]
    assert mistakes(tmp_path, "data=x") == [f"{tmp_path}: this is a folder; give the YAML file in it"]
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert mistakes(binary, "data=x") == [f"{binary}: not a text file in UTF-8"]
    with pytest.raises(ConfigError, match="there is no such config file"):
        read_yaml(missing)


def test_an_empty_file_is_an_empty_config(file: Path) -> None:
    file.write_text("# nothing yet\n")
    assert load(Settings, file, ["data=x"]) == Settings(data=Path("x"))
    assert read_yaml(file) == {}


def test_an_override_below_a_plain_value(file: Path) -> None:
    assert mistakes(None, "data=x", "name.first=a") == [
        'command line: name: expected text, got {"first": "a"}'
    ]


TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"], exclude_characters="$\ufeff\u2028\u2029")
)
AWKWARD = st.sampled_from(
    ["off", "yes", "1e-3", "null", "~", "010", "2024-01-01", "1_0", ".5", "=", "<<", "0x1"]
)


@given(
    name=(TEXT | AWKWARD).filter(lambda text: text != "???"),
    hidden=st.lists(st.integers()),
    weights=st.dictionaries(AWKWARD | TEXT.filter(bool), st.floats(allow_nan=False)),
    limit=st.integers() | st.just("all"),
    lr=st.floats(min_value=1e-300, allow_infinity=False),
)
def test_yaml_gives_the_same_config_back(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    hidden: list[int],
    weights: dict[str, float],
    limit: Any,
    lr: float,
) -> None:
    config = Settings(
        data=Path("a/b"),
        name=name,
        hidden=hidden,
        weights=weights,
        limit=limit,
        optimiser=Optimiser(lr=lr),
        layer=Layer(width=2),
    )
    path = tmp_path_factory.getbasetemp() / "round.yaml"
    save(config, path)
    assert load(Settings, path) == config
    assert load(Settings, None, base=to_dict(config)) == config
    assert config_hash(load(Settings, path)) == config_hash(config)


def test_other_yaml_readers_see_the_same_text() -> None:
    text = to_yaml(Settings(data=Path("x"), name="off", layer=Layer(width=1)))
    content = yaml.safe_load(text)
    assert (content["name"], content["layer"]["switch"], content["optimiser"]["lr"]) == ("off", "off", 1e-3)


def test_the_hash_sees_values_not_their_order() -> None:
    config = Settings(data=Path("x"), weights={"a": 1.0, "b": 2.0})
    turned = Settings(data=Path("x"), weights={"b": 2.0, "a": 1.0})
    other = Settings(data=Path("x"), weights={"a": 1.0, "b": 2.5})
    assert config_hash(config) == config_hash(turned) != config_hash(other)
    assert len(config_hash(config)) == 12
    assert config_hash(config, ignore=["weights.b", "no.such.key"]) == config_hash(
        other, ignore=["weights.b"]
    )
    assert config_hash(to_dict(config)) == config_hash(config)


def test_the_hash_is_the_same_on_every_machine() -> None:
    # printf '{"a":[1,2.5],"b":null}' | sha256sum
    assert config_hash({"b": None, "a": (1, 2.5)}) == "f66b2c50ccae"


def test_only_configs_have_a_dict() -> None:
    with pytest.raises(TypeError, match="a config is a dataclass or a mapping, got int"):
        to_dict(3)


def test_infinity_is_a_number_and_nan_is_none() -> None:
    assert load(Settings, None, ["data=x", "weights={a: .inf}"]).weights == {"a": math.inf}
    assert mistakes(None, "data=x", "weights={a: .nan}") == [
        "command line: weights.a: expected a number, got nan"
    ]
