"""pianogen_hf: Hugging Face-native models for symbolic piano music.

Importing it registers its models and tokenizers with the Auto classes of transformers, so that
`AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` know them.
"""

from pathlib import Path

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from pianogen_hf.models.configuration_music_transformer import MusicTransformerConfig
from pianogen_hf.models.modeling_music_transformer import MusicTransformerForCausalLM, MusicTransformerModel
from pianogen_hf.tokenizers.midi import MidiError, notes_to_midi_bytes, read_midi, write_midi
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.tokenizers.tokenization_craykh import CrayKHTokenizer
from pianogen_hf.tokenizers.tokenization_jsb import JSBTokenizer
from pianogen_hf.tokenizers.tokenization_notes import NoteTokenizer
from pianogen_hf.tokenizers.tokenization_performance import PerformanceTokenizer
from pianogen_hf.tokenizers.tokenization_remi import RemiTokenizer

__version__ = "0.1.0"

# Folder of the small model that comes with the package, for every `from_pretrained`.
BUNDLED_MODEL = str(Path(__file__).parent / "checkpoints" / "v7-bach")

__all__ = [
    "BUNDLED_MODEL",
    "CrayKHTokenizer",
    "JSBTokenizer",
    "MidiError",
    "MusicTransformerConfig",
    "MusicTransformerForCausalLM",
    "MusicTransformerModel",
    "NoteTokenizer",
    "Notes",
    "PerformanceTokenizer",
    "RemiTokenizer",
    "notes_to_midi_bytes",
    "read_midi",
    "write_midi",
]

AutoConfig.register("music_transformer", MusicTransformerConfig)
AutoModel.register(MusicTransformerConfig, MusicTransformerModel)
AutoModelForCausalLM.register(MusicTransformerConfig, MusicTransformerForCausalLM)
# Any tokenizer serves any model: AutoTokenizer finds it by the class name in tokenizer_config.json. The one that stands
# last is taken for a Music Transformer whose folder names none.
for _tokenizer in (CrayKHTokenizer, JSBTokenizer, RemiTokenizer, PerformanceTokenizer):
    AutoTokenizer.register(MusicTransformerConfig, tokenizer_class=_tokenizer, exist_ok=True)
