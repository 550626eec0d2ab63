"""Where the tensors of a checkpoint go, by transformers' own rules of renaming and merging.

Some checkpoints call tensors otherwise than the model does, leave out or add a prefix, or hold each
expert's matrix by itself where the model has one for all. Each such tensor becomes a claim on its
piece of the model's own, so that nothing is held twice.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from ...errors import LoadError
from ..shard import Claim

Shape = tuple[int, ...]


def claims_among(
    shapes: Mapping[str, Shape], tensors: Mapping[str, Tensor], rules: Sequence[Any], prefix: str
) -> Iterator[Claim]:
    """Claims of a checkpoint's tensors on the model's `tensors`, by name.

    `shapes` are the checkpoint's, `rules` transformers' transforms of the model, `prefix` that of
    its body. Tied tensors are one under several names, of which the checkpoint may hold any. What
    no tensor of the checkpoint goes into is claimed under the model's own name.
    """
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    plain: dict[str, str] = {}
    merged: dict[tuple[str, int], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in sorted(shapes, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, dict(tensors))
        if target not in tensors and name in tensors:
            target, pattern = name, None
        if pattern is None:
            plain.setdefault(target, name)
        else:
            which = next(i for i, c in enumerate(converters) if pattern in c.source_patterns)
            merged[target, which][pattern].append(name)
    filled: set[int] = set()
    for target, into in tensors.items():
        if target in plain:
            filled.add(id(into))
            yield Claim(plain[target], into)
    for (target, which), sources in merged.items():
        for into, claim in _converted(converters[which], target, sources, shapes, tensors):
            filled.add(id(into))
            yield claim
    for name, into in tensors.items():
        if id(into) not in filled:
            filled.add(id(into))
            yield Claim(name, into)


def _converted(
    rule: Any,
    target: str,
    sources: Mapping[str, Sequence[str]],
    shapes: Mapping[str, Shape],
    tensors: Mapping[str, Tensor],
) -> Iterator[tuple[Tensor, Claim]]:
    """What one conversion fills, and the claims that do it. Raises LoadError for one not known."""
    kinds = [type(operation).__name__ for operation in rule.operations]
    if kinds == ["Chunk"] and rule.operations[0].num_shards_attribute is None:
        (name,) = next(iter(sources.values()))
        parts = rule.target_patterns
        for share, part in enumerate(parts):
            into = tensors[target.replace(parts[0], part)]
            yield into, Claim(name, into, rule.operations[0].dim, share, len(parts))
    elif kinds in (["MergeModulelist"], ["Concatenate"], ["MergeModulelist", "Concatenate"]):
        if target in tensors:
            for claim in _merged(rule, kinds, tensors[target], sources, shapes):
                yield tensors[target], claim
    else:
        raise LoadError(
            f"the checkpoint's {next(iter(sources.values()))[0]!r} goes through transformers' "
            f"{' and '.join(kinds)}, which is not built; write the model out in its new form with "
            f"transformers' save_pretrained(FOLDER, save_original_format=False)"
        )


def _merged(
    rule: Any,
    kinds: Sequence[str],
    whole: Tensor,
    sources: Mapping[str, Sequence[str]],
    shapes: Mapping[str, Shape],
) -> Iterator[Claim]:
    """Claims on pieces of `whole`: stacked lists beside each other, in the order of the rule."""
    stacked = kinds[0] == "MergeModulelist"
    place = 0
    for pattern in rule.source_patterns:
        names = sources.get(pattern, ())
        part = whole
        if kinds[-1] == "Concatenate":
            dim = rule.operations[-1].dim
            left = whole.shape[dim] - place
            size = shapes[names[0]][dim - stacked] if names else left
            part = whole.narrow(dim, place, min(size, left))
            place += size
        if not stacked:
            yield Claim(names[0] if names else pattern, part)
            continue
        slots = part.unbind(rule.operations[0].dim)
        for name, piece in zip(_numbered(names, pattern, len(slots)), slots, strict=True):
            yield Claim(name, piece)


def _numbered(names: Sequence[str], pattern: str, count: int) -> list[str]:
    """The tensors of a list by their numbers, 0 to `count` - 1, there or not.

    Raises LoadError where there are others.
    """
    head, _, tail = pattern.partition("*")
    number = re.compile(rf"^(.*){re.escape(head)}(\d+){re.escape(tail)}")
    found = {name: number.search(name) for name in names}
    where = next((match[1] for match in found.values() if match), "")
    by_number = {int(match[2]): name for name, match in found.items() if match}
    if extra := [name for name, match in found.items() if not match or int(match[2]) >= count]:
        raise LoadError(
            f"the checkpoint holds {extra[0]!r}, and config.json says that there are {count} of "
            f"them: they do not belong together"
        )
    return [by_number.get(index, f"{where}{head}{index}{tail}") for index in range(count)]
