"""Loads a model as a stranger would and writes down what it answers: a script of its own, run in a process of its own.

`python reload_check.py < question.json`: see `Question`. It needs nothing of this package, so that it can also run
where the package can't be seen.
"""

from __future__ import annotations

import base64
import json
import sys
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

_SEED, _LENGTH = 0, 64


@dataclass(frozen=True)
class Question:
    """What to load and how.

    Attributes:
        name: model folder or name on the Hub.
        revision: a commit, or None.
        encoder: "AutoTokenizer", "AutoFeatureExtractor", or None to ask with random tokens.
        midi: a MIDI file in base64, what the model is asked about.
        output: file for the answer, safetensors.
        hide_package: whether pianogen_hf must not be found.
        trust_remote_code: whether the model's own code files may be run.
    """

    name: str
    revision: str | None
    encoder: str | None
    midi: str
    output: str = ""
    hide_package: bool = False
    trust_remote_code: bool = False

    @property
    def as_json(self) -> str:
        """For the standard input of the script."""
        return json.dumps(asdict(self))


def answer(question: Question) -> dict[str, Any]:
    """Everything that the model computes from the MIDI file, as tensors by name; the inputs are among them."""
    import torch
    import transformers

    place = {"revision": question.revision, "trust_remote_code": question.trust_remote_code}
    config = transformers.AutoConfig.from_pretrained(question.name, **place)
    is_causal = getattr(config, "is_causal", True)
    auto_class: Any = transformers.AutoModelForCausalLM if is_causal else transformers.AutoModelForMaskedLM
    if getattr(config, "is_encoder_decoder", False):
        auto_class = transformers.AutoModelForSeq2SeqLM
    model = auto_class.from_pretrained(question.name, use_safetensors=True, dtype=torch.float32, **place).eval()
    context = getattr(config, "max_position_embeddings", None) or _LENGTH
    if question.encoder is None:
        generator = torch.Generator().manual_seed(_SEED)
        ids = torch.randint(config.vocab_size, (1, min(_LENGTH, context)), generator=generator)
        inputs: dict[str, Any] = {"input_ids": ids}
    else:
        encoder = getattr(transformers, question.encoder).from_pretrained(question.name, **place)
        inputs = dict(encoder(base64.b64decode(question.midi), return_tensors="pt"))
    inputs = {name: value[:, : min(_LENGTH, context)] for name, value in inputs.items()}
    with torch.inference_mode():
        outputs = model(**inputs, return_dict=True)
    tensors = {**inputs, **outputs}
    return {name: value.contiguous() for name, value in tensors.items() if isinstance(value, torch.Tensor)}


def main() -> None:
    """Answer one question."""
    question = Question(**json.load(sys.stdin))
    if question.hide_package:
        sys.modules["pianogen_hf"] = None  # type: ignore[assignment]  # to import it is now an ImportError
    else:
        import_module("pianogen_hf")  # makes its parts known to the Auto classes
    from safetensors.torch import save_file

    save_file(answer(question), question.output)


if __name__ == "__main__":
    main()
