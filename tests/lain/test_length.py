"""The method's parts by hand, its presets, and choices that make no model."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.config.typed import fields_of
from common.errors import ConfigError
from lain.length import (
    PRESETS,
    LengthAdapter,
    LengthConfig,
    LengthModulation,
    LengthOptions,
    LengthPrompt,
    LengthState,
    SpectralLengthEncoder,
    scale_length,
)
from lain.length.affine import Affine

WIDTH = 4


def fill(module: nn.Module, **weights: Any) -> None:
    """Set weights by dotted name (``__`` for a dot); all others to zero."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            value = weights.get(name.replace(".", "__"), 0.0)
            parameter.copy_(torch.as_tensor(value, dtype=parameter.dtype).expand_as(parameter))


def state_of(options: LengthOptions, lengths: list[int], width: int = WIDTH) -> LengthState:
    """The answers about some lengths, from an adapter as it starts."""
    torch.manual_seed(0)
    adapter = LengthAdapter(width=width, branches={"short": 6, "long": 6}, options=options).double()
    state = adapter(torch.tensor(lengths), torch.float64)
    assert isinstance(state, LengthState)
    return state


def as_is(value: Tensor) -> Affine:
    """A vector per sample that no layer has made."""
    return Affine(value, torch.eye(value.shape[1], dtype=value.dtype), value.new_zeros(value.shape[1]))


