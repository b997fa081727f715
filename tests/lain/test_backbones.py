"""Each backbone, with and without the length, against tests/reference.py; and what must never change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.errors import ConfigError
from lain.backbones import BACKBONES
from lain.backbones.din import Dice
from lain.data.batch import Batch
from lain.data.schema import Feature
from lain.heads import HEADS
from lain.layers.embedding import FeatureEmbedding
from lain.length import PRESETS, LengthConfig, LengthOptions
from lain.model import CTRModel, Output
from lain.ops.linear import _SpanLinear
from reference import Reference, Sample, Sizes
from small_model import (
    DIM,
    FEATURES,
    HOURS,
    ITEM_FEATURES,
    ITEMS,
    SAMPLES,
    USERS,
    WIDTH,
    make_batch,
    make_model,
    stir,
)

all_backbones = pytest.mark.parametrize("name", list(BACKBONES))
all_presets = pytest.mark.parametrize("preset", list(PRESETS))


def reference_of(model: CTRModel, name: str) -> tuple[Reference, dict[str, Tensor]]:
    """The reference with a model's weights, and those weights."""
    weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
    parameters = {k for k, _ in model.named_parameters()}
    for key in parameters:
        weights[key].requires_grad_()
    attention = getattr(model.backbone, "short", None)
    sizes = Sizes(
        short_length=getattr(model.backbone, "short_length", 1),
        top_k=getattr(model.backbone, "top_k", 1),
        heads=attention.heads if attention is not None else 1,
        hashes=getattr(model.backbone, "hashes", 1),
        hash_bits=getattr(model.backbone, "hash_bits", 1),
        dice=any(isinstance(module, Dice) for module in model.modules()),
        training=model.training,
    )
    reference = Reference(
        name,
        weights,
        model.length.options,
        item_features=ITEM_FEATURES,
        context_features=("user_id", "hour"),
        sizes=sizes,
    )
    return reference, {key: weights[key] for key in parameters}


def options_of(**choices: Any) -> LengthOptions:
    """Options from names that a test runs through."""
    return LengthOptions(**choices)


def mixture(logit: Tensor, auxiliary: Tensor | None) -> Tensor:
    """One number that depends on every answer, each with a weight of its own."""
    numbers = logit if auxiliary is None else torch.cat([logit, auxiliary])
    return (numbers * torch.linspace(0.5, 1.5, len(numbers), dtype=numbers.dtype)).sum()


def gradients_of(number: Tensor, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of a number; zeros where it does not depend on a weight."""
    found = torch.autograd.grad(number, list(weights.values()), materialize_grads=True)
    return dict(zip(weights, found, strict=True))


def assert_equals_reference(model: CTRModel, name: str, samples: Sequence[Sample], batch: Batch) -> Reference:
    """Values and all gradients of the fast model and of the reference, to 1e-9."""
    reference, weights = reference_of(model, name)
    logit, auxiliary = reference(samples)
    output = model(batch)
    torch.testing.assert_close(output.logit, logit, rtol=1e-9, atol=1e-12)
    assert (output.auxiliary is None) == (auxiliary is None)
    if output.auxiliary is not None and auxiliary is not None:
        torch.testing.assert_close(output.auxiliary, auxiliary, rtol=1e-9, atol=1e-12)
    wanted = gradients_of(mixture(logit, auxiliary), weights)
    found = gradients_of(mixture(output.logit, output.auxiliary), dict(model.named_parameters()))
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for key, expected in wanted.items():
        gradient = found[key]
        bound = 1e-9 * float(expected.abs().max()) + 1e-12 * largest
        off = float((gradient - expected).abs().max())
        assert off <= bound, f"gradient of {key} is off by {off}, of {float(expected.abs().max())}"
    return reference


def answers(model: CTRModel, samples: Sequence[Sample], **how: bool) -> Output:
    with torch.no_grad():
        output = model(make_batch(samples, **how))
    assert isinstance(output, Output)
    return output


@st.composite
def ragged_samples(draw: st.DrawFn) -> list[Sample]:
    """Rows of a few users, each cut at the same maximum length; users' histories are shared."""
    item = st.integers(1, ITEMS - 1)
    users = draw(st.lists(st.lists(item, max_size=11), min_size=1, max_size=USERS))
    max_length = draw(st.integers(1, 11))
    samples = []
    for _ in range(draw(st.integers(1, 6))):
        user = draw(st.integers(0, len(users) - 1))
        end = draw(st.integers(0, len(users[user])))
        history = tuple(users[user][max(0, end - max_length) : end])
        length = end + draw(st.sampled_from([0, 0, 30, 100, 500]))
        context = {"user_id": user, "hour": draw(st.integers(0, HOURS - 1))}
        samples.append(Sample(history, draw(item), length, context))
    return samples


length_choices: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "scale": st.sampled_from(["log", "raw"]),
        "frequencies": st.integers(1, 3),
        "prompts": st.integers(0, 3),
        "prompt_query": st.sampled_from(["plain", "modulated"]),
        "query": st.sampled_from(["none", "additive", "multiplicative"]),
        "keys": st.booleans(),
        "prompt_offset": st.sampled_from([0.0, -3.0]),
        "temperature": st.sampled_from(["none", "sigmoid", "encoded", "bucket"]),
        "positive": st.booleans(),
        "learn_center": st.booleans(),
        "head": st.sampled_from(["none", "loglength", "encoding", "film"]),
        "buckets": st.sampled_from([(), (2,), (1, 50, 100)]),
        "branches": st.sampled_from([(), ("short",), ("long",), ("short", "long")]),
    }
)


