"""The public weights of a registered name, and where the weights that a user names are found."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from urllib.parse import urlparse

from classyseg.config import closest
from classyseg.console import MAX_NAME, shown
from classyseg.errors import ConfigError
from classyseg.io import existing_path, paths
from classyseg.models.classy_model import ClassyModel
from classyseg.models.encoding_models import ENCODING_MODELS, WEIGHTS
from classyseg.weights import hub
from classyseg.weights.cache import PublicWeights, fetch
from classyseg.weights.catalogue import catalogued


def public_weights(component: type[ClassyModel], name: str) -> dict[str, PublicWeights]:
    """The public weights of the registered name `name` of the class `component`, by name; the best come first.

    A name with heads also knows those of its backbone.
    """
    found = component.known_weights(name) | catalogued(name) | WEIGHTS.get(name, {})
    return found | (public_weights(component, ENCODING_MODELS[name].backbone) if name in ENCODING_MODELS else {})


def default_num_classes(component: type[ClassyModel], name: str) -> int | None:
    """The default number of classes of the heads that the registered name `name` brings; None without heads."""
    return ENCODING_MODELS[name].num_classes if name in ENCODING_MODELS else component.default_num_classes(name)


class WeightsSource:
    """The weights that a user names: one of the `known` public ones of a model, a path, or a URL."""

    def __init__(self, text: str, known: Mapping[str, PublicWeights]) -> None:
        self.text = text
        self.known = known
        self.public = known.get(text)
        """The public weights, if `text` is their name."""

    @cached_property
    def path(self) -> Path:
        """The file or folder; a URL is downloaded. Raises: `ConfigError`."""
        if self.public is not None:
            return fetch(self.public.url, self.public.digest)
        if hub.is_hub_address(self.text):
            return hub.fetched(self.text, (hub.WEIGHTS,)) / hub.WEIGHTS
        if urlparse(self.text).scheme in ("http", "https", "file"):
            return fetch(self.text)
        path = _local_copy(self.text) if "://" in self.text else existing_path(self.text)
        if not self.text or not path.exists():
            near = closest(self.text, self.known)
            raise ConfigError(
                f"found {shown(self.text, MAX_NAME)}, which is no file and no known name"
                f"{f'; did you mean {near!r}?' if near else '.'} Known: {', '.join(self.known) or 'none'}"
            )
        return path


def _local_copy(uri: str) -> Path:
    """A local copy of the file at `uri`. iopath's handlers find it; plugins may register some."""
    try:
        return Path(paths.get_local_path(uri))
    except Exception as error:  # a plugin's handler may raise anything
        raise ConfigError(f"{uri} could not be fetched: {type(error).__name__}: {error}") from None
