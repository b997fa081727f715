"""Components: a constructor's signature is its config, in YAML, in error lines, in the list of settings."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt, Lt

from common.config import Component, Registry, checked, load, read_component, settings, to_dict, to_yaml
from common.errors import ConfigError


class Shape:
    """What is drawn."""


class Square(Shape):
    """A square.

    Args:
        canvas: Where it is drawn.
        side: Length of a side, in points.
        filled: Whether it is filled. Needs a canvas
            with colours.
    """

    def __init__(self, *, canvas: str, side: Annotated[int, Ge(1)] = 3, filled: bool = False) -> None:
        if filled and side == 13:
            raise ValueError(f"side must not be 13 where filled, got {side}")
        self.canvas, self.side, self.filled = canvas, side, filled


class Ring(Shape):
    """A ring.

    Args:
        radius: Of the outer circle.
        hole: Share of it that is open.
        line: How it is drawn.
    """

    def __init__(
        self,
        *,
        radius: float,
        hole: Annotated[float, Gt(0), Lt(1)] | None = None,
        line: Literal["solid", "dashed"] = "solid",
    ) -> None:
        self.radius, self.hole, self.line = radius, hole, line


SHAPES: Registry[Shape] = Registry("shape", given={"canvas"})
SHAPES.add("square", Square)
SHAPES.add("ring", Ring)


@dataclass(kw_only=True)
class Drawing:
    """A drawing.

    Args:
        title: Its name.
        main: The shape in the middle.
        more: Further shapes.
        copies: Prints.
    """

    title: str
    main: Annotated[Component[Shape], SHAPES] = field(default=SHAPES.component("square", side=5))
    more: list[Annotated[Component[Shape], SHAPES]] = field(default_factory=list)
    copies: Annotated[int, Ge(1)] = 1


def mistakes(*overrides: str, renamed: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(Drawing, None, overrides, renamed=renamed)
    return [line.removeprefix("command line: ") for line in caught.value.messages]


def test_a_component_is_written_by_name_with_its_settings() -> None:
    drawing = load(
        Drawing, None, ["title=a", "main={name: ring, radius: 2}", "more=[{name: square}, ring]"][:2]
    )
    assert (drawing.main.name, drawing.main.options) == (
        "ring",
        {"radius": 2.0, "hole": None, "line": "solid"},
    )
    built = drawing.main.build(canvas="paper")
    assert isinstance(built, Ring)
    assert built.radius == 2.0


def test_settings_that_are_not_given_come_from_the_default_of_the_field() -> None:
    assert load(Drawing, None, ["title=a"]).main.options == {"side": 5, "filled": False}
    assert load(Drawing, None, ["title=a", "main.filled=true"]).main.options == {"side": 5, "filled": True}
    # Another component does not inherit them.
    assert load(Drawing, None, ["title=a", "more=[{name: square}]"]).more[0].options["side"] == 3


def test_every_mistake_in_a_component_is_named_at_once() -> None:
    assert mistakes(
        "title=a",
        "main={name: ring, hole: 1.5, radios: 2, line: dashd}",
        "more=[{name: squere}, {name: square, side: 0}, {name: square, side: 2.5}]",
        "copies=0",
    ) == [
        "main.radios: shape 'ring' has no such setting; did you mean 'main.radius'?",
        "main.radius: missing; give a number",
        "main.hole: must be below 1, got 1.5",
        "main.line: 'dashd' is not one of 'solid', 'dashed'; did you mean 'dashed'?",
        "more[0].name: there is no shape 'squere'; did you mean 'square'?",
        "more[1].side: must be at least 1, got 0",
        "more[2].side: expected a whole number, got 2.5",
        "copies: must be at least 1, got 0",
    ]


def test_parameters_that_code_passes_are_no_settings() -> None:
    assert mistakes("title=a", "main.canvas=x") == [
        "main.canvas: shape 'square' has no such setting; there are: main.side, main.filled"
    ]


def test_a_constructor_judges_what_no_range_can() -> None:
    drawing = load(Drawing, None, ["title=a", "main={side: 13, filled: true}"])
    with pytest.raises(ConfigError, match=r"^shape 'square': side must not be 13 where filled, got 13$"):
        drawing.main.build(canvas="paper")


def test_a_config_with_components_survives_yaml(tmp_path: Path) -> None:
    drawing = Drawing(title="a", main=SHAPES.component("ring", radius=1.5), more=[SHAPES.component("square")])
    assert to_dict(drawing)["main"] == {"name": "ring", "radius": 1.5, "hole": None, "line": "solid"}
    path = tmp_path / "drawing.yaml"
    path.write_text(to_yaml(drawing))
    assert load(Drawing, path) == drawing
    assert load(Drawing, None, base=to_dict(drawing)) == drawing
    assert load(Drawing, path, ["main.radius=2"]) != drawing


def test_an_old_key_names_the_new_one() -> None:
    assert mistakes("title=a", "shape=ring", renamed={"shape": "main.name"}) == [
        "shape: this setting is now main.name"
    ]


def test_names_are_taken_once_and_lazy_constructors_imported_when_asked_for() -> None:
    registry: Registry[object] = Registry("thing")
    registry.add("path", "pathlib:PurePath.joinpath")
    with pytest.raises(ValueError, match="already a thing 'path'"):
        registry.add("path", object)
    assert registry["path"] is __import__("pathlib").PurePath.joinpath
    with pytest.raises(ConfigError, match="there is no thing 'paht'; did you mean 'path'"):
        registry["paht"]


def test_the_list_of_settings_names_key_type_default_and_meaning() -> None:
    listed = {s.key: (s.kind, s.default, s.meaning) for s in settings(Drawing)}
    assert listed["title"] == ("text", "required", "Its name.")
    assert listed["main.name"] == ("one of square, ring", "square", "The shape in the middle.")
    assert listed["main[square].side"] == ("a whole number, at least 1", "3", "Length of a side, in points.")
    assert listed["main[square].filled"][2] == "Whether it is filled."
    assert listed["main[ring].hole"] == (
        "a number or null, above 0, below 1",
        "null",
        "Share of it that is open.",
    )
    assert listed["more[].name"][1] == "[]"
    assert listed["copies"] == ("a whole number, at least 1", "1", "Prints.")
    assert "main[square].canvas" not in listed


@pytest.mark.parametrize("given", ["{name: ring, radius: 2}", {"name": "ring", "radius": 2}])
def test_a_component_stands_alone(given: object) -> None:
    found = read_component(SHAPES, given, "--shape", ["line=dashed"])
    assert (found.name, found.options) == ("ring", {"radius": 2.0, "hole": None, "line": "dashed"})


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("rign", "--shape: there is no shape 'rign'; did you mean 'ring'?"),
        ("{name: ring}", "--shape.radius: missing; give a number"),
        ("{name: ring, radius: 1, hole: 2}", "--shape.hole: must be below 1, got 2"),
        ("{name: ring, radius: 1", "--shape: line 1, column "),
        ("3", "--shape: expected {name: ..., ...}, got 3"),
    ],
)
def test_mistakes_in_a_component_that_stands_alone(given: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_component(SHAPES, given, "--shape")
    (message,) = caught.value.messages
    assert message.startswith(line)


@checked
@dataclass(frozen=True)
class Strip:
    length: Annotated[int, Ge(1)] = 1
    side: Literal["left", "right"] = "left"
    widths: tuple[Annotated[float, Gt(0)], ...] = ()
    plain: int = 0

    def __post_init__(self) -> None:
        if self.plain > 9:
            raise ConfigError("plain: is too large")


@checked
class Tape:
    def __init__(self, *, length: Annotated[int, Ge(1)], width: float | None = None) -> None:
        self.length, self.width = length, width


def test_constructors_check_their_own_annotations() -> None:
    assert Strip(3, widths=(0.5,), plain=-4).length == 3
    with pytest.raises(ConfigError) as caught:
        Strip(length=0, side="up", widths=(1.0, 0.0), plain=10)  # type: ignore[arg-type]
    assert caught.value.messages == (
        "length: must be at least 1, got 0",
        "side: 'up' is not one of 'left', 'right'",
        "widths[1]: must be above 0, got 0.0",
        "plain: is too large",
    )
    assert Tape(length=2).length == 2
    with pytest.raises(ValueError, match=r"^length must be at least 1, got 0$"):
        Tape(length=0)
    with pytest.raises(TypeError, match="missing"):
        Tape()  # type: ignore[call-arg]
    assert list(inspect.signature(Tape).parameters) == ["length", "width"]


def test_nothing_of_the_environment_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    path = tmp_path / "a.yaml"
    path.write_text("title: ${oc.env:SECRET}\ncopies: ${oc.decode:${oc.env:SECRET}}\n")
    with pytest.raises(ConfigError) as caught:
        load(Drawing, path, ["title=x-${oc.env:SECRET}"])
    lines = caught.value.messages
    assert lines[0] == (
        f"{path}: title: ${{oc.env:SECRET}} is not resolved; "
        "write the value itself (${other.key} may be used)"
    )
    assert lines[1].startswith(f"{path}: copies: ")
    assert lines[2].startswith("command line: title: ")
    assert "hunter2" not in str(caught.value)


def test_aliases_that_multiply_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"its aliases make [0-9,]+ values of it; at most 100,000 are read"):
        load(Drawing, path)
