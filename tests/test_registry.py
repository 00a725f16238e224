"""The registry: a config is the keyword-only parameters of a signature, checked strictly and whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema_rs
import pytest
from jsonschema import Draft202012Validator
from pydantic import Field

from classyseg import ConfigError, load_config, parse_config, task_schema
from classyseg.config import ConfigRecord, Int
from classyseg.registry import REGISTRIES, ComponentOf, Configurable, Registry, TransformConfig
from classyseg.transforms import HorizontalFlip

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "task_configs").rglob("*.yaml"))


class Wheels(ConfigRecord):
    """A record inside a component."""

    count: Int = 4


class Vehicle(Configurable):
    """The base of the components of these tests."""


class Car(Vehicle):
    """Goes on wheels."""

    def __init__(
        self,
        owner: str = "nobody",
        *,
        seats: Annotated[int, Field(ge=1)],
        power: float = 1.0,
        color: Literal["red", "blue"] = "red",
        sizes: tuple[int, ...] = (1, 2),
        roof: bool | None = None,
        wheels: Wheels = Wheels(),
    ) -> None:
        self.owner = owner
        self.seats = seats
        self.power = power
        self.color = color
        self.sizes = sizes
        self.roof = roof
        self.wheels = wheels


class Convoy(Vehicle):
    """Components inside a component."""

    def __init__(
        self,
        *,
        steps: tuple[TransformConfig, ...] = (),
        first: Annotated[Any, ComponentOf("transforms")] = "horizontal_flip",
    ) -> None:
        self.steps = steps
        self.first = first


@pytest.fixture
def vehicles() -> Registry:
    """A registry of its own, whose package (this file) registers nothing by itself."""
    registry = Registry("vehicles", noun="vehicle", base=f"{__name__}:Vehicle")
    registry.register("car")(Car)
    registry.variants(Car, {"van": {"seats": 8, "color": "blue"}})
    registry.register("convoy")(Convoy)
    return registry


# -- from signature to config ------------------------------------------------------------------------------------------


def test_keyword_only_parameters_are_the_config_and_positional_ones_are_not(vehicles: Registry) -> None:
    fields = vehicles.config_model("car").model_fields
    assert list(fields) == ["name", "seats", "power", "color", "sizes", "roof", "wheels"]
    assert [key for key, field in fields.items() if field.is_required()] == ["name", "seats"]


def test_python_and_config_build_the_same(vehicles: Registry) -> None:
    built = vehicles.build({"name": "car", "seats": 3, "sizes": [5], "wheels": {"count": 3}}, "me")
    assert isinstance(built, Car)
    assert vars(built) == vars(Car("me", seats=3, sizes=(5,), wheels=Wheels(count=3)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seats", "8"),
        ("seats", True),
        ("seats", 8.0),
        ("seats", 0),
        ("seats", None),
        ("power", "1.0"),
        ("power", True),
        ("power", float("nan")),
        ("power", float("inf")),
        ("color", "Red"),
        ("color", 1),
        ("sizes", ["1"]),
        ("sizes", 1),
        ("roof", "yes"),
        ("roof", 1),
        ("wheels", 4),
        ("wheels", {"count": "4"}),
    ],
)
def test_look_alikes_are_refused(vehicles: Registry, key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        vehicles.build({"name": "car", "seats": 2, key: value})
    assert str(caught.value).startswith(f"the vehicle config: {key}")


def test_a_whole_number_is_a_number_where_a_fraction_is_meant(vehicles: Registry) -> None:
    power = vehicles.build({"name": "car", "seats": 2, "power": 3}).power
    assert power == 3.0
    assert isinstance(power, float)


def test_all_problems_are_reported_at_once_each_with_its_line(vehicles: Registry) -> None:
    text = "name: car\npowr: 2\ncolor: green\nsizes: [1, x]\nwheels:\n  cuont: 3\n"
    with pytest.raises(ConfigError) as caught:
        vehicles.validate(parse_config(text, source="car.yaml"))
    lines = sorted(str(caught.value).splitlines())
    assert [line.split(";")[0] for line in lines] == [
        "car.yaml, line 1: seats: missing",
        "car.yaml, line 2: powr: unknown key",
        "car.yaml, line 3: color: found 'green'",
        "car.yaml, line 4: sizes[1]: found 'x'",
        "car.yaml, line 6: wheels.cuont: unknown key",
    ]
    assert "did you mean 'power'?" in lines[1]
    assert "'red' or 'blue'" in lines[2]
    assert "did you mean 'count'?" in lines[4]


class Tunnel(Vehicle):
    def __init__(self, **options: Any) -> None: ...


class Named(Vehicle):
    def __init__(self, *, name: str = "") -> None: ...


class Untyped(Vehicle):
    def __init__(self, *, seats=2) -> None: ...  # type: ignore[no-untyped-def]


@pytest.mark.parametrize(
    ("component", "message"),
    [(Tunnel, r"Tunnel.__init__ takes \*\*options"), (Named, "'name' is the registered name")],
)
def test_a_signature_that_hides_its_config_is_refused(
    vehicles: Registry, component: type[Vehicle], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        vehicles.register("strange")(component)


def test_a_parameter_without_a_type_is_refused(vehicles: Registry) -> None:
    vehicles.register("untyped")(Untyped)
    with pytest.raises(TypeError, match=r"'seats'.*annotation"):
        vehicles.config_model("untyped")


def test_a_component_without_an_init_has_no_options(vehicles: Registry) -> None:
    vehicles.register("plain")(type("Plain", (Vehicle,), {}))
    assert list(vehicles.config_model("plain").model_fields) == ["name"]
    assert isinstance(vehicles.build("plain"), Vehicle)


# -- names and variants ------------------------------------------------------------------------------------------------


def test_a_variant_has_its_own_defaults_which_a_config_may_override(vehicles: Registry) -> None:
    van = vehicles.build("van")
    assert (van.seats, van.color) == (8, "blue")
    assert vehicles.build({"name": "van", "color": "red"}).color == "red"
    assert vehicles.build({"name": "car", "seats": 2}).color == "red"


def test_a_variant_of_an_unknown_key_is_refused(vehicles: Registry) -> None:
    with pytest.raises(TypeError, match=r"'truck'.*'seats'"):
        vehicles.variants(Car, {"truck": {"seat": 2}})


@pytest.fixture
def parked() -> Registry:
    """A registry whose components are placed by somebody, at a `place` with `passengers` of another kind."""
    placement = {"place": (Int, 0), "passengers": (dict[str, Annotated[Any, ComponentOf("transforms")]], {})}
    registry = Registry("vehicles", noun="vehicle", base=f"{__name__}:Vehicle", placement=placement)
    passengers = {"first": {"name": "horizontal_flip"}}
    registry.variants(Car, {"taxi": {"seats": 4, "place": 3, "passengers": passengers}})
    return registry


def test_a_variant_may_name_the_keys_of_whoever_places_it(parked: Registry) -> None:
    taxi = parked.validate("taxi", placed=True)
    assert taxi.place == 3  # type: ignore[attr-defined]
    assert taxi.passengers["first"].component is HorizontalFlip  # type: ignore[attr-defined]
    assert parked.validate({"name": "taxi", "passengers": {}}, placed=True).passengers == {}  # type: ignore[attr-defined]
    resolved = parked.validate({"name": "taxi", "place": 5}, placed=True).resolved()
    assert resolved["place"] == 5
    assert list(resolved["passengers"]) == ["first"]
    assert parked.validate(resolved, placed=True).resolved() == resolved
    assert isinstance(parked.build("taxi"), Car)


def test_what_a_variant_names_wrongly_is_found_at_its_lookup(parked: Registry) -> None:
    parked.variants(Car, {"bus": {"seats": 40, "passengers": {"first": {"name": "horizontal_flip", "prob": 1}}}})
    with pytest.raises(ConfigError, match=r"Car, variant 'bus': passengers\.first\.prob.*unknown"):
        parked.validate("bus", placed=True)
    assert parked.build("bus").seats == 40


def test_a_name_that_another_class_has_is_refused(vehicles: Registry) -> None:
    with pytest.raises(ValueError, match=r"'car' is taken.*Car .*Convoy"):
        vehicles.register("car")(Convoy)
    assert vehicles.entry("car").component is Car


def test_the_same_class_may_be_registered_again(vehicles: Registry) -> None:
    """As happens when a notebook's cell is run twice, or a module is reloaded: the newer one counts."""
    again = type("Car", (Vehicle,), {"__module__": Car.__module__, "__qualname__": Car.__qualname__})
    vehicles.register("car")(again)
    assert vehicles.entry("car").component is again


