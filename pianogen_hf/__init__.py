"""pianogen_hf: Hugging Face-native models for symbolic piano music.

Importing it makes its models and tokenizers known to the Auto classes of transformers, so that
`AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` find them. Its parts are listed in
`__init__.pyi` and loaded when they are first used.
"""

from pathlib import Path

import lazy_loader

from pianogen_hf.registration import register_when_loaded

__version__ = "0.1.0"

# Folders of the models that come with the package, for every `from_pretrained`: one for piano music, which may not be
# used commercially, and a small one for chorales, without restriction.
PIANO_MODEL = str(Path(__file__).parent / "checkpoints" / "v8")
BACH_MODEL = str(Path(__file__).parent / "checkpoints" / "v7-bach")
BUNDLED_MODEL = PIANO_MODEL

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ = sorted(["BACH_MODEL", "BUNDLED_MODEL", "PIANO_MODEL", *__all__])

register_when_loaded()
