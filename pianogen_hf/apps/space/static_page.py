"""The page of `pianogen play` as a folder for any static host: the model runs in the visitor's browser.

What lies in it: the page and its JavaScript (`static/`), ONNX Runtime for browsers (`static/onnxruntime/`), the graph
of the model's decoder, the weights of its heads and what the JavaScript must know of its configuration (`model/`), and
the tones of a piano, if they can be rendered here.
"""

from __future__ import annotations

import json
import shutil
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import SpaceCard, SpaceCardData

from pianogen_hf.apps.player.files import STATIC, STATIC_FOLDERS, TONE_PITCHES, TONE_SEC
from pianogen_hf.apps.space.folder import license_of, whole_folder
from pianogen_hf.apps.space.onnxruntime_web import PACKAGE, VERSION
from pianogen_hf.generation.note_stream import KEY_WEIGHT
from pianogen_hf.generation.note_verbs import USUAL_DENSITY, check_takes_given
from pianogen_hf.generation.onnx.halving import halved, upper_halves
from pianogen_hf.generation.onnx.note_graph import build_note_graph
from pianogen_hf.models.key_finding import log_profile
from pianogen_hf.models.modeling_note_transformer import NoteTransformerForCausalLM, NoteTransformerRotaryEmbedding
from pianogen_hf.models.note_controls import key_of_class
from pianogen_hf.rendering.audio import AudioError, render_tones

# Nothing comes from elsewhere, and nothing goes there. The second source of scripts lets WebAssembly be compiled.
_POLICY = "default-src 'self' data: blob:; script-src 'self' 'wasm-unsafe-eval'; form-action 'none'; base-uri 'none'"
_CONFIG = (  # what the page must know of a model's configuration
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "is_cascade",
    "num_recent_offsets",
    "control_sizes",
    "sampling_rate",
    "bos_token_id",
)
_NOT_OF_THIS_PAGE = ("show.html", "show.js", "play.html", "with_server.js", "server_session.js")


def write_static_page(
    folder: Path,
    name: str,
    model: NoteTransformerForCausalLM,
    *,
    runtime: dict[str, bytes],
    version: str,
    title: str | None = None,
    short_description: str,
    overwrite: bool = False,
) -> dict[str, int]:
    """Write the folder; nothing is in its place before all of it is written.

    Args:
        folder: where to. With `overwrite` it may hold files: those of the same names are replaced, others stay.
        name: folder or Hub id of the model.
        model: the model, a note transformer (V8).
        runtime: files of ONNX Runtime, by name; see `runtime_files`.
        version: of this package.
        title: of the page; by default the model's name.
        short_description: on the Hub's card of the Space; up to 60 characters.
        overwrite: whether the folder may hold files.

    Returns:
        Bytes that a visitor downloads: of the model, of ONNX Runtime, of the page, of its sounds.

    Raises:
        SpaceError: if the folder is taken or can't be written to, or the description is too long.
        GenerationError: for another kind of model.
    """
    check_takes_given(model)
    title = title or f"Play with {Path(name).name}"
    with whole_folder(folder, overwrite, short_description) as written:
        _write_page(written, title)
        _write_all(written / "static" / "onnxruntime", {**runtime, "LICENSE": _RUNTIME_LICENSE.encode()})
        _write_model(written / "model", name, model)
        _write_sounds(written)
        _write_card(written, name, version, title, short_description)
        sizes = {each.relative_to(written): each.stat().st_size for each in written.rglob("*") if each.is_file()}
    return {
        "model": sum(size for path, size in sizes.items() if path.parts[0] == "model"),
        "ONNX Runtime": sum(size for path, size in sizes.items() if "onnxruntime" in path.parts),
        "page": sum(size for path, size in sizes.items() if path.parts[0] == "static" and len(path.parts) == 2),
        "sounds": sizes.get(Path("sounds.wav"), 0),
    }


