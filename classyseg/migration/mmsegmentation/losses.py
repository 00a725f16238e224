"""mmsegmentation's losses of each head, and our one loss of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from classyseg.console import shown
from classyseg.migration.mmsegmentation.heads import Head
from classyseg.migration.notes import Section

AVERAGE = (
    "mmsegmentation divides the loss by all pixels, ignored ones too (unless avg_non_ignore=True); here by those that "
    "are not ignored"
)


class Term(NamedTuple):
    """A loss of ours, without outputs, for one output of the model."""

    config: dict[str, Any]
    weight: float
    output: str


def loss_config(heads: list[Head], images: int, processes: int) -> dict[str, Any]:
    """The loss of all heads, for batches of `images` of the whole job."""
    terms: list[Term] = []
    for head in heads:
        sampler = head.section.section("sampler")
        for output, sections in head.outputs.items():
            default = Section({"type": "CrossEntropyLoss"}, (*head.section.location, "loss_decode"), head.section.notes)
            terms += [_term(output, one, sampler, images, processes) for one in sections or [default]]
        sampler.close()
    kinds = []
    for term in terms:
        if term.config not in kinds:
            kinds.append(term.config)
    if len(kinds) == 1:
        return {**kinds[0], "head_weights": {term.output: term.weight for term in terms}}
    losses = []
    for kind in kinds:
        weights = {term.output: term.weight for term in terms if term.config == kind}
        losses.append({**kind, "heads": list(weights), "head_weights": weights})
    return {"name": "sum_arbitrary", "losses": losses}


def _term(output: str, section: Section, sampler: Section, images: int, processes: int) -> Term:
    kind = section.text("type", "CrossEntropyLoss")
    weight = float(section.number("loss_weight", 1.0))
    section.unused("loss_name", "type")
    if kind == "CrossEntropyLoss" and output.endswith((".se", ".points")):
        name = "presence" if output.endswith(".se") else "point_cross_entropy"
        section.expect("use_sigmoid", name == "presence")
        config = {"name": name, **_class_weights(section)}
    elif kind in _KINDS:
        config = _KINDS[kind](section)
        if kind == "OhemCrossEntropy":
            config["min_kept"] *= processes
    else:
        section.lost("type", f"there is no equivalent of the loss {shown(kind)}; cross entropy stands in its place")
        section.unused(*section.values)
        config = {"name": "cross_entropy"}
    if sampler.values and config["name"] == "cross_entropy":
        config = {**config, **_ohem_sampler(sampler, images)}
    section.close()
    return Term(config, weight, output)


def _class_weights(section: Section) -> dict[str, Any]:
    weights = section.numbers("class_weight")
    if weights is not None:
        section.differs(
            "class_weight", "mmsegmentation divides the weighted loss by the number of pixels; here by their weights"
        )
    return {"class_weights": [float(weight) for weight in weights]} if weights else {}


def _cross_entropy(section: Section) -> dict[str, Any]:
    section.expect("use_sigmoid", False, why="a sigmoid for each class is no softmax")
    section.expect("use_mask", False)
    section.expect("reduction", "mean")
    if not section.take("avg_non_ignore", False):
        section.notes.add("differs", "model.decode_head.loss_decode", AVERAGE)
    return {"name": "cross_entropy", **_class_weights(section)}


def _ohem(section: Section) -> dict[str, Any]:
    config = {"name": "ohem_cross_entropy", "threshold": float(section.number("thres", 0.7))}
    section.unused("ignore_label")
    return {**config, "min_kept": section.number("min_kept", 100_000), **_class_weights(section)}


def _ohem_sampler(sampler: Section, images: int) -> dict[str, Any]:
    """`min_kept` is that of an image in mmsegmentation, and of the whole batch here."""
    sampler.expect("type", "OHEMPixelSampler")
    threshold = sampler.number("thresh")
    if threshold is None:
        sampler.lost("thresh", "without it the pixels of the largest loss are taken; write a threshold")
    kept = sampler.number("min_kept", 100_000) * images
    sampler.differs("type", "mmsegmentation divides the loss of the hard pixels by all pixels; here by the hard ones")
    return {"name": "ohem_cross_entropy", "threshold": float(threshold or 0.7), "min_kept": kept}


def _dice(section: Section) -> dict[str, Any]:
    section.differs(
        "type", "mmsegmentation's dice squares the scores in its denominator; here it is 2 x overlap / (scores + mask)"
    )
    section.unused("smooth", "exponent", "eps", "use_sigmoid", "activate", "naive_dice", "ignore_index", "reduction")
    return {"name": "dice", **_class_weights(section)} if "class_weight" not in section else _without_weights(section)


def _without_weights(section: Section) -> dict[str, Any]:
    section.lost("class_weight", "the loss 'dice' has no class weights")
    return {"name": "dice"}


def _lovasz(section: Section) -> dict[str, Any]:
    section.expect("loss_type", "multi_class")
    if not section.take("per_image", False):
        section.differs("per_image", "the loss is computed image by image here, in mmsegmentation over the whole batch")
    section.expect("reduction", "mean", "none")
    section.expect("class_weight", None)
    return {"name": "lovasz_softmax", "classes": section.take("classes", "present")}


def _focal(section: Section) -> dict[str, Any]:
    section.lost(
        "use_sigmoid", "mmsegmentation's focal loss has a sigmoid for each class; the one here is of the softmax"
    )
    section.unused("alpha", "reduction", "class_weight")
    return {"name": "focal", "gamma": float(section.number("gamma", 2.0))}


_KINDS: dict[str, Callable[[Section], dict[str, Any]]] = {
    "CrossEntropyLoss": _cross_entropy,
    "OhemCrossEntropy": _ohem,
    "DiceLoss": _dice,
    "LovaszLoss": _lovasz,
    "FocalLoss": _focal,
}