def test_names_are_listed_by_pattern(vehicles: Registry) -> None:
    assert vehicles.names() == ["car", "convoy", "van"]
    assert vehicles.names("?a?") == ["car", "van"]
    assert "van" in vehicles
    assert "bus" not in vehicles


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("vann", r"'vann': unknown vehicle; did you mean 'van'\? Known: car, convoy, van\."),
        ({"name": "vann"}, r"name: 'vann': unknown vehicle; did you mean 'van'\?"),
        ({"seats": 2}, "name: missing; every vehicle has a name. Known: car, convoy, van"),
        ({}, "name: missing; every vehicle has a name"),
        ({"name": 3}, "name: found 3; expected the name of a vehicle"),
        (3, "found 3; expected the name of a vehicle, or a mapping with a 'name'"),
        ([], r"found \[\]; expected the name of a vehicle"),
        (None, "found None; expected the name of a vehicle"),
    ],
)
def test_what_names_no_component_is_refused(vehicles: Registry, config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^the vehicle config: {message}"):
        vehicles.build(config)


# -- from_config and components in components --------------------------------------------------------------------------


def test_from_config_checks_fills_in_and_ignores_the_name() -> None:
    car = Car.from_config({"name": "whatever", "seats": 2}, "me")
    assert (car.seats, car.owner, car.power) == (2, "me", 1.0)
    with pytest.raises(ConfigError, match=r"Car: seat.*'seats'"):
        Car.from_config({"seat": 2})
    with pytest.raises(ConfigError, match="Car: seats: missing"):
        Car.from_config()


@pytest.mark.parametrize(
    "value", ["horizontal_flip", {"name": "horizontal_flip"}, HorizontalFlip()], ids=["name", "mapping", "built"]
)
def test_a_component_is_given_by_name_by_mapping_or_built(vehicles: Registry, value: Any) -> None:
    (step,) = vehicles.build({"name": "convoy", "steps": [value]}).steps
    assert isinstance(REGISTRIES["transforms"].build(step), HorizontalFlip)


def test_a_built_component_is_returned_as_it_is(vehicles: Registry) -> None:
    car = Car(seats=2)
    assert vehicles.build(car) is car


def test_a_problem_inside_a_component_has_its_path_and_line(vehicles: Registry) -> None:
    tree = parse_config("name: convoy\nsteps:\n  - horizontal_flip\n  - {name: pad, sise: 3}\n", source="c.yaml")
    with pytest.raises(ConfigError, match=r"^c.yaml, line 4: steps\[1\].sise.*'size'"):
        vehicles.validate(tree)


def test_a_component_of_another_kind_is_refused(vehicles: Registry) -> None:
    with pytest.raises(ConfigError, match=r"first: 'mean_iou': unknown transform"):
        vehicles.validate({"name": "convoy", "first": "mean_iou"})


# -- JSON Schema -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(json.dumps(task_schema()))
    Draft202012Validator.check_schema(schema)
    return schema


@pytest.fixture(scope="module")
def validator(schema: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(schema)


def test_the_schema_has_every_component_told_apart_by_name(schema: dict[str, Any]) -> None:
    definitions = schema["$defs"]
    for kind, registry in REGISTRIES.items():
        mapping = definitions[kind]["anyOf"][1]["discriminator"]["mapping"]
        assert list(mapping) == registry.names()
        for name, reference in mapping.items():
            component = definitions[reference.removeprefix("#/$defs/")]
            assert component["properties"]["name"]["const"] == name
            assert component["additionalProperties"] is False


def test_every_reference_of_the_schema_leads_somewhere(schema: dict[str, Any]) -> None:
    def references(node: Any) -> list[str]:
        if isinstance(node, list):
            return [reference for item in node for reference in references(item)]
        if isinstance(node, dict):
            inner = [reference for item in node.values() for reference in references(item)]
            return inner + ([node["$ref"]] if isinstance(node.get("$ref"), str) else [])
        return []

    found = references(schema)
    assert found
    assert {reference.removeprefix("#/$defs/") for reference in found} <= set(schema["$defs"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_schema_accepts_the_shipped_configs(validator: jsonschema_rs.Draft202012Validator, path: Path) -> None:
    validator.validate(load_config(path).values)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_schema_accepts_resolved_configs(validator: jsonschema_rs.Draft202012Validator, path: Path) -> None:
    validator.validate(REGISTRIES["tasks"].validate(load_config(path)).resolved())


def mappings(node: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping within `node`, with the keys that lead to it."""
    if isinstance(node, list):
        for item in node:
            yield from mappings(item, place)
    if isinstance(node, dict):
        yield place, node
        for key, value in node.items():
            yield from mappings(value, f"{place}.{key}")


def test_every_choice_of_the_schema_has_its_own_name(schema: dict[str, Any]) -> None:
    definitions = schema["$defs"]
    for choice in [schema, *definitions.values()]:
        for name, reference in choice.get("discriminator", {}).get("mapping", {}).items():
            assert definitions[reference.removeprefix("#/$defs/")]["properties"]["name"]["const"] == name


def test_the_schema_rejects_an_unknown_key_at_every_depth(validator: jsonschema_rs.Draft202012Validator) -> None:
    """Of all shipped configs; a component that several of them have in one place is tried once."""
    tried, accepted = set(), []
    for path in CONFIGS:
        values = load_config(path).values
        assert validator.is_valid(values)
        loss = {} if isinstance(values["loss"], str) else values["loss"]
        free: list[Any] = [loss.get("head_weights"), values["model"].get("heads")]  # their keys are names of heads
        for place, mapping in mappings(values):
            component = place, mapping.get("name")
            of_another_library = place.endswith(".transforms.arguments")  # what torchvision's transform takes
            if component in tried or of_another_library or any(mapping is names for names in free):
                continue
            tried.add(component)
            mapping["misspelt"] = 1
            if validator.is_valid(values):
                accepted.append(component)
            del mapping["misspelt"]
    assert len(tried) > 40
    assert accepted == []
