"""Keys and components of other libraries, and what to write here instead: tables, and how they are searched."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping

from classyseg.config import closest, same_word, squashed
from classyseg.console import shown
from classyseg.foreign_words import AT, KEYS, NAMES, NOTHING

PLACES = {
    "tasks": "",
    "dataset": "dataset",
    "datasets": "dataset.train",
    "transforms": "dataset.train.transforms",
    "models": "model",
    "heads": "model.heads.main",
    "losses": "loss",
    "meters": "meters",
    "optimizers": "optimizer",
    "schedulers": "optimizer.schedule",
    "hooks": "hooks",
    "runtime": "runtime",
}
"""The place of each kind of record in a task config."""

HEAD_BLOCKS = {
    "deeplabv3plus": "stage1, stage4",
    "lraspp": "stage2, stage4",
    "jpu": "stage2, stage3, stage4",
    **dict.fromkeys(("fcfpn", "segformer", "semantic_fpn", "unet", "upernet"), "stage1, stage2, stage3, stage4"),
}
"""The blocks of a ResNet that a head reads, for heads that read more than the deepest."""

_SIZES = {"tiny": "ti", "small": "s", "base": "b", "large": "l", "huge": "h"}
_LETTERS = {"t": "tiny", "s": "small", "b": "base", "l": "large"}
_REGNET = {"016": "1_6gf", "032": "3_2gf", "080": "8gf", "160": "16gf", "320": "32gf", "004": "400mf", "008": "800mf"}
_Rule = tuple[str, Callable[[re.Match[str]], str]]
MODEL_RULES: tuple[_Rule, ...] = (
    (r"(\w+)_tv", lambda m: f"{m[1]}_torchvision"),
    (r"(?:vit|deit3?|beit\w*?)_(tiny|small|base|large|huge)_patch(\d+)\w*", lambda m: f"vit_{_SIZES[m[1]]}_{m[2]}"),
    (r"swin(v2)?_(tiny|small|base)\w*", lambda m: f"swin_{'v2_' if m[1] else ''}{m[2][0]}"),
    (r"(?:resnet_?v1c|resnet_v1c)_?(\d+)|resnet_?(\d+)_?v1c", lambda m: f"resnet{m[1] or m[2]}s"),
    (r"(?:resnet_?v1d|resnet_v1d)_?(\d+)|resnet_?(\d+)_?v1d", lambda m: f"resnet{m[1] or m[2]}d"),
    (r"resnet_?v1([cd])", lambda m: f"resnet50{'s' if m[1] == 'c' else 'd'}"),
    (r"build_(\w+)_backbone", lambda m: m[1]),
    (r"r_?(\d+)", lambda m: f"resnet{m[1]}"),
    (r"regnet_?([xy])_(\d{3})", lambda m: f"regnet_{m[1]}_{_REGNET.get(m[2], '')}"),
    (r"mobilenet_?v2\w*", lambda m: "mobilenet_v2"),
    (r"mobilenet_?v3_(large|small)\w*", lambda m: f"mobilenet_v3_{m[1]}_x1_0"),
    (r"hrnet_?v?2?p?_?w?(\d+)\w*", lambda m: f"hrnet_w{m[1]}"),
    (r"convnext_(t|s|b|l)", lambda m: f"convnext_{_LETTERS[m[1]]}"),
    (r"se_?resnet(\d+)", lambda m: f"resnet{m[1]}"),
    (r"res2net(\d+)\w*", lambda m: f"resnet{m[1]}"),
    (r"resnest_?(\d+)\w*", lambda m: f"resnest{m[1]}"),
    (r"(?:mit|segformer)_?(?:mit_?)?b(\d)\w*", lambda m: f"mit_b{m[1]}"),
    (r"mix_?(?:vision_?)?transformer\w*", lambda m: "mix_transformer"),
    (r"efficientnet_?v2_?r?w?_?(s|m|l)\w*", lambda m: f"efficientnet_v2_{m[1]}"),
)
"""How other libraries write the names of models that are here."""

FAMILIES: tuple[tuple[str, str], ...] = (
    (r"pvt\w*", "mit_b2 with the head segformer"),
    (r"vit\w*|deit\w*|beit\w*|dino\w*|clip\w*|eva\w*|sam\w*|vision_?transformer\w*", "vit_b_16"),
    (r"swin\w*|mask2?former\w*", "swin_b with the head upernet"),
    (r"convnext\w*", "convnext_tiny"),
    (r"hrnet\w*|hrformer\w*", "hrnet_w18"),
    (r"vgg\w*|alexnet|googlenet|inception\w*|darknet\w*|cspdarknet\w*|resnet_?v?\w*|res2net\w*|yolo\w*", "resnet50"),
    (
        r"mobileone\w*|mobilenet\w*|ghostnet\w*|shufflenet\w*|mnasnet\w*|bisenet\w*|pp_?liteseg\w*|pp_?mobileseg\w*|stdc\w*|ddrnet\w*",
        "mobilenet_v2",
    ),
    (r"efficientnet\w*|gernet\w*|nfnet\w*", "efficientnet_b0"),
    (r"regnet\w*", "regnet_y_800mf"),
    (r"dpn\w*|xception\w*|senet\w*|resnext\w*", "resnext50_32x4d"),
)
"""Families of models that are not here, and the closest one that is."""

_PREFIX = re.compile(r"^(?:.*/|(?:timm|tu|tv|tf|torchvision|mmseg|smp)_)")
"""The library or person that offers a model, as in `timm/resnet50`, `nvidia/mit-b0` and `torchvision://resnet50`."""
_TAG = re.compile(r"(?<=[a-z0-9])\.[a-z]\w*$")
"""timm's mark for the weights of a model, as in `resnet50.a1_in1k`."""
_BACKBONE_AFTER = re.compile(r"(?:_on)?_+(?P<backbone>[a-z].*)")