class TestReference:
    @all_backbones
    @settings(max_examples=40)
    @given(
        samples=ragged_samples(),
        choices=length_choices,
        heads=st.sampled_from([1, 2]),
        shared=st.booleans(),
        seed=st.integers(0, 99),
    )
    def test_any_shape_and_any_option(
        self,
        name: str,
        samples: list[Sample],
        choices: dict[str, Any],
        heads: int,
        shared: bool,
        seed: int,
    ) -> None:
        """Random ragged batches, random choices, random weights."""
        if name in ("din", "dien"):
            choices = choices | {"branches": tuple(b for b in choices["branches"] if b == "long")}
        model = stir(make_model(name, LengthOptions(**choices), heads=heads), seed).eval()
        assert_equals_reference(model, name, samples, make_batch(samples, shared=shared))

    @all_presets
    @all_backbones
    def test_every_preset_stirred(self, name: str, preset: str) -> None:
        model = stir(make_model(name, LengthOptions(**PRESETS[preset])))
        assert_equals_reference(model.eval(), name, SAMPLES, make_batch(SAMPLES))

    @all_presets
    @all_backbones
    @pytest.mark.parametrize("seed", range(3))
    def test_every_preset_as_it_starts(self, name: str, preset: str, seed: int) -> None:
        model = make_model(name, LengthOptions(**PRESETS[preset]), seed=seed)
        assert_equals_reference(model.eval(), name, SAMPLES, make_batch(SAMPLES))

    @pytest.mark.parametrize(("short_length", "top_k"), [(1, 1), (2, 5), (50, 50)])
    @pytest.mark.parametrize("heads", [1, 2, 4])
    @pytest.mark.parametrize("name", ["sim", "sdim", "twin", "eta"])
    def test_sizes_below_and_above_the_length(
        self, name: str, heads: int, short_length: int, top_k: int
    ) -> None:
        sizes = {"short_length": short_length} | ({"top_k": top_k} if name != "sdim" else {})
        model = stir(make_model(name, LengthOptions(**PRESETS["lain"]), heads=heads, **sizes))
        assert_equals_reference(model.eval(), name, SAMPLES, make_batch(SAMPLES))

    @pytest.mark.parametrize("attention_dim", [2, 6])
    @pytest.mark.parametrize("name", ["sim", "sdim", "twin", "eta"])
    def test_attention_narrower_and_wider_than_the_items(self, name: str, attention_dim: int) -> None:
        options = LengthOptions(**PRESETS["lain-published"])
        model = stir(make_model(name, options, attention_dim=attention_dim))
        assert_equals_reference(model.eval(), name, SAMPLES, make_batch(SAMPLES))

    @pytest.mark.parametrize("preset", ["base", "lain", "lain-published"])
    @pytest.mark.parametrize(("name", "searched_by"), [("sim", "search_key"), ("twin", "long.key")])
    def test_of_equal_scores_the_latest_win(self, name: str, searched_by: str, preset: str) -> None:
        model = stir(make_model(name, LengthOptions(**PRESETS[preset]))).eval()
        with torch.no_grad():
            model.get_parameter(f"backbone.{searched_by}.weight").zero_()
        samples = [Sample((1, 2, 3, 5, 6, 7, 9), 8, 7, {"user_id": 1, "hour": 1}), *SAMPLES]
        assert_equals_reference(model, name, samples, make_batch(samples))
        kept = answers(model, samples).attention["long"].spans
        assert make_batch(samples).items[kept.index[: kept.offsets[1]]].tolist() == [5, 6, 7, 9]

    @pytest.mark.parametrize("preset", ["base", "lain", "lain-published"])
    def test_of_equally_near_hashes_the_latest_win(self, preset: str) -> None:
        model = stir(make_model("eta", LengthOptions(**PRESETS[preset]))).eval()
        with torch.no_grad():
            model.get_buffer("backbone.projection").zero_()
        samples = [Sample((1, 2, 3, 5, 6, 7, 9), 8, 7, {"user_id": 1, "hour": 1}), *SAMPLES]
        assert_equals_reference(model, "eta", samples, make_batch(samples))
        kept = answers(model, samples).attention["long"].spans
        assert make_batch(samples).items[kept.index[: kept.offsets[1]]].tolist() == [5, 6, 7, 9]

    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("preset", ["base", "lain", "lain-published", "lain-plus"])
    @pytest.mark.parametrize("samples", [SAMPLES, SAMPLES[:1], SAMPLES[:2], SAMPLES[1:2], SAMPLES[4:]])
    @pytest.mark.parametrize("activation", ["dice", "relu"])
    def test_din_in_training_and_after(
        self, samples: tuple[Sample, ...], preset: str, activation: str, training: bool
    ) -> None:
        """Dice takes its statistics from real behaviours and prompts, and learns the running ones."""
        model = stir(make_model("din", LengthOptions(**PRESETS[preset]), attention_activation=activation))
        model.train(training)
        before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
        seen = assert_equals_reference(model, "din", samples, make_batch(samples)).statistics
        for key, old in before.items():
            layer, which = key.rsplit(".norm.running_", 1)
            wanted = 0.9 * old + 0.1 * seen[layer][which == "var"] if layer in seen else old
            torch.testing.assert_close(model.state_dict()[key], wanted, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("preset", ["base", "lain", "lain-published", "lain-plus"])
    def test_din_with_a_matrix_per_sample(self, preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """What long histories take; these are too short to choose it."""
        monkeypatch.setattr(_SpanLinear, "ELEMENTS", 0)
        model = stir(make_model("din", LengthOptions(**PRESETS[preset])))
        assert_equals_reference(model, "din", SAMPLES, make_batch(SAMPLES))

    @pytest.mark.parametrize("hidden", [(4,), (5, 3, 2)])
    def test_din_of_any_depth(self, hidden: tuple[int, ...]) -> None:
        model = stir(make_model("din", LengthOptions(**PRESETS["lain-published"]), attention_hidden=hidden))
        assert_equals_reference(model, "din", SAMPLES, make_batch(SAMPLES))


class TestSwitchedOff:
    @all_backbones
    def test_adds_no_weight_and_hears_no_length(self, name: str) -> None:
        """With all switches off nothing is there that could differ, and no number hears of the length."""
        model = stir(make_model(name, LengthOptions())).eval()
        assert not model.length.state_dict()
        assert model.head.condition is None
        output = answers(model, SAMPLES)
        longer = answers(model, [replace(s, length=s.length + 777) for s in SAMPLES])
        assert torch.equal(output.logit, longer.logit)
        state = model.length(torch.tensor([1, 2000]), torch.float64)
        query = torch.randn(2, WIDTH, dtype=torch.float64)
        for branch in model.backbone.branches:
            assert state.query(branch, query) is query
            assert (state.prompts(branch), state.key_shift(branch), state.temperature(branch)) == (None,) * 3
        assert state.head() is None

    @all_backbones
    @pytest.mark.parametrize("query", ["additive", "multiplicative"])
    @pytest.mark.parametrize("head", ["none", "loglength", "encoding", "film"])
    def test_zero_starts_change_no_bit(self, name: str, query: str, head: str) -> None:
        """Query modulation, an encoded temperature and a conditioned head start without effect."""
        base = make_model(name, LengthOptions()).eval()
        neutral = make_model(name, options_of(query=query, head=head, temperature="encoded")).eval()
        assert len(list(neutral.parameters())) > len(list(base.parameters()))
        assert torch.equal(answers(neutral, SAMPLES).logit, answers(base, SAMPLES).logit)

    @all_presets
    @all_backbones
    def test_same_seed_same_start(self, name: str, preset: str) -> None:
        base = make_model(name, LengthOptions(), seed=5).state_dict()
        other = make_model(name, LengthOptions(**PRESETS[preset]), seed=5).state_dict()
        assert set(base) <= set(other)
        for key, value in base.items():
            assert torch.equal(value, other[key]), key


class TestKeys:
    """The half of W_k on e: one constant per history, so a softmax does not see it."""

    @pytest.mark.parametrize("query", ["none", "additive", "multiplicative"])
    @pytest.mark.parametrize("prompts", [0, 2])
    @all_backbones
    def test_cancel_under_softmax_and_act_without(self, name: str, prompts: int, query: str) -> None:
        options = options_of(query=query, prompts=prompts, prompt_query="modulated", keys=True)
        model = stir(make_model(name, options)).eval()
        off = make_model(name, replace(options, keys=False)).eval()
        off.load_state_dict({k: v for k, v in model.state_dict().items() if k in off.state_dict()})
        apart = (answers(model, SAMPLES).logit - answers(off, SAMPLES).logit).abs()
        if name == "din":
            assert (apart[1:] > 1e-4).all()
        else:
            assert apart.max() < 1e-12


class TestInfluence:
    @pytest.mark.parametrize("preset", ["base", "lain", "lain-published", "lain-plus"])
    @pytest.mark.parametrize("count", [1, 2, 3, 7, 10])
    @all_backbones
    def test_every_behaviour_of_a_short_user_counts(self, name: str, count: int, preset: str) -> None:
        """Also the oldest, and also the only one: gradient and answer hear of each."""
        options = LengthOptions(**PRESETS[preset])
        sizes = {"short_length": 50} if name in ("sim", "sdim", "twin", "eta") else {}
        model = stir(make_model(name, options, **sizes), seed=3).eval()
        others = SAMPLES[2:]
        sample = Sample(tuple(range(1, count + 1)), 15, count, {"user_id": 2, "hour": 1})
        batch = make_batch([sample, *others])
        table = model.get_parameter("items.layers.item_id.weight")
        logit = model(batch).logit[0]
        (gradient,) = torch.autograd.grad(logit, table)
        for item in sample.history:
            assert gradient[item].abs().min() > 1e-9, f"behaviour {item} has no gradient"
            with torch.no_grad():
                table[item] += 0.1
                assert abs(model(batch).logit[0] - logit) > 1e-9, f"behaviour {item} changes nothing"
                table[item] -= 0.1

    @pytest.mark.parametrize(
        "option",
        [
            {"prompts": 2},
            {"query": "additive"},
            {"query": "multiplicative"},
            {"temperature": "sigmoid"},
            {"temperature": "encoded"},
            {"temperature": "bucket"},
            {"head": "loglength"},
            {"head": "encoding"},
            {"head": "film"},
        ],
    )
    @all_backbones
    def test_true_length_beyond_the_truncated_one_acts_through_the_switched_part(
        self, name: str, option: dict[str, Any]
    ) -> None:
        model = stir(make_model(name, LengthOptions(**option)), seed=1).eval()
        longer = [replace(s, length=s.length + 400) for s in SAMPLES]
        apart = (answers(model, SAMPLES).logit - answers(model, longer).logit).abs()
        assert apart[2:].max() > 1e-6

    @all_backbones
    def test_more_behaviours_than_the_short_branch_reads(self, name: str) -> None:
        """What lies before the short branch's reach is read by the long one."""
        model = stir(make_model(name, LengthOptions(), seed=2)).eval()
        sample = SAMPLES[4]
        earlier = [replace(sample, history=(item, *sample.history[1:])) for item in range(1, ITEMS)]
        assert len(set(answers(model, earlier).logit.tolist())) > 1


class TestBatches:
    @pytest.mark.parametrize("preset", ["base", "lain", "lain-published", "lain-plus"])
    @all_backbones
    def test_each_sample_is_alone(self, name: str, preset: str) -> None:
        """A batch of one, and any order of the batch, give each sample the same answer."""
        model = stir(make_model(name, LengthOptions(**PRESETS[preset]))).eval()
        together = answers(model, SAMPLES).logit
        for number, sample in enumerate(SAMPLES):
            torch.testing.assert_close(
                answers(model, [sample]).logit[0], together[number], rtol=1e-12, atol=1e-13
            )
        order = [4, 0, 3, 5, 1, 2]
        turned = answers(model, [SAMPLES[i] for i in order]).logit
        torch.testing.assert_close(turned, together[order], rtol=1e-12, atol=1e-13)

    @all_backbones
    @given(samples=ragged_samples())
    @settings(max_examples=10)
    def test_sharing_changes_no_number(self, name: str, samples: list[Sample]) -> None:
        """Stretches pooled once or per sample: the same bits; items once or often: the same to rounding."""
        options = LengthOptions(**PRESETS["lain"])
        twin = [*samples, *samples[::-1]]
        gradients, logits = [], []
        for batch in (make_batch(twin), make_batch(twin, shared=True), make_batch(twin, repeated=True)):
            model = stir(make_model(name, options)).eval()
            output = model(batch)
            mixture(output.logit, output.auxiliary).backward()  # type: ignore[no-untyped-call]  # torch's
            logits.append(output.logit)
            gradients.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
        alone, shared, repeated = logits
        assert torch.equal(alone, shared)
        torch.testing.assert_close(repeated, alone, rtol=1e-12, atol=1e-13)
        for key, gradient in gradients[0].items():
            assert torch.equal(gradients[1][key], gradient), key
            torch.testing.assert_close(gradients[2][key], gradient, rtol=1e-9, atol=1e-11)

    @all_presets
    @all_backbones
    def test_mixed_precision(self, name: str, preset: str) -> None:
        """Under bfloat16 autocast every backbone runs, forth and back, and says nearly the same."""
        model = stir(make_model(name, LengthOptions(**PRESETS[preset]))).float()
        exact = model.eval()(make_batch(SAMPLES)).logit
        model.train(name != "din")
        with torch.autocast("cpu", torch.bfloat16):
            output = model(make_batch(SAMPLES))
        mixture(output.logit, output.auxiliary).backward()  # type: ignore[no-untyped-call]  # torch's
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        rounding = 2**-8  # of one bfloat16 operation; a logit is about 16 of them deep
        assert (output.logit.float() - exact).norm() <= 16 * rounding * exact.norm()


class TestArguments:
    @pytest.mark.parametrize(
        ("name", "wrong", "line"),
        [
            ("din", {"attention_hidden": ()}, "attention_hidden must name at least one width"),
            ("din", {"attention_hidden": (4, 0)}, r"attention_hidden\[1\] must be at least 1, got 0"),
            ("sim", {"short_length": 0}, "short_length must be at least 1, got 0"),
            ("sim", {"top_k": -1}, "top_k must be at least 1, got -1"),
            ("twin", {"heads": 0}, "heads must be at least 1, got 0"),
            ("twin", {"heads": 3}, "attention_dim must be a multiple of heads, got 4 and 3"),
            ("sdim", {"hashes": 0}, "hashes must be at least 1, got 0"),
            ("sdim", {"hash_bits": 0}, "hash_bits must be at least 1, got 0"),
            ("eta", {"hash_bits": 0}, "hash_bits must be at least 1, got 0"),
        ],
    )
    def test_sizes_that_make_no_model(self, name: str, wrong: dict[str, Any], line: str) -> None:
        with pytest.raises(ValueError, match=line):
            BACKBONES[name](**{"width": WIDTH, **wrong})

    @all_backbones
    def test_no_width(self, name: str) -> None:
        with pytest.raises(ValueError, match="width must be at least 1, got 0"):
            BACKBONES[name](**{"width": 0})

    def test_unknown_branch(self) -> None:
        with pytest.raises(ConfigError, match="no branch middle; this backbone has short, long"):
            make_model("twin", LengthOptions(branches=("middle",)))

    def test_registry_names(self) -> None:
        assert list(BACKBONES) == ["din", "dien", "sim", "sdim", "twin", "eta"]
        assert LengthConfig().resolve() == LengthOptions()


class TestColumns:
    """What is known of a behaviour is added to its item's vector; the target is its item alone."""

    ACTION = Feature("action", "behaviour", "categorical", 4)
    DWELL = Feature("dwell", "behaviour", "vector", 0, 1)

    def make(self, name: str, columns: tuple[str, ...]) -> CTRModel:
        features = (*FEATURES, self.ACTION, self.DWELL, Feature("at", "behaviour", "time", 0))
        torch.manual_seed(0)
        return CTRModel(features=features, embedding=partial(FeatureEmbedding, dim=DIM), columns=columns,
                        backbone=BACKBONES.component(name).build, head=HEADS.component("mlp").build,
                        length=LengthOptions(**PRESETS["lain"])).double()  # fmt: skip

    @all_backbones
    def test_unread_columns_change_nothing(self, name: str) -> None:
        without, read = self.make(name, ()), self.make(name, ("action", "dwell"))
        assert set(read.state_dict()) - set(without.state_dict()) == {
            "columns.layers.action.weight", "columns.layers.dwell.weight"
        }  # fmt: skip
        for key, weight in without.state_dict().items():
            assert torch.equal(read.state_dict()[key], weight)

    @all_backbones
    def test_added_to_the_item(self, name: str) -> None:
        """Equal to a model whose items are these behaviours, with vectors that hold the sum."""
        model = stir(self.make(name, ("action", "dwell"))).eval()
        plain = stir(self.make(name, ())).eval()
        plain.load_state_dict(model.state_dict(), strict=False)
        batch = make_batch(SAMPLES, repeated=True)
        generator = torch.Generator().manual_seed(1)
        action = torch.randint(0, 4, (len(batch.items),), generator=generator)
        dwell = torch.rand((len(batch.items), 1), generator=generator, dtype=torch.float64)
        action[batch.target], dwell[batch.target] = 0, 0
        batch = replace(batch, columns={"action": action, "dwell": dwell})
        of_action, of_dwell = (model.get_parameter(f"columns.layers.{c}.weight") for c in ("action", "dwell"))
        added = of_action[action] + dwell * of_dwell[:, 0]
        added[batch.target] = 0
        plain.items.register_forward_hook(lambda module, inputs, vectors: vectors + added)
        torch.testing.assert_close(model(batch).logit, plain(batch).logit, rtol=1e-12, atol=1e-12)
        bare = self.make(name, ())
        bare.load_state_dict(model.state_dict(), strict=False)
        assert (bare.eval()(batch).logit - model(batch).logit).abs().max() > 1e-6

    @pytest.mark.parametrize(
        ("columns", "line"),
        [
            (("actoin",), "did you mean 'action'"),
            (("at",), "'at' is a point in time"),
            (("action",) * 2, "twice"),
        ],
    )
    def test_columns_that_make_no_vector(self, columns: tuple[str, ...], line: str) -> None:
        with pytest.raises(ValueError, match=line):
            self.make("twin", columns)
