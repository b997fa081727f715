"""JSON schemas that every answer ends by."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


def bounded_schema(
    shape: type[BaseModel],
    *,
    characters: int,
    longer: dict[str, int] | None = None,
    items: dict[str, tuple[int, int]] | None = None,
    largest: dict[str, int] | None = None,
) -> dict[str, Any]:
    """JSON schema of a shape in which nothing is without bounds, so that every answer written by it ends.

    All keys are required and no others allowed, as servers with strict schemas want it. Words for readers of
    Python are taken out.

    Args:
        shape: The pydantic model.
        characters: Longest text.
        longer: Other bounds for texts, by key.
        items: Fewest and most items of lists, by key.
        largest: Largest integers, by key.
    """

    def tidy(schema: dict[str, Any], key: str) -> dict[str, Any]:
        found = {k: v for k, v in schema.items() if k not in ("title", "description", "default")}
        if "properties" in found:
            found["properties"] = {k: tidy(v, k) for k, v in found["properties"].items()}
            found["required"] = list(found["properties"])
            found["additionalProperties"] = False
        if "$defs" in found:
            found["$defs"] = {k: tidy(v, k) for k, v in found["$defs"].items()}
        if found.get("type") == "array":
            found["items"] = tidy(found["items"], key)
            found["minItems"], found["maxItems"] = (items or {})[key]
        if found.get("type") == "string" and "enum" not in found:
            found["maxLength"] = (longer or {}).get(key, characters)
        if found.get("type") == "integer":
            found["minimum"], found["maximum"] = 0, (largest or {})[key]
        return found

    return tidy(shape.model_json_schema(), "")