def _write_page(folder: Path, title: str) -> None:
    for each in STATIC_FOLDERS:
        unneeded = shutil.ignore_patterns(*_NOT_OF_THIS_PAGE)
        shutil.copytree(each, folder / "static", ignore=unneeded, dirs_exist_ok=True)
    page = (STATIC / "play.html").read_text(encoding="utf-8")
    page = page.replace("with_server.js", "without_server.js")
    page = page.replace("<title>Play with the model</title>", f"<title>{escape(title, quote=False)}</title>")
    policy = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    page = page.replace('<meta charset="utf-8">', f'<meta charset="utf-8">\n{policy}')
    (folder / "index.html").write_text(page, encoding="utf-8")


def _write_model(folder: Path, name: str, model: NoteTransformerForCausalLM) -> None:
    """The graph, the heads, and a configuration that also says how large these are."""
    weights = {key: each.cpu().float().numpy() for key, each in model.state_dict().items()}
    heads = {key.removeprefix("heads."): each for key, each in weights.items() if key.startswith("heads.")}
    files = {
        "model.onnx": halved(build_note_graph(weights, model.config)).SerializeToString(),
        "heads.safetensors": saved_heads(heads),
    }
    config: dict[str, Any] = {key: getattr(model.config, key) for key in _CONFIG}
    config["key_profiles"] = [log_profile(*key_of_class(key)).tolist() for key in range(1, 25)]
    config["key_weight"], config["usual_density"] = KEY_WEIGHT, USUAL_DENSITY
    config |= {"head_dim": model.config.head_dim, "frequencies": _frequencies(model)}
    config["files"] = {key: len(content) for key, content in files.items()}
    _write_all(folder, {**files, "config.json": json.dumps(config, indent=1).encode()})
    for each in Path(name).glob("LICENSE*") if Path(name).is_dir() else ():
        shutil.copyfile(each, folder / each.name)


def _frequencies(model: NoteTransformerForCausalLM) -> list[list[float]]:
    """Radians per unit of a row's index, onset and pitch."""
    return NoteTransformerRotaryEmbedding(model.config).frequencies


def saved_heads(heads: dict[str, np.ndarray]) -> bytes:
    """A safetensors file of float32 weights, in bfloat16 where that loses nothing; numpy's own has no such numbers."""
    header: dict[str, Any] = {}
    contents: list[bytes] = []
    begin = 0
    for name, values in heads.items():
        halves = upper_halves(values)
        contents.append(values.astype("<f4").tobytes() if halves is None else halves.tobytes())
        end = begin + len(contents[-1])
        kind = "F32" if halves is None else "BF16"
        header[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(contents)


def _write_sounds(folder: Path) -> None:
    try:
        _write_all(folder, {"sounds.wav": render_tones(TONE_PITCHES, TONE_SEC)})
        about: dict[str, Any] = {"pitches": TONE_PITCHES, "seconds": TONE_SEC}
    except AudioError:
        about = {}  # the page then has a simple synthesizer, and says so
    _write_all(folder, {"sounds.json": json.dumps(about).encode()})


def _write_card(folder: Path, name: str, version: str, title: str, short_description: str) -> None:
    is_local = Path(name).is_dir()
    data = SpaceCardData(
        title=title,
        emoji="🎹",
        colorFrom="indigo",
        colorTo="yellow",
        sdk="static",
        app_file="index.html",
        short_description=short_description,
        license=license_of(Path(name, "README.md")) if is_local else None,
        models=None if is_local else [name],
        tags=["music", "midi", "piano", "pianogen_hf", "onnx"],
    )
    template = Path(__file__).with_name("static_card_template.md").read_text(encoding="utf-8")
    facts: dict[str, Any] = {"title": title, "version": version, "runtime": f"{PACKAGE} {VERSION}"}
    card = SpaceCard.from_template(data, template_str=template, **facts, model_id=None if is_local else name)
    (folder / "README.md").write_text(str(card).rstrip() + "\n", encoding="utf-8")


def _write_all(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


_RUNTIME_LICENSE = """MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""
