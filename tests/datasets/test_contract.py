"""What every registered data set holds, plugins' included; what each tells of itself: `test_facts.py`."""

from __future__ import annotations

import pytest
import torch

from classyseg.datasets import build_dataset
from classyseg.registry import DATASETS
from config_contract import REQUIRED, assert_keeps_the_config_contract

OPTIONS = {"pascal_aug": {"split": "trainaug"}, "subset": {"first": 2}}
OF_FILES = {"root", "images"}
"""Keys of data sets that need files to be built."""


def needs_no_file(name: str) -> bool:
    entry = DATASETS.entry(name)
    return entry.distribution == "classyseg" and not OF_FILES & DATASETS.config_model(name).model_fields.keys()


@pytest.mark.parametrize("name", DATASETS.names())
def test_every_data_set_keeps_the_config_contract(name: str) -> None:
    assert_keeps_the_config_contract("datasets", name, **OPTIONS.get(name, {}))


@pytest.mark.parametrize("name", [name for name in DATASETS.names() if needs_no_file(name)])
def test_a_sample_is_a_function_of_seed_epoch_and_index_and_its_labels_are_classes(name: str) -> None:
    fields = DATASETS.config_model(name).model_fields
    given = {key: REQUIRED[key] for key, field in fields.items() if field.is_required() and key != "name"}
    erases = {"name": "random_erasing", "probability": 1.0}
    dataset, twin = (
        build_dataset({"name": name, **given, **OPTIONS.get(name, {}), "transforms": [erases]}) for _ in range(2)
    )
    for index in (0, len(dataset) - 1):
        first, again = dataset.sample(index, epoch=1), twin.sample(index, epoch=1)
        assert torch.equal(first.image, again.image)
        assert torch.equal(first.target, again.target)
        assert first.name == again.name
        assert not torch.equal(first.image, dataset.sample(index, epoch=2).image)
        stored = dataset.load(index).target
        assert {*stored.unique().tolist()} <= {*range(dataset.num_classes), dataset.ignore_index}
