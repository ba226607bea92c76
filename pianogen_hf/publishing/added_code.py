"""Code files for a model folder that has none, so that it loads where this package is not installed.

What `save_pretrained` writes carries its code. The bundled model does not, because it lies beside that code, nor do
folders that were saved otherwise: they get it before they are published.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.feature_extraction_auto import feature_extractor_class_from_name
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from pianogen_hf.models.carried_code import CarriesCode, auto_map, code_files, pipelines, reference
from pianogen_hf.publishing.card_facts import CardError
from pianogen_hf.records import read_map
from pianogen_hf.tokenizers.feature_extraction_continuous_notes import ContinuousNotesFeatureExtractor
from pianogen_hf.tokenizers.files import write_whole
from pianogen_hf.tokenizers.tokenization_notes import NoteTokenizer


def add_code(folder: str | os.PathLike) -> list[str]:
    """Write the code of this package that a model folder needs, and `auto_map` into its JSON files.

    It can be done again, which brings the code up to date. Stock architectures need code of their tokenizer only. To
    be done before `write_card`, which tells of code where there is some.

    Args:
        folder: where config.json lies, and what else there is of tokenizer_config.json and preprocessor_config.json.

    Returns:
        Names of the code files, sorted; empty where nothing in the folder is of this package.

    Raises:
        CardError: if the folder holds no model.
        FileError: if one of the files can't be read, or the folder can't be written to.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise CardError(f"{folder} holds no model (no config.json)")
    content = {name: read_map(folder / name) for name in _PARTS}
    parts = {name: part for name, find in _PARTS.items() if (part := find(content[name]))}
    paths = {path.name: path for part in parts.values() for path in code_files(part)}
    for path in paths.values():
        write_whole(folder / path.name, path.read_bytes())
    for name, part in parts.items():  # last: what they name is there
        added = {"auto_map": _auto_map(part)}
        if tasks := pipelines(str((content[name].get("architectures") or [""])[0])):
            added["custom_pipelines"] = tasks
        text = json.dumps({**content[name], **added}, indent=2, sort_keys=True, ensure_ascii=False)
        write_whole(folder / name, f"{text}\n".encode())
    return sorted(paths)


def _auto_map(part: type) -> dict[str, Any]:
    if issubclass(part, CarriesCode):
        return auto_map(part)  # type: ignore[arg-type]
    if issubclass(part, NoteTokenizer):
        return {"AutoTokenizer": [reference(part), None]}  # the second would be one in Rust
    return {"AutoFeatureExtractor": reference(part)}


def _model(config: dict[str, Any]) -> type | None:
    """The base model, whose file has the heads, too; or a model that is made of stock parts and has no base."""
    model_type = str(config.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        return None
    config_class = CONFIG_MAPPING[model_type]
    tables = (MODEL_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING)
    return _ours(next((each[config_class] for each in tables if config_class in each), None), CarriesCode)


def _tokenizer(config: dict[str, Any]) -> type | None:
    return _ours(tokenizer_class_from_name(str(config.get("tokenizer_class"))), NoteTokenizer)


def _extractor(config: dict[str, Any]) -> type | None:
    found = feature_extractor_class_from_name(str(config.get("feature_extractor_type")))
    return _ours(found, ContinuousNotesFeatureExtractor)


def _ours(part: Any, base: type) -> type | None:
    return part if isinstance(part, type) and issubclass(part, base) else None


_PARTS = {
    "config.json": _model,
    "tokenizer_config.json": _tokenizer,
    "preprocessor_config.json": _extractor,
}
