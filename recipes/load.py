"""Presets, overrides, and one error that lists everything that is wrong."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from recipes.schema import Recipe

PRESETS = Path(__file__).parent


class RecipeError(ValueError):
    """A recipe cannot be used; the message lists every fault."""


def preset_names() -> list[str]:
    """Names of the recipes that ship with the project."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_recipe(name_or_path: str = "default", overrides: tuple[str, ...] = ()) -> Recipe:
    """Reads a preset or a YAML file and applies `a.b=value` overrides.

    Raises:
        RecipeError: the file is missing or not YAML, a key is unknown, or a value is out of range; all faults at once.
    """
    values = _read(name_or_path)
    faults = []
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            faults.append(f"--set {override}: expected key=value, for example --set finetune.steps=200")
            continue
        try:
            _put(values, key.strip().split("."), _parse(text))
        except (RecipeError, yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
            faults.append(f"--set {override}: {_reason(error)}")
    recipe, invalid = _validate(values)
    faults += invalid
    if recipe is None or faults:
        raise RecipeError("; ".join(faults))
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML with every value spelled out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


class _Loader(yaml.SafeLoader):
    """YAML whose only truth values are true and false: `yes`, `no`, `on` and `off` are words, as in `precision=no`."""


_TRUTH = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TRUTH]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_TRUTH, re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))


def _parse(text: str) -> Any:
    return yaml.load(text, _Loader)  # a safe loader


def _read(name_or_path: str) -> dict[str, Any]:
    path = PRESETS / f"{name_or_path}.yaml"
    if name_or_path not in preset_names():
        path = Path(name_or_path)
        if not path.is_file():
            raise RecipeError(f"recipe {name_or_path!r}: no such preset or file{_near(name_or_path, preset_names())}")
    try:
        values = _parse(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{path}: not readable as YAML ({_reason(error)})") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: got {type(values).__name__}, expected a mapping such as 'rounds: 2'")
    return {"name": path.stem, **values}


def _put(values: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise RecipeError(f"{key} holds a value, not a section")
    values[keys[-1]] = value


def _validate(values: dict[str, Any]) -> tuple[Recipe | None, list[str]]:
    try:
        return Recipe.model_validate(values), []
    except ValidationError as error:
        return None, [_fault(item) for item in error.errors()]


def _fault(item: Any) -> str:
    place = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{place}: unknown key{_near(str(item['loc'][-1]), _fields_at(item['loc'][:-1]))}"
    if item["type"] == "value_error":  # of several settings together
        return f"{place}.{item['ctx']['error']}"
    if item["type"] in ("model_type", "model_attributes_type"):
        return f"{place}: got {item['input']!r}, expected a section: set {place}.KEY"
    return f"{place}: got {item['input']!r}, {item['msg'][0].lower()}{item['msg'][1:]}"


def _reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"{error.problem}, line {error.problem_mark.line + 1}"
    return str(error).splitlines()[0]


def _fields_at(location: tuple[str | int, ...]) -> list[str]:
    model: type[BaseModel] = Recipe
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        model = next((a for a in (annotation, *get_args(annotation)) if isinstance(a, type)), Recipe)
    return list(model.model_fields)


def _near(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, 1)
    return f", did you mean {close[0]!r}?" if close else f", known: {', '.join(known)}" if known else ""