def _by_word(table: Mapping[str, str]) -> dict[str, str]:
    return {squashed(word): answer for words, answer in table.items() for word in words.split()}


_KEYS = _by_word(KEYS)
_AT = {place: _by_word(table) for place, table in AT.items()}
_NAMES = {kind: _by_word(table) for kind, table in NAMES.items()}


def instead_of_key(place: str, word: object, keys: Collection[str], value: object = None) -> str:
    """What to write instead of the unknown key `word` in a record at `place` with `keys`; empty if unknown.

    `value` is what was written there. If the key is another library's section, each known word in it gets an answer.
    """
    own = same_word(word, keys)
    if own is not None:
        return f"did you mean '{own}'?"
    here = PLACES.get(place)
    for table in (_AT.get(place, {}), _KEYS) if here is not None else ():
        answer = table.get(squashed(word))
        if answer is None:
            continue
        path = re.split(r"[,:; ]", answer, maxsplit=1)[0]
        parent, _, key = path.rpartition(".")
        if answer.startswith(NOTHING):
            return f"{answer.removeprefix(NOTHING)}."
        if parent == here:
            if key in keys:
                return f"did you mean '{key}'?{f' Write {answer}.' if answer != path else ''}"
            if ", of {" in answer:
                return f"write {answer}."
        elif path != here:
            return f"write {answer}." if parent else f"write at the top of the config: {answer}."
    is_section = place == "tasks" and closest(word, keys) is None  # `optimzer: {lr: 0.1}` is none
    inner = list(_answers_within(value)) if is_section else []
    return f"{'; '.join(inner[:4])}." if inner else ""


def _answers_within(section: object) -> Iterator[str]:
    """What to write for each known word of another library's section, such as `SOLVER: {BASE_LR: 0.1}`."""
    for word, value in list(section.items())[:20] if isinstance(section, Mapping) else ():
        answer = _KEYS.get(squashed(word))
        if answer is None:
            yield from _answers_within(value)
        elif answer.startswith(NOTHING):
            yield f"{shown(word)}: {answer.removeprefix(NOTHING)}"
        else:
            yield f"for {shown(word)} write {answer}"


def instead_of_name(kind: str, word: str, names: Collection[str], heads: Callable[[], Collection[str]]) -> str:
    """What to write instead of the unknown name `word` of a component; empty if unknown.

    `names` are the registered ones of its kind; `heads` gives the names of the heads.
    """
    for written in word, word.rpartition(".")[2]:  # as in torch.optim.AdamW
        own = same_word(written, names)
        known = own or _NAMES.get(kind, {}).get(squashed(written)) or _without_suffix(kind, written, names)
        if known is not None and known in names:
            return f"did you mean '{known}'?"
        if known is not None and known.startswith(NOTHING):
            return f"{known.removeprefix(NOTHING)}."
    return _instead_of_model(word, names, heads()) if kind == "models" else ""


SUFFIXES = {
    "heads": ("head", "decoder"),
    "losses": ("loss",),
    "meters": ("metric",),
    "datasets": ("dataset",),
    "hooks": ("hook",),
}


def _without_suffix(kind: str, word: str, names: Collection[str]) -> str | None:
    short = squashed(word)
    suffix = next((suffix for suffix in SUFFIXES.get(kind, ()) if short.endswith(suffix)), None)
    return None if suffix is None else same_word(short.removesuffix(suffix), names)


def _instead_of_model(word: str, names: Collection[str], heads: Collection[str]) -> str:
    plain = _PREFIX.sub("", re.sub(r"[\s.\-]+", "_", word.lower()))
    untagged = _PREFIX.sub("", re.sub(r"[\s.\-]+", "_", _TAG.sub("", word.lower())))
    found = our_model(plain, names) or our_model(untagged, names)
    if found is not None:
        return f"did you mean '{found}'?"
    slip = difflib.get_close_matches(plain, names, n=1, cutoff=0.94)  # one wrong letter, as in psp_resnet50s_ade
    if slip:
        return f"did you mean '{slip[0]}'?"
    head, backbone = _head_and_backbone(plain, names, heads)
    if head is not None:
        blocks = HEAD_BLOCKS.get(head, "stage4")
        what = f"'{head}' is a head" if head in squashed(plain) else f"'{word}' is a head, '{head}' here"
        return f"{what}; write model: {{name: {backbone}, heads: {{main: {{name: {head}, blocks: [{blocks}]}}}}}}."
    for pattern, family in FAMILIES:
        if re.fullmatch(pattern, plain):
            return f"there is none of that family; the closest is {family}."
    return ""


def our_model(word: str, names: Collection[str]) -> str | None:
    """The registered name of a model that other libraries call `word`."""
    same = same_word(word, names)
    if same is not None:
        return same
    for pattern, name in MODEL_RULES:
        match = re.fullmatch(pattern, word)
        if match and name(match) in names:
            return name(match)
    return None


def _head_and_backbone(word: str, names: Collection[str], heads: Collection[str]) -> tuple[str | None, str]:
    """The head at the beginning of `word`, and the backbone after it, or else a common one."""
    aliases = {**{squashed(head): head for head in heads}, **_NAMES["heads"]}
    parts = word.split("_")
    for end in range(len(parts), 0, -1):
        head = aliases.get(squashed("".join(parts[:end])))
        if head in heads:
            return head, our_model("_".join(parts[end:]), names) or "resnet34"
    return None, ""
