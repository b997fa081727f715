"""Features as vectors: by hand, kind by kind."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lain.data.schema import Feature
from lain.layers import embedding
from lain.layers.embedding import FeatureEmbedding, module_key, values_of

ITEM_ID = Feature("item_id", "item", "categorical", 200)
CATEGORY = Feature("category", "item", "categorical", 5)
TAGS = Feature("tags", "item", "list", 6, 3)
IMAGE = Feature("image", "item", "vector", 0, 2)
ALL = (ITEM_ID, CATEGORY, TAGS, IMAGE)

VALUES = {
    "item_id": torch.tensor([1, 0, 7]),
    "category": torch.tensor([0, 4, 2]),
    "tags": torch.tensor([[1, 0, 0], [0, 0, 0], [2, 5, 2]]),
    "image": torch.tensor([[1.0, 2.0], [0.0, 0.0], [-1.0, 0.5]]),
}


def table_of(layers: FeatureEmbedding, name: str) -> Tensor:
    layer = layers.layers[name]
    assert isinstance(layer, nn.Embedding | nn.EmbeddingBag)
    return layer.weight


def make(**options: bool | None) -> FeatureEmbedding:
    torch.manual_seed(0)
    return FeatureEmbedding(ALL, dim=4, **options)  # type: ignore[arg-type]  # sparse alone


class TestVectors:
    def test_by_hand(self) -> None:
        layers = make()
        out = layers(VALUES)
        assert out.shape == (3, layers.width) == (3, 16)
        item, category, tags, image = out.split(4, 1)
        assert torch.equal(item, table_of(layers, "item_id")[[1, 0, 7]])
        assert torch.equal(category, table_of(layers, "category")[[0, 4, 2]])
        of_tags = table_of(layers, "tags")
        wanted = torch.stack([of_tags[1], torch.zeros(4), (2 * of_tags[2] + of_tags[5]) / 3])
        torch.testing.assert_close(tags, wanted)
        projection = layers.layers["image"]
        assert isinstance(projection, nn.Linear)
        assert projection.bias is None
        torch.testing.assert_close(image, VALUES["image"] @ projection.weight.T)

    def test_order_is_the_features(self) -> None:
        layers = FeatureEmbedding((CATEGORY, ITEM_ID), dim=2)
        out = layers({"category": torch.tensor([3]), "item_id": torch.tensor([9])})
        wanted = [table_of(layers, "category")[3], table_of(layers, "item_id")[9]]
        assert torch.equal(out[0], torch.cat(wanted))

    def test_padding_is_zero_and_learns_nothing(self) -> None:
        layers = make()
        layers(VALUES).square().sum().backward()
        for name in ("item_id", "category", "tags"):
            weight = table_of(layers, name)
            assert weight.grad is not None
            assert torch.equal(weight[0], torch.zeros(4))
            assert torch.equal(weight.grad[0], torch.zeros(4))
            assert weight.grad.abs().sum() > 0

    def test_user_0_is_a_user(self) -> None:
        """Users are numbered from 0: their table has no padding row."""
        layers = FeatureEmbedding([Feature("user_id", "user", "categorical", 3)], dim=2)
        out = layers({"user_id": torch.tensor([0])})
        out.sum().backward()
        assert out.abs().min() > 0
        gradient = table_of(layers, "user_id").grad
        assert gradient is not None
        assert gradient[0].tolist() == [1.0, 1.0]

    def test_start(self) -> None:
        torch.manual_seed(0)
        large = [
            Feature("item_id", "item", "categorical", 5000),
            Feature("user_id", "user", "categorical", 5000),
            Feature("brand", "item", "categorical", 5000),
        ]
        layers = FeatureEmbedding(large, dim=8, id_std=0.02, feature_std=0.7)
        for name, std in (("item_id", 0.02), ("user_id", 0.02), ("brand", 0.7)):
            weight = table_of(layers, name)[1:]
            assert weight.std().item() == pytest.approx(std, rel=0.02)
            assert abs(weight.mean().item()) < 0.02 * std

    def test_tables_are_what_the_penalty_is_for(self) -> None:
        layers = make()
        wanted = [table_of(layers, name) for name in ("item_id", "category", "tags")]
        assert [id(table) for table in layers.tables()] == [id(table) for table in wanted]


class TestSparse:
    def test_same_gradients(self) -> None:
        dense, sparse = make(sparse=False), make(sparse=True)
        for layers in (dense, sparse):
            layers(VALUES).square().sum().backward()
        for a, b in zip(dense.tables(), sparse.tables(), strict=True):
            assert a.grad is not None
            assert b.grad is not None
            assert not a.grad.is_sparse
            assert b.grad.is_sparse
            torch.testing.assert_close(b.grad.to_dense(), a.grad)

    def test_large_tables_by_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(embedding, "SPARSE_ROWS", 100)
        layers = make()
        sparse = [getattr(layers.layers[name], "sparse", None) for name in ("item_id", "category", "tags")]
        assert sparse == [True, False, False]
        forced = FeatureEmbedding([ITEM_ID], dim=2, sparse=False)
        assert not getattr(forced.layers["item_id"], "sparse", True)


class TestValuesOf:
    def test_ids_are_a_feature_if_listed(self) -> None:
        ids = torch.tensor([3, 5, 9])
        found = values_of(ids, VALUES, (CATEGORY, ITEM_ID))
        assert list(found) == ["category", "item_id"]
        assert found["item_id"] is ids
        assert found["category"] is VALUES["category"]
        assert list(values_of(ids, VALUES, (TAGS,))) == ["tags"]


class TestNames:
    """Any text can be a feature's name."""

    NAMES = ("type", "keys", "video.type", "", "training", "Ähnlich", "标签", "type~", "a b", "forward")

    @given(st.text(), st.text())
    def test_keys_are_unique_and_torch_takes_them(self, one: str, other: str) -> None:
        keys = module_key(one), module_key(other)
        assert (keys[0] == keys[1]) == (one == other)
        nn.ModuleDict({key: nn.Identity() for key in keys})

    @staticmethod
    def patched(name: str) -> bool:
        """Whether another library has put the attribute into torch's class, as transformers does."""
        home = getattr(getattr(nn.ModuleDict, name, None), "__module__", None) or "torch"
        return not home.startswith(("torch", "builtins"))

    def test_every_attribute_of_torch(self) -> None:
        there = nn.ModuleDict()
        names = [name for name in dir(there) if hasattr(there, name) and not self.patched(name)]
        layers = nn.ModuleDict({module_key(name): nn.Identity() for name in names})
        assert len(layers) == len(names) > 50
        assert layers.type(torch.float64) is layers  # torch's own methods still work

    def test_plain_names_are_kept(self) -> None:
        """So the names in state dicts stay."""
        assert [module_key(n) for n in ("item_id", "Category-2", "7")] == ["item_id", "Category-2", "7"]

    def test_a_name_changes_no_number(self) -> None:
        """Neither the start of the weights, nor the random numbers behind them, nor the answers."""
        found = []
        for names in (self.NAMES[0:3], ("a", "b", "c")):
            torch.manual_seed(0)
            layers = FeatureEmbedding([Feature(n, "item", "categorical", 5) for n in names], dim=3)
            values = {name: torch.tensor([number, 4]) for number, name in enumerate(names)}
            found.append((layers(values), torch.rand(3)))
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1])