def answer(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


class TestScale:
    def test_log_and_raw(self) -> None:
        length = torch.tensor([0, 99, 999])
        log = scale_length(length, "log", torch.float64)
        assert log.tolist() == pytest.approx([0.0, math.log(100), math.log(1000)], rel=1e-15)
        assert scale_length(length, "raw", torch.float32).tolist() == [0.0, 99.0, 999.0]


class TestEncoder:
    def test_by_hand(self) -> None:
        """Width 2: the norm gives +-1, so e = W relu(+-1) + b."""
        encoder = SpectralLengthEncoder(width=2, hidden=2, frequencies=1, frequency_range=(1.0, 1.0)).double()
        assert encoder.frequency.tolist() == [1.0]
        fill(
            encoder,
            frequency=1.0,
            project__weight=torch.eye(2),
            norm__weight=1.0,
            mlp__0__weight=torch.eye(2),
            mlp__2__weight=torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
            mlp__2__bias=torch.tensor([10.0, 20.0]),
        )
        zero, quarter = encoder(torch.tensor([0.0, math.pi / 2], dtype=torch.float64)).value.tolist()
        one = 0.5 / math.sqrt(0.25 + 1e-5)  # [sin, cos] = [0, 1], then [1, 0]: centred to -+ 1/2
        assert zero == pytest.approx([10 + 2 * one, 20 + 4 * one], rel=1e-12)
        assert quarter == pytest.approx([10 + one, 20 + 3 * one], rel=1e-12)

    def test_frequencies_start_geometrically(self) -> None:
        encoder = SpectralLengthEncoder(width=2, hidden=2, frequencies=3, frequency_range=(0.1, 10.0))
        assert encoder.frequency.tolist() == pytest.approx([0.1, 1.0, 10.0], rel=1e-6)
        assert encoder.frequency.requires_grad

    def test_one_frequency(self) -> None:
        encoder = SpectralLengthEncoder(width=2, hidden=2, frequencies=1, frequency_range=(0.5, 2.0))
        assert encoder.frequency.tolist() == pytest.approx([0.5], rel=1e-6)

    def test_lengths_are_distinguished(self) -> None:
        torch.manual_seed(0)
        encoder = SpectralLengthEncoder(
            width=8, hidden=8, frequencies=16, frequency_range=(0.1, 10.0)
        ).double()
        lengths = torch.tensor([0, 1, 5, 50, 51, 100, 500, 1000])
        codes = encoder(scale_length(lengths, "log", torch.float64)).value
        apart = torch.cdist(codes, codes) + torch.eye(len(lengths))
        assert apart.min() > 1e-3


class TestAffine:
    @pytest.mark.parametrize("several", [(), (2,)])
    def test_a_matrix_on_it(self, several: tuple[int, ...]) -> None:
        torch.manual_seed(0)
        affine = Affine(torch.randn(3, 2), torch.randn(*several, 5, 2), torch.randn(*several, 5))
        wanted = torch.einsum("...wh,ih->i...w", affine.weight, affine.hidden) + affine.bias
        torch.testing.assert_close(affine.value, wanted)
        matrix = torch.randn(4, 5)
        torch.testing.assert_close(affine.through(matrix).value, wanted @ matrix.T)


class TestPrompt:
    def test_by_hand(self) -> None:
        prompt = LengthPrompt(width=2, prompts=2, hidden=2, start="random").double()
        fill(prompt, mlp__0__weight=torch.eye(2), mlp__2__weight=torch.arange(8.0).reshape(4, 2))
        out = prompt(as_is(torch.tensor([[1.0, -5.0]], dtype=torch.float64)))
        assert out.value.tolist() == [[[0.0, 2.0], [4.0, 6.0]]]

    def test_starts(self) -> None:
        code = as_is(torch.randn(3, WIDTH))
        zero = LengthPrompt(width=WIDTH, prompts=2, hidden=WIDTH, start="zero")(code)
        assert torch.equal(zero.value, torch.zeros(3, 2, WIDTH))
        some = LengthPrompt(width=WIDTH, prompts=2, hidden=WIDTH, start="random")(code)
        assert some.value.abs().min() > 0

    def test_zero_start_learns(self) -> None:
        prompt = LengthPrompt(width=WIDTH, prompts=2, hidden=WIDTH, start="zero")
        prompt(as_is(torch.randn(3, WIDTH))).value.sum().backward()
        gradient = prompt.get_parameter("mlp.2.weight").grad
        assert gradient is not None
        assert gradient.abs().max() > 0

    def test_offset(self) -> None:
        """A learned number that starts as said; without one there is no weight."""
        prompt = LengthPrompt(width=WIDTH, prompts=2, hidden=WIDTH, start="zero", offset=-3.0)
        assert isinstance(prompt.offset, nn.Parameter)
        assert prompt.offset.item() == -3.0
        assert LengthPrompt(width=WIDTH, prompts=2, hidden=WIDTH, start="zero").offset is None
        state = state_of(LengthOptions(prompts=2, prompt_offset=-3.0), [5])
        assert answer(state.prompt_offset).item() == -3.0
        assert state_of(LengthOptions(prompts=2), [5]).prompt_offset is None
        assert state_of(LengthOptions(prompt_offset=-3.0), [5]).prompt_offset is None


class TestModulation:
    def make(self, **options: Any) -> LengthModulation:
        return LengthModulation(width=2, attention=3, options=LengthOptions(**options)).double()

    def test_additive_by_hand(self) -> None:
        modulation = self.make(query="additive")
        fill(modulation, query_weight__weight=torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        query = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
        encoding = torch.tensor([[10.0, 20.0]], dtype=torch.float64)
        assert modulation.query(query, as_is(encoding)).tolist() == [[11.0, 22.0, 33.0]]

    def test_multiplicative_by_hand(self) -> None:
        modulation = self.make(query="multiplicative")
        fill(modulation, query_weight__weight=torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        query = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
        encoding = torch.tensor([[10.0, 20.0]], dtype=torch.float64)
        assert modulation.query(query, as_is(encoding)).tolist() == [[11.0, 42.0, 93.0]]

    @pytest.mark.parametrize("query", ["additive", "multiplicative"])
    def test_starts(self, query: str) -> None:
        x, encoding = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
        assert torch.equal(self.make(query=query).query(x, as_is(encoding)), x)
        changed = self.make(query=query, modulation_start="random").query(x, as_is(encoding))
        assert (changed - x).abs().min() > 0

    def test_switched_off_has_no_weights(self) -> None:
        assert not list(self.make().parameters())
        assert not list(self.make().buffers())


class TestTemperature:
    def test_short_is_softer(self) -> None:
        """Defaults: tau falls from nearly 1 + gamma at length 0 to 1, through 1 + gamma / 2 at L0."""
        state = state_of(LengthOptions(temperature="sigmoid"), [0, 100, 10**9])
        for branch in ("short", "long"):
            none, center, endless = answer(state.temperature(branch)).tolist()
            assert none == pytest.approx(1 + 101 / 102, rel=1e-6)  # sigmoid(log 101) = 101 / 102
            assert center == pytest.approx(1.5, rel=1e-6)
            assert endless == pytest.approx(1, rel=1e-6)

    @pytest.mark.parametrize(
        ("gamma", "beta", "center"), [(1.0, 1.0, 100.0), (2.0, 3.0, 20.0), (0.5, 0.1, 0.0)]
    )
    def test_by_hand(self, gamma: float, beta: float, center: float) -> None:
        options = LengthOptions(temperature="sigmoid", gamma=gamma, beta=beta, center=center)
        lengths = [0, 1, 20, 150, 1000]
        found = answer(state_of(options, lengths).temperature("short")).tolist()
        wanted = [1 + gamma / (1 + ((1 + n) / (1 + center)) ** beta) for n in lengths]
        assert found == pytest.approx(wanted, rel=1e-6)

    def test_limits(self) -> None:
        options = LengthOptions(temperature="sigmoid", gamma=3.0, beta=50.0)
        short, long = answer(state_of(options, [1, 10000]).temperature("long")).tolist()
        assert short == pytest.approx(4, rel=1e-6)
        assert long == pytest.approx(1, rel=1e-6)

    def test_raw_lengths(self) -> None:
        options = LengthOptions(temperature="sigmoid", scale="raw", positive=False, gamma=1.0, beta=0.01)
        found = answer(state_of(options, [0, 100, 300]).temperature("long")).tolist()
        wanted = [1 + 1 / (1 + math.exp(0.01 * (n - 100))) for n in (0, 100, 300)]
        assert found == pytest.approx(wanted, rel=1e-6)

    def test_positive_stays_positive(self) -> None:
        """Whatever the weights become, beta and gamma stay above zero: short is never sharper."""
        options = LengthOptions(temperature="sigmoid")
        modulation = LengthModulation(width=2, attention=2, options=options).double()
        lengths = torch.tensor([0, 10, 100, 1000])
        for weight in (-5.0, 0.0, 5.0):
            fill(modulation, temperature__weight=weight)
            tau = answer(modulation.divisor(lengths, scale_length(lengths, "log", torch.float64), None))
            assert (tau.diff() < 0).all()
            assert (tau > 1).all()

    def test_free_may_invert(self) -> None:
        options = LengthOptions(temperature="sigmoid", positive=False, gamma=-0.5)
        tau = answer(state_of(options, [0, 10**6]).temperature("long"))
        assert tau[0] < tau[1]

    def test_learned_center(self) -> None:
        fixed = LengthModulation(width=2, attention=2, options=LengthOptions(temperature="sigmoid"))
        learned = LengthModulation(
            width=2, attention=2, options=LengthOptions(temperature="sigmoid", learn_center=True)
        )
        assert {n for n, _ in fixed.named_buffers()} == {"temperature.center"}
        assert {n for n, _ in learned.named_parameters()} == {"temperature.center", "temperature.weight"}
        centers = fixed.get_buffer("temperature.center"), learned.get_parameter("temperature.center")
        for center in centers:
            assert center.item() == pytest.approx(math.log(101), rel=1e-6)

    def test_encoded(self) -> None:
        """tau = exp(w . e), neutral at first."""
        options = LengthOptions(temperature="encoded")
        assert answer(state_of(options, [0, 50, 5000]).temperature("long")).tolist() == [1.0] * 3
        modulation = LengthModulation(width=2, attention=2, options=options).double()
        fill(modulation, temperature__weight=torch.tensor([1.0, -0.5]))
        encoding = torch.tensor([[math.log(2), 0.0], [0.0, math.log(4)]], dtype=torch.float64)
        lengths = torch.tensor([1, 2])
        tau = answer(
            modulation.divisor(lengths, scale_length(lengths, "log", torch.float64), as_is(encoding))
        )
        assert tau.tolist() == pytest.approx([2, 0.5], rel=1e-12)

    def test_buckets(self) -> None:
        """One temperature a bucket, borders belonging to the longer one; all start at 1."""
        options = LengthOptions(temperature="bucket", buckets=(50, 100))
        modulation = LengthModulation(width=2, attention=2, options=options).double()
        lengths = torch.tensor([0, 49, 50, 99, 100, 5000])
        scaled = scale_length(lengths, "log", torch.float64)
        assert answer(modulation.divisor(lengths, scaled, None)).tolist() == [1.0] * 6
        fill(modulation, temperature__weight=torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64).log())
        found = answer(modulation.divisor(lengths, scaled, None)).tolist()
        assert found == pytest.approx([2, 2, 3, 3, 5, 5], rel=1e-12)


class TestAdapter:
    def test_off(self) -> None:
        state = state_of(LengthOptions(), [3])
        query = torch.randn(1, 6, dtype=torch.float64)
        assert state.query("long", query) is query
        assert state.prompts("long") is None
        assert state.key_shift("long") is None
        assert state.temperature("long") is None
        assert state.head() is None
        assert state.adapter.head_width == 0
        assert not state.adapter.state_dict()

    @pytest.mark.parametrize(
        ("options", "asked"),
        [
            ({"prompts": 2}, {"prompts"}),
            ({"query": "additive"}, {"query"}),
            ({"query": "multiplicative"}, {"query"}),
            ({"keys": True}, {"key_shift"}),
            ({"temperature": "sigmoid"}, {"temperature"}),
            ({"temperature": "encoded"}, {"temperature"}),
            ({"temperature": "bucket"}, {"temperature"}),
            ({"head": "loglength"}, {"head"}),
            ({"head": "encoding"}, {"head"}),
            ({"head": "film"}, {"head"}),
        ],
    )
    def test_each_switch_alone(self, options: dict[str, Any], asked: set[str]) -> None:
        state = state_of(LengthOptions(**options, modulation_start="random"), [3, 300])
        query = torch.randn(2, 6, dtype=torch.float64)
        on = {"query"} if state.query("long", query) is not query else set()
        for name in ("prompts", "key_shift", "temperature"):
            on |= {name} if getattr(state, name)("long") is not None else set()
        assert on | ({"head"} if state.head() is not None else set()) == asked
        plain = {"temperature": "sigmoid"}, {"temperature": "bucket"}, {"head": "loglength"}
        needs_encoding = options not in plain
        assert (state.adapter.encoder is not None) == needs_encoding

    def test_shapes(self) -> None:
        state = state_of(LengthOptions(prompts=3, query="additive", keys=True, head="film"), [1, 2, 3, 4, 5])
        assert answer(state.prompts("short")).shape == (5, 3, WIDTH)
        assert answer(state.key_shift("short")).shape == (5, 6)
        assert answer(state.head()).shape == (5, WIDTH)
        assert state.adapter.head_width == WIDTH

    def test_branches(self) -> None:
        """Only the named branch is conditioned; branches have weights of their own, prompts are common."""
        options = LengthOptions(prompts=1, temperature="sigmoid", query="additive", branches=("long",))
        state = state_of(options, [3])
        query = torch.randn(1, 6, dtype=torch.float64)
        assert state.prompts("short") is None
        assert state.temperature("short") is None
        assert state.query("short", query) is query
        assert state.prompts("long") is not None
        assert list(state.adapter.modulation) == ["long"]
        both = state_of(LengthOptions(prompts=1, keys=True, modulation_start="random"), [3])
        assert both.prompts("short") is both.prompts("long")
        assert not torch.equal(answer(both.key_shift("short")), answer(both.key_shift("long")))

    def test_branch_that_compares_nothing_takes_prompts_only(self) -> None:
        options = LengthOptions(prompts=1, query="additive", keys=True, temperature="sigmoid")
        adapter = LengthAdapter(width=WIDTH, branches={"hash": 0}, options=options)
        state = adapter(torch.tensor([5]), torch.float32)
        assert state.prompts("hash") is not None
        assert state.key_shift("hash") is None
        assert state.temperature("hash") is None
        assert not list(adapter.modulation)

    def test_log_length_for_the_head(self) -> None:
        found = answer(state_of(LengthOptions(head="loglength"), [0, 100, 1000]).head())
        wanted = [math.log(1 / 101), 0, math.log(1001 / 101)]
        assert found[:, 0].tolist() == pytest.approx(wanted, rel=1e-12)

    def test_unknown_branch(self) -> None:
        options = LengthOptions(branches=("left", "long", "right"))
        line = r"length\.branches: no branch left, right; this backbone has long"
        with pytest.raises(ConfigError, match=line):
            LengthAdapter(width=2, branches={"long": 2}, options=options)


class TestOptions:
    def test_every_option_can_be_set_on_top_of_a_preset(self) -> None:
        """The config has the options' names and meanings, each of them optional."""
        known = fields_of(LengthConfig)
        assert list(known) == ["preset", *(f.name for f in fields(LengthOptions))]
        assert all(setting.meaning for setting in known.values())
        assert known["prompts"].meaning.startswith("Number k of prompt vectors")

    def test_an_unknown_temperature_names_the_nearest(self) -> None:
        with pytest.raises(ConfigError, match="no temperature 'sigmod'; did you mean 'sigmoid'"):
            LengthOptions(temperature="sigmod")

    def test_defaults_are_all_off(self) -> None:
        assert LengthOptions() == LengthOptions(**PRESETS["base"])
        assert not LengthOptions().encoded

    @pytest.mark.parametrize("preset", list(PRESETS))
    def test_every_preset_resolves(self, preset: Any) -> None:
        assert LengthConfig(preset).resolve() == LengthOptions(**PRESETS[preset])

    def test_presets_mean_what_they_say(self) -> None:
        options = {name: LengthOptions(**fields) for name, fields in PRESETS.items()}
        full = options["lain"]
        assert (full.prompts, full.query, full.temperature) == (2, "additive", "sigmoid")
        assert (full.scale, full.keys) == ("log", False)
        assert (full.prompt_query, full.prompt_start) == ("plain", "zero")
        published = options["lain-published"]
        assert (published.scale, published.keys, published.prompt_query) == ("raw", True, "modulated")
        assert (published.prompt_start, published.modulation_start) == ("random", "random")
        assert not published.positive
        assert options["lain-noprompt"].prompts == 0
        assert options["lain-notemperature"].temperature == "none"
        assert options["lain-noquery"].query == "none"
        for name, part in (("noprompt", "prompts"), ("notemperature", "temperature"), ("noquery", "query")):
            ablated = options[f"lain-{name}"]
            different = {f for f in vars(full) if getattr(full, f) != getattr(ablated, f)}
            assert different == {part}
        for name in ("loglength", "bucket-temperature", "temperature-loglength"):
            assert not options[name].encoded
        assert options["temperature-loglength"].temperature == "sigmoid"
        assert options["temperature-loglength"].head == options["loglength"].head == "loglength"
        assert options["bucket-temperature"].temperature == "bucket"

    def test_fields_on_top_of_a_preset(self) -> None:
        options = LengthConfig("lain", prompts=0, gamma=2.0, branches=("long",)).resolve()
        assert (options.prompts, options.gamma, options.branches) == (0, 2.0, ("long",))
        assert options.query == PRESETS["lain"]["query"]

    @pytest.mark.parametrize(
        ("wrong", "line"),
        [
            ({"frequencies": 0}, "frequencies: must be at least 1, got 0"),
            ({"prompts": -1}, "prompts: must be at least 0, got -1"),
            (
                {"frequency_range": (0.0, 1.0)},
                "frequency_range: must rise from above 0, got 0.0 to 1.0",
            ),
            (
                {"frequency_range": (2.0, 1.0)},
                "frequency_range: must rise from above 0, got 2.0 to 1.0",
            ),
            (
                {"frequency_range": (1.0, math.inf)},
                "frequency_range: must rise from above 0, got 1.0 to inf",
            ),
            ({"center": math.inf}, "center: must be finite, got inf"),
            ({"gamma": 0.0}, "gamma: gamma and beta must be positive, got 0.0 and 1.0"),
            ({"beta": -1.0}, "gamma: gamma and beta must be positive, got 1.0 and -1.0"),
            ({"center": -1.0}, "center: must be at least 0, got -1.0"),
            ({"buckets": (50, 50)}, "buckets: must rise from at least 1, got [50, 50]"),
            ({"buckets": (0, 50)}, "buckets: must rise from at least 1, got [0, 50]"),
        ],
    )
    def test_values_that_make_no_model(self, wrong: dict[str, Any], line: str) -> None:
        for make in (LengthOptions, LengthConfig):
            with pytest.raises(ConfigError) as caught:
                make(**wrong)
            assert caught.value.messages == (line,)

    def test_two_mistakes_at_once(self) -> None:
        with pytest.raises(ConfigError) as caught:
            LengthOptions(prompts=-2, center=-1.0)
        assert len(caught.value.messages) == 2
        assert "prompts" in caught.value.messages[0]
        assert "center" in caught.value.messages[1]

    def test_free_gamma_and_beta(self) -> None:
        assert LengthOptions(positive=False, gamma=-1.0, beta=0.0).gamma == -1.0
